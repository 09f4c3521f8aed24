"""Tuning: a search for rate, batch and structure within a time, and what it gained, said honestly.

Training knows neither text nor recipes: a function that trains one choice for some seconds comes in (`Measure`), and
one that looks for a learning rate (`Sweep`). At the end the best choice and the recipe itself are trained again with
several seeds that the search has not seen; the gain is reported with its spread, and a gain within the spread is none.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from bimo.core.artifacts import write_text
from bimo.core.config import RunSettings
from bimo.core.errors import UserError
from bimo.training.search import Curve, Row, Search, trial_seconds
from bimo.training.space import make_space

Report = Callable[[int, float], bool]
"""(number of the point, held-out loss) → whether the trial shall end here."""
Sweep = Callable[[float], float | None]
"""Look for a learning rate within some seconds; None: there was no time, or none was found."""
_SWEEP_SHARE = 0.06  # of the budget
_SHORTEST_TRIAL_S = 2.0
_LEAST_LAST = 0.4  # of a trial's time; shorter runs would say little of what the trials have found
# Two-sided 95 % quantile of Student's t by degrees of freedom.
_T95 = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228, 12: 2.179, 14: 2.145, 16: 2.120, 18: 2.101}


class Measure(Protocol):
    """Trains the settings for some seconds and reports the held-out loss at `POINTS` equal shares of that time."""

    def __call__(self, settings: RunSettings, seconds: float, seed: int, report: Report) -> Curve: ...


@dataclass(frozen=True)
class Effort:
    """How much is searched.

    Attributes:
        budget_s: Seconds in all, over all sessions.
        trials: Number of trials; 0: as many as fit.
        seeds: Runs of each of the two that are compared at the end.
        trial_s: Seconds of a trial; 0: what fits the budget.
        at_once: Trials that train at the same time.
    """

    budget_s: float
    trials: int = 0
    seeds: int = 3
    trial_s: float = 0.0
    at_once: int = 1

    def __post_init__(self) -> None:
        if self.budget_s <= 0 or self.trials < 0 or not 2 <= self.seeds <= 10 or self.trial_s < 0:
            raise UserError(
                f"a search needs a positive budget, trials from 0 on and 2 to 10 seeds, not {self}",
                mend="For example: bimo tune recipe.yaml --budget 30m",
            )


@dataclass(frozen=True)
class Gain:
    """What was gained over the recipe.

    Attributes:
        default: Held-out losses of the recipe, by seed.
        best: Those of the best choice.
    """

    default: list[float]
    best: list[float]

    @property
    def gain(self) -> float:
        """Nats per token by which the mean is lower."""
        return statistics.fmean(self.default) - statistics.fmean(self.best)

    @property
    def spread(self) -> float:
        """Half the 95 % confidence interval of the gain (Student's t on both spreads)."""
        n = len(self.default)
        variances = statistics.variance(self.default) + statistics.variance(self.best)
        return _T95[2 * n - 2] * math.sqrt(variances / n)

    @property
    def is_real(self) -> bool:
        """Whether it is larger than its spread."""
        return self.gain > self.spread

    def __str__(self) -> str:
        old, new = statistics.fmean(self.default), statistics.fmean(self.best)
        figures = (
            f"{old:.4f} ± {statistics.stdev(self.default):.4f} with the recipe, "
            f"{new:.4f} ± {statistics.stdev(self.best):.4f} with the best ({len(self.default)} seeds each)"
        )
        if self.is_real:
            return f"gain: {self.gain:.4f} ± {self.spread:.4f} nats per token ({self.gain / old:.1%}): {figures}"
        return f"no gain beyond the spread ({self.gain:+.4f} ± {self.spread:.4f} nats per token): {figures}"


@dataclass(frozen=True)
class Tuned:
    """What a search came to.

    Attributes:
        rows: All trials.
        best: The choice with the lowest loss.
        settings: The recipe with it.
        gain: Against the recipe itself; None when nothing better was found.
    """

    rows: list[Row]
    best: Row
    settings: RunSettings
    gain: Gain | None


class Tuning:
    """A search within a time; `run` does all of it, here and one trial after the other.

    Args:
        search: What lies on disk.
        effort: How much is searched.
        measure: Trains a choice.
        tell: Takes sentences for people.
        clock: Seconds.
    """

    def __init__(
        self,
        search: Search,
        effort: Effort,
        measure: Measure,
        *,
        tell: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.search, self.effort, self.measure, self.tell, self.clock = search, effort, measure, tell, clock
        self.start = clock()
        self.spent_before = float(search.remembered("spent_s", 0.0))
        self.slowness = 1.0  # seconds that pass for each second of a trial: others may want the cores, too

    @property
    def spent(self) -> float:
        """Seconds, earlier sessions included."""
        return self.spent_before + self.clock() - self.start

    def begin(self, sweep: Sweep) -> None:
        """Settle the space, or go on with one."""
        search, effort = self.search, self.effort
        cut = search.take_back_unfinished()
        if search.begun:
            ended = len(search.rows())
            again = f", {cut} cut off and in line again" if cut else ""
            self.tell(f"going on with {search.file}: {ended} trials{again}, {self.spent:.0f} s spent")
            return
        rate = sweep(_SWEEP_SHARE * effort.budget_s)
        left = effort.budget_s - self.spent
        trial_s = effort.trial_s or trial_seconds(left, effort.trials, effort.seeds, effort.at_once)
        if trial_s < _SHORTEST_TRIAL_S and not effort.trial_s:
            raise UserError(
                f"of a budget of {effort.budget_s:.0f} s {trial_s:.1f} s are left for each trial",
                mend="Give more time, or fewer --trials.",
            )
        space = make_space(search.settings, rate)
        search.begin(space, trial_s)
        found = f"the finder proposes {rate:.2g}" if rate else "no sweep"
        self.tell(
            f"searching rates {space.low_rate:.1e} to {space.high_rate:.1e} ({found}), batches "
            f"{', '.join(map(str, space.batch_sizes))}, {len(space.shapes)} structures of equal size; "
            f"{trial_s:.0f} s for each trial"
        )

    @property
    def goes_on(self) -> bool:
        """Whether there is time, and a number left, for another trial."""
        ended, effort = len(self.search.rows()), self.effort
        if effort.trials and ended >= effort.trials:
            return False
        trial_s = self.slowness * self.search.trial_s
        return ended < 2 or effort.budget_s - self.spent > (1 + 2 * effort.seeds) * trial_s

    def run(self, sweep: Sweep) -> Tuned:
        """Search, compare, and say what came of it."""
        self.begin(sweep)
        while self.goes_on:
            trial, choice = self.search.ask()
            settings = self.search.space.applied(self.search.settings, choice)
            report, begun = partial(self.search.report, trial), self.clock()
            curve = self.measure(settings, self.search.trial_s, settings.training.seed, report)
            self.slowness = max(1.0, (self.clock() - begun) / max(curve.seconds, 1e-9))
            self.ended(trial, curve)
        return self.finish()

    def ended(self, trial: Any, curve: Curve) -> None:
        """Write down a trial, and say it in a line."""
        self.search.tell(trial, curve)
        self.search.remember("spent_s", self.spent)
        self.tell(line(next(row for row in self.search.rows() if row.number == trial.number)))

    def finish(self) -> Tuned:
        """Train the best and the recipe again, in turns, so that a slow moment of the machine meets both."""
        search = self.search
        best, default = search.best(), search.default()
        if best is None or default is None:
            raise UserError(
                "no trial could be trained to its end",
                where=str(search.file),
                mend="Train the recipe first: bimo train says what is wrong with it.",
            )
        settings = search.space.applied(search.settings, best.choice)
        settings = _of_equal_time(search.settings, settings, best, default)
        if best.number == default.number:
            self.tell("nothing better than the recipe itself was found")
            return Tuned(search.rows(), best, settings, None)
        first = search.settings.training.seed + 1
        losses: dict[int, list[float]] = {default.number: [], best.number: []}
        for seed in range(first, first + self.effort.seeds):
            for row in (default, best):
                losses[row.number].append(self._again(row, seed))
        gain = Gain(losses[default.number], losses[best.number])
        self.tell(str(gain))
        return Tuned(search.rows(), best, settings, gain)

    def _last_s(self) -> float:
        """Seconds of each of the last runs: those of a trial, or fewer where the machine has become slower."""
        search = self.search
        seconds = float(search.remembered("last_s", 0.0))
        if not seconds:
            each = (self.effort.budget_s - self.spent) / (2 * self.effort.seeds * self.slowness)
            seconds = min(search.trial_s, max(_LEAST_LAST * search.trial_s, each))
            search.remember("last_s", seconds)
        return seconds

    def _again(self, row: Row, seed: int) -> float:
        """The loss of a trial's choice with another seed; looked up when an earlier session has trained it."""
        search = self.search
        compared: dict[str, float] = search.remembered("compared", {})
        key = f"{row.number} {seed}"
        if key not in compared:
            settings = search.space.applied(search.settings, row.choice)
            compared[key] = self.measure(settings, self._last_s(), seed, lambda point, loss: False).loss
            search.remember("compared", compared)
            search.remember("spent_s", self.spent)
            self.tell(f"again with seed {seed}: trial {row.number}: loss {compared[key]:.4f}")
        return compared[key]


def line(row: Row) -> str:
    """A trial in a line."""
    choice = row.choice
    what = f"rate {choice['learning_rate']:.2e}, batch {choice['batch_size']}, {choice['shape']}"
    end = f"loss {row.loss:.4f}" if row.loss is not None else row.ended
    return f"trial {row.number}: {what}: {end} ({row.steps} steps in {row.seconds:.0f} s)"


def save(tuned: Tuned, folder: Path, name: str) -> Path:
    """Write `best.yaml`, a recipe, and `tune.json`, all trials; returns the recipe's path."""
    recipe = folder / "best.yaml"
    replace(tuned.settings, name=f"{name}-best").save(recipe)
    gain = tuned.gain
    found: dict[str, Any] = {"best": asdict(tuned.best), "trials": [asdict(row) for row in tuned.rows], "gain": None}
    if gain is not None:
        found["gain"] = {**asdict(gain), "gain": gain.gain, "spread": gain.spread, "is_real": gain.is_real}
    write_text(folder / "tune.json", json.dumps(found, indent=1))
    return recipe


def _of_equal_time(recipe: RunSettings, chosen: RunSettings, best: Row, default: Row) -> RunSettings:
    """As many steps as fit the time that the recipe's own steps would take: what was compared is equal time."""
    if not best.steps or not default.steps:
        return chosen
    faster = (best.steps / best.seconds) / (default.steps / default.seconds)
    steps = max(1, round(recipe.training.steps * faster))
    warmup = round(recipe.training.warmup_steps * steps / recipe.training.steps)
    return replace(chosen, training=replace(chosen.training, steps=steps, warmup_steps=warmup))
