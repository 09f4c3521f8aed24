"""What a run writes down: metrics, events, checkpoints."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimo.core import machine
from bimo.core.artifacts import append_jsonl, read_jsonl, write_text
from bimo.core.errors import UserError
from bimo.training.callbacks.protocol import Callback, Event, StepResult
from bimo.training.state import clear_unfinished, model_state
from bimo.training.utilisation import utilisation

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer


class MetricsFile(Callback):
    """Writes `metrics.jsonl`: a line per logged step and per evaluation.

    When a run is resumed, or went back, lines of steps that are made again are dropped first: the file reads like an
    unbroken run's.
    """

    everywhere = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made = 0  # updates

    def on_start(self, trainer: Trainer) -> None:
        continue_log(self.path, trainer.state.step, trainer.state.settled)

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if result.step <= self.made:
            continue_log(self.path, result.step - 1, result.step - 1)
        self.made = result.step
        if result.step % trainer.settings.log_every and result.step != 1:
            return
        record = {"step": result.step, "tokens": trainer.state.tokens, "loss": round(result.loss, 6)}
        record |= {"gradient_norm": round(result.gradient_norm, 6), "learning_rate": result.learning_rate}
        record |= {"tokens_per_second": round(result.tokens_per_second, 1), "seconds": round(trainer.state.seconds, 3)}
        share = utilisation(trainer, result)
        if share:
            record["mfu"] = round(share, 4)
        append_jsonl(self.path, record)

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        append_jsonl(self.path, {"step": trainer.state.step, "tokens": trainer.state.tokens, **metrics})


class EventsFile(Callback):
    """Writes `events.jsonl`: what happened, and when."""

    everywhere = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_event(self, trainer: Trainer, event: Event) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        self.path.parent.mkdir(parents=True, exist_ok=True)  # what is left out of the data is told before the start
        append_jsonl(self.path, {"time": now, "event": event.kind, "step": event.step, **event.facts})


class Checkpoints(Callback):
    """Saves every `checkpoint_every` steps and at the end, so that an interrupted run goes on from there."""

    def on_start(self, trainer: Trainer) -> None:
        """A disk that is too small is found now, not after hours."""
        if trainer.folder is None or not trainer.team.first:
            return
        clear_unfinished(trainer.folder)
        size = 3 * sum(tensor.nbytes for tensor in model_state(trainer.model).values())  # Adam has two moments
        place = next(path for path in (trainer.folder, *trainer.folder.parents) if path.exists())
        needed, free = size * (trainer.settings.keep_checkpoints + 1), machine.free_disk(place)
        if needed > free:
            raise UserError(
                f"the checkpoints need {needed / 1e6:,.0f} MB, the disk has {free / 1e6:,.0f} MB left",
                where=str(trainer.folder),
                mend="Free space, choose another --folder, or keep fewer: --training.keep_checkpoints 1.",
            )

    def on_settled(self, trainer: Trainer) -> None:
        every = trainer.settings.checkpoint_every
        if every and trainer.state.step % every == 0 and trainer.state.step < trainer.settings.steps:
            trainer.save_checkpoint()

    def on_end(self, trainer: Trainer) -> None:
        trainer.save_checkpoint()


def continue_log(path: Path, made: int, settled: int) -> None:
    """Make room for a log, and drop the lines of what is done again: it shall read like an unbroken run's.

    Args:
        path: The log.
        made: Updates that are not made again.
        settled: The last step whose evaluation is not made again: a signal may come between the two.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = read_jsonl(path)
    kept = [line for line in lines if line.get("step", 0) <= (settled if _of_evaluation(line) else made)]
    if len(kept) < len(lines):
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def _of_evaluation(line: dict[str, Any]) -> bool:
    """Whether a line of metrics was written by an evaluation; lines of other logs belong to updates."""
    return "tokens" in line and "learning_rate" not in line
