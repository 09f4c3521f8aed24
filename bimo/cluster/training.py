"""A run on Ray: the text is prepared by Ray Data, then Ray Train starts the workers, and each of them trains.

A worker is a process of a usual run of many processes; `training/launch.py` and `training/parallel.py` do the same in
it as under torchrun. When one is lost, Ray starts the group again, and the run goes on from its last whole checkpoint
in the run's folder, exactly.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bimo.cluster.corpus import Sampled, encode, look
from bimo.cluster.duplicates import duplicates
from bimo.cluster.home import Home, at_home
from bimo.cluster.reading import parts_of, set_up
from bimo.cluster.session import check_room, session
from bimo.core.artifacts import RunDirectory, read_jsonl
from bimo.core.config import RunSettings
from bimo.core.errors import UserError, require
from bimo.core.registry import import_modules
from bimo.data.addresses import is_address
from bimo.preparing import Text, look_at_data, make_tokenizer, open_text, report_problems, say
from bimo.recipes import open_run, train
from bimo.training.launch import is_lost

RESTARTS = 3
"""How often lost workers are replaced before the run gives up."""


def train_on(
    settings: RunSettings, console: Console, *, cluster: str = "auto", workers: int = 1, resume: bool = False
) -> dict[str, float]:
    """A whole run on a cluster: raw text in, the same run directory out.

    Args:
        settings: The recipe.
        console: Where to say what happens.
        cluster: See `cluster.session`.
        workers: Processes that train.
        resume: Go on with a run.

    Returns:
        Its figures on all held-out text.

    Raises:
        UserError: Something in the recipe cannot be used, or workers were lost more often than `RESTARTS`.
    """
    if cluster.startswith("ray://"):
        with session(cluster, workers) as ray, for_people(cluster):
            return ray.get(ray.remote(num_cpus=0)(_from_within).remote(settings.to_dict(), workers, resume=resume))
    with at_home(settings, resume=resume) as home, session(cluster, workers) as ray:
        settings = from_anywhere(home.settings)
        run = open_run(settings, resume=resume)
        check_room(ray, workers, gpus=_on_gpus(settings))
        with for_people(run.path):
            prepare_on(ray, settings, run, open_text(settings.data, run.path), console)
            _fit(settings, home, workers, resume=resume)
    lines = [line for line in read_jsonl(run.metrics) if line.get("final")]
    return {name: lines[-1][name] for name in ("bits_per_byte", "valid_loss")} if lines else {}


def _from_within(settings: dict[str, Any], workers: int, *, resume: bool) -> dict[str, float]:
    """The same, called on a machine of the cluster: what is asked from afar would pass every step through one line."""
    import_modules(settings["modules"])
    return train_on(RunSettings.from_dict(settings), Console(width=120), workers=workers, resume=resume)


def prepare_on(ray: Any, settings: RunSettings, run: RunDirectory, text: Text, console: Console) -> None:
    """Tokenizer and token shards in the run's folder, as `preparing.prepare` makes them."""
    set_up()
    parts = parts_of(text.sources)
    trained = [part for part in parts if text.sources[part.source].validation_share < 1]
    if settings.data.check and not run.check.exists():
        look_at_data(settings.data, text, run, console, lambda train, valid, wanted: look(trained, wanted))
    left_out = duplicates(parts, settings.data.duplicates)
    if len(left_out):
        say(console, f"duplicates: {len(left_out):,} documents are left out ({settings.data.duplicates})")
    total = sum(corpus.total_bytes for corpus in text.corpora)
    share = min(1.0, settings.tokenizer.train_megabytes * 1e6 / total) if total else 1.0
    sampled = [
        replace(source, documents=Sampled([part for part in parts if part.source == number], share, left_out))
        for number, source in enumerate(text.sources)
    ]
    make_tokenizer(settings, run, Text(sampled, text.corpora), console)
    encoded = encode(ray, text.sources, parts, run.path / "tokenizer.json", run.tokens, left_out)
    text.problems.update(dict.fromkeys(encoded.problems))
    report_problems(text, run, console)
    if encoded.shards:
        documents = sum(encoded.documents.values())
        say(console, f"encoded on {len(ray.nodes())} machine(s): {documents:,} documents, {encoded.shards} shards")


def from_anywhere(settings: RunSettings) -> RunSettings:
    """The recipe with whole paths: workers start in another folder, perhaps on another machine."""
    data, tokenizer = settings.data, settings.tokenizer
    return replace(
        settings,
        folder=_whole(settings.folder),
        modules=[_whole(name) if name.endswith(".py") else name for name in settings.modules],
        data=replace(data, paths=_all_whole(data.paths), validation_paths=_all_whole(data.validation_paths)),
        tokenizer=replace(tokenizer, path=_whole(tokenizer.path) if tokenizer.path else ""),
    )


def _all_whole(paths: Sequence[str]) -> list[str]:
    return [path if path == "-" else _whole(path) for path in paths]


def _whole(path: str) -> str:
    return path if is_address(path) else os.path.abspath(os.path.expanduser(path))


def _on_gpus(settings: RunSettings) -> bool:
    return settings.training.device.startswith("cuda")


def _fit(settings: RunSettings, home: Home, workers: int, *, resume: bool) -> None:
    """Let Ray Train run the workers to the end of the run."""
    ray_train, on_torch = require("ray.train", "ray"), require("ray.train.torch", "ray")
    gpus = _on_gpus(settings)
    trainer = on_torch.TorchTrainer(
        _worker,
        train_loop_config={"settings": settings.to_dict(), "resume": resume},
        torch_config=on_torch.TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray_train.ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=ray_train.RunConfig(
            name="ray",
            **home.storage(),
            failure_config=ray_train.FailureConfig(max_failures=RESTARTS),
            logging_config=ray_train.LoggingConfig(log_level="ERROR"),
        ),
    )
    told = getattr(trainer.fit(), "return_value", None)
    if told:
        raise UserError(told["what"], where=told["where"], mend=told["mend"])


@contextlib.contextmanager
def for_people(where: Path | str) -> Iterator[None]:
    """What went wrong on the cluster, in one sentence: Ray wraps what a worker raised in pages of its own."""
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    try:
        yield
    except (RayError, TrainingFailedError) as error:
        raise UserError(_reason(error), where=str(where), mend="The lines above say more.") from error


def _worker(config: dict[str, Any]) -> dict[str, str] | None:
    """One of the processes that train. A mistake of the user's is told, not raised: trying again would not mend it."""
    try:
        import_modules(config["settings"]["modules"])
        settings = RunSettings.from_dict(config["settings"])
        run = RunDirectory(Path(settings.folder) / settings.name)
        resume = config["resume"] or run.settings.exists()  # started again after a worker was lost
        train(settings, open_text(settings.data, run.path), Console(width=120), resume=resume)
    except UserError as error:
        if error.__cause__ is not None and is_lost(error.__cause__):
            raise
        return {"what": error.what, "where": error.where, "mend": error.mend}
    return None


def _reason(error: BaseException) -> str:
    """The sentence of the error that began it all."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line.rpartition("UserError: ")[2] for line in lines if "UserError: " in line]
    return (said or lines or [type(error).__name__])[-1].rstrip(".")
