"""A search on Ray Tune: the same space, the same SQLite file and the same rule for ending poor trials, many at once.

Ray Tune starts trials where there is room and stops those that it is told to; which choice comes next and which trial
is poor, the search says (`training/search.py`), so a search may be begun here and gone on with on one machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from rich.console import Console

from bimo.cluster.session import check_room, session
from bimo.cluster.training import RESTARTS, for_people, from_anywhere, prepare_on
from bimo.core import machine
from bimo.core.config import RunSettings
from bimo.core.registry import import_modules
from bimo.preparing import open_text, prepare
from bimo.recipes import open_run
from bimo.training.search import POINTS, Curve
from bimo.training.tune import Effort, Report, Tuned, Tuning
from bimo.tuning import Trials, tune

_ENDED = "curve"  # the last report of a trial holds what it came to


def tune_on(settings: RunSettings, effort: Effort, console: Console, *, cluster: str = "auto", workers: int = 2) -> Any:
    """As `tuning.tune`, with `workers` trials at once; the recipe that it writes."""
    if cluster.startswith("ray://"):
        with session(cluster, workers) as ray, for_people(cluster):
            return ray.get(ray.remote(num_cpus=0)(_from_within).remote(settings.to_dict(), effort, workers))
    settings = from_anywhere(settings)
    effort = replace(effort, at_once=workers)
    with session(cluster, workers) as ray:
        gpus = settings.training.device.startswith("cuda")
        check_room(ray, workers, gpus=gpus)
        run = open_run(settings, resume=False)
        with for_people(run.path):
            prepare_on(ray, settings, run, open_text(settings.data, run.path), console)

        def search_through(tuning: Tuning, trials: Trials) -> Tuned:
            return _Elsewhere(ray, settings, tuning, workers, gpus=gpus).run()

        return tune(settings, effort, console, search_through=search_through)


def _from_within(settings: dict[str, Any], effort: Effort, workers: int) -> Any:
    """The same, called on a machine of the cluster."""
    return tune_on(_chosen(settings, settings["training"]["threads"]), effort, Console(width=120), workers=workers)


class _Elsewhere:
    """A search whose trials run on the cluster.

    Args:
        ray: Connected.
        settings: The recipe.
        tuning: Says what comes next.
        workers: Trials at once.
        gpus: Whether each takes one.
    """

    def __init__(self, ray: Any, settings: RunSettings, tuning: Tuning, workers: int, *, gpus: bool) -> None:
        self.ray, self.settings, self.tuning, self.workers = ray, settings, tuning, workers
        self.resources = {"CPU": 1, "GPU": 1} if gpus else {"CPU": 1}
        at_once = max(1, workers // len(ray.nodes()))  # the trials of a machine share its cores
        self.threads = settings.training.threads or (0 if gpus else max(1, machine.usable_cores() // at_once))
        self.running: dict[str, Any] = {}
        tuning.measure = self.measure

    def run(self) -> Tuned:
        """Search, compare, and say what came of it."""
        from ray import tune as ray_tune

        self.tuning.begin(self.sweep)
        if self.tuning.goes_on:
            folder = self.tuning.search.file.parent
            ray_tune.Tuner(
                ray_tune.with_resources(_trial, {name.lower(): n for name, n in self.resources.items()}),
                tune_config=ray_tune.TuneConfig(
                    metric="loss",
                    mode="min",
                    search_alg=_searcher(self),
                    scheduler=_scheduler(self),
                    num_samples=-1,
                    max_concurrent_trials=self.workers,
                    reuse_actors=False,
                ),
                run_config=ray_tune.RunConfig(
                    name="ray", storage_path=str(folder), verbose=0,
                    failure_config=ray_tune.FailureConfig(max_failures=RESTARTS),
                ),
            ).fit()  # fmt: skip
        return self.tuning.finish()

    def sweep(self, seconds: float) -> float | None:
        """Look for a learning rate on the cluster."""
        return self._remote(_swept, self.settings.to_dict(), self.threads, seconds)

    def measure(self, settings: RunSettings, seconds: float, seed: int, report: Report) -> Curve:
        """Train a choice on the cluster, without ending it early."""
        return Curve(**self._remote(_measured, settings.to_dict(), self.threads, seconds, seed))

    def next_trial(self, name: str) -> dict[str, Any] | None:
        """What Ray's trial of that name shall train; None when the search is over."""
        effort, ended = self.tuning.effort, len(self.tuning.search.rows())
        enough = effort.trials and ended + len(self.running) >= effort.trials
        if enough or not self.tuning.goes_on:
            return None
        trial, choice = self.tuning.search.ask()
        self.running[name] = trial
        settings = self.tuning.search.space.applied(self.tuning.search.settings, choice)
        return {"settings": settings.to_dict(), "threads": self.threads, "seconds": self.tuning.search.trial_s}

    def is_poor(self, name: str, result: dict[str, Any]) -> bool:
        """Take a report; whether the trial shall end."""
        return _ENDED not in result and self.tuning.search.report(self.running[name], result["point"], result["loss"])

    def ended(self, name: str, result: dict[str, Any] | None) -> None:
        """Write down a trial: it has come to its end, was ended early, or was lost."""
        found = dict(result or {})
        lost = Curve(float("inf"), float(found.get("seconds", 0.0)), found.get("steps", 0), 0, _why(found))
        curve = Curve(**json.loads(found[_ENDED])) if _ENDED in found else lost
        self.tuning.ended(self.running.pop(name), curve)

    def _remote(self, function: Callable[..., Any], *arguments: Any) -> Any:
        options = {"num_cpus": self.resources["CPU"], "num_gpus": self.resources.get("GPU", 0)}
        return self.ray.get(self.ray.remote(**options)(function).remote(*arguments))


def _why(found: dict[str, Any]) -> str:
    from bimo.training.trial import WORSE

    return WORSE if found.get("point") else "its worker was lost"


class _Here:
    """Something of this process that Ray keeps a copy of for a restart of its own: the copy is nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_nothing, ())

    def __deepcopy__(self, memory: Any) -> Any:
        return self


def _nothing() -> None:
    return None


def _searcher(elsewhere: _Elsewhere) -> Any:
    """What Ray Tune asks for the next trial."""
    from ray.tune.search import Searcher

    class Asking(_Here, Searcher):
        def suggest(self, trial_id: str) -> Any:
            return elsewhere.next_trial(trial_id) or Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            if trial_id in elsewhere.running:
                elsewhere.ended(trial_id, result)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: all of it lies in the search's own file."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing, as above."""

    return Asking(metric="loss", mode="min")


def _scheduler(elsewhere: _Elsewhere) -> Any:
    """What tells Ray Tune to end a trial."""
    from ray.tune.schedulers import FIFOScheduler

    class Ending(_Here, FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
            poor = trial.trial_id in elsewhere.running and elsewhere.is_poor(trial.trial_id, result)
            return FIFOScheduler.STOP if poor else FIFOScheduler.CONTINUE

    return Ending()


def _trial(config: dict[str, Any]) -> None:
    """A trial in a process of its own."""
    from ray import tune as ray_tune

    def report(point: int, loss: float) -> bool:
        ray_tune.report({"point": point, "loss": loss})
        return False  # Ray ends the process

    settings = _chosen(config["settings"], config["threads"])
    curve = _trials(_key(settings)).measure(settings, config["seconds"], settings.training.seed, report)
    ray_tune.report({"point": POINTS, "loss": curve.loss, _ENDED: json.dumps(asdict(curve))})


def _measured(settings: dict[str, Any], threads: int, seconds: float, seed: int) -> dict[str, Any]:
    chosen = _chosen(settings, threads)
    return asdict(_trials(_key(chosen)).measure(chosen, seconds, seed, lambda point, loss: False))


def _swept(settings: dict[str, Any], threads: int, seconds: float) -> float | None:
    chosen = _chosen(settings, threads)
    return _trials(_key(chosen)).sweep(chosen, seconds)


def _chosen(settings: dict[str, Any], threads: int) -> RunSettings:
    """The settings with this worker's threads, after the user's modules that they may name were imported."""
    import_modules(settings["modules"])
    chosen = RunSettings.from_dict(settings)
    return replace(chosen, training=replace(chosen.training, threads=threads))


def _key(settings: RunSettings) -> str:
    """What the text and the tokens of a search depend on."""
    plain = settings.to_dict()
    return json.dumps({name: plain[name] for name in ("name", "folder", "modules", "data", "tokenizer")})


@cache
def _trials(key: str) -> Trials:
    """The tokens of the search, opened once by each worker."""
    settings = RunSettings.from_dict(json.loads(key))
    run = open_run(settings, resume=False)
    return Trials(*prepare(settings, open_text(settings.data, run.path), Console(quiet=True)))
