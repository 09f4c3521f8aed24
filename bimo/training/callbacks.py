"""Callbacks: everything that hangs on the training loop without being part of it.

A callback sees the trainer, and so the model, the optimizer and the state; it may change them or set
`trainer.stop_requested`. A subclass takes the methods it needs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bimo.core.artifacts import append_jsonl

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one update did.

    Attributes:
        step: Number of updates made so far, this one included.
        loss: Mean loss over the trained tokens, in nats per token.
        gradient_norm: Norm of the whole gradient before clipping.
        learning_rate: Rate that the update used.
        tokens: Tokens read in this update.
        seconds: Wall time of the update, data included.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


class Callback:
    """The protocol, with a body that does nothing."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step, after a resume has been read."""

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        """After each update."""

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """After each evaluation, with its figures."""

    def on_sample(self, trainer: Trainer, text: str) -> None:
        """After each sample text."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step, also when the run was interrupted."""

    def on_error(self, trainer: Trainer) -> None:
        """When an error ends the run, before it is raised on: give back what was taken, a terminal for example."""


class MetricsFile(Callback):
    """Writes `metrics.jsonl`: a line per logged step and per evaluation."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if result.step % trainer.settings.log_every and result.step != 1:
            return
        record = {"step": result.step, "tokens": trainer.state.tokens, "loss": round(result.loss, 6)}
        record |= {"gradient_norm": round(result.gradient_norm, 6), "learning_rate": result.learning_rate}
        record |= {"tokens_per_second": round(result.tokens_per_second, 1), "seconds": round(trainer.state.seconds, 3)}
        append_jsonl(self.path, record)

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        append_jsonl(self.path, {"step": trainer.state.step, "tokens": trainer.state.tokens, **metrics})


class Checkpoints(Callback):
    """Saves every `checkpoint_every` steps and at the end, so that an interrupted run goes on from there."""

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        every = trainer.settings.checkpoint_every
        if every and result.step % every == 0 and result.step < trainer.settings.steps:
            trainer.save_checkpoint()

    def on_end(self, trainer: Trainer) -> None:
        trainer.save_checkpoint()


class TimeBudget(Callback):
    """Fits the number of steps to a time: every so often `settings.steps` becomes what the pace so far allows.

    The schedule follows, because it is a function of the share of the steps that is done; a machine that slows down
    ends with fewer steps at the right time and still with its rate decayed.

    Args:
        seconds: Time for training, evaluations and samples included.
        clock: Gives the time in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.clock = seconds, clock
        self.start = self.looked = 0.0
        self.first_step = 0

    def on_start(self, trainer: Trainer) -> None:
        self.start = self.looked = self.clock()
        self.first_step = trainer.state.step

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        now = self.clock()
        if now - self.looked < 0.05 * self.seconds and now - self.start < self.seconds:
            return
        self.looked = now
        pace = (result.step - self.first_step) / (now - self.start)  # steps per second
        left = max(0.0, self.start + self.seconds - now)
        trainer.settings = replace(trainer.settings, steps=max(result.step, round(result.step + pace * left)))


class EarlyStopping(Callback):
    """Stops when a figure of the evaluation has not fallen for `patience` evaluations."""

    def __init__(self, metric: str = "bits_per_byte", patience: int = 3) -> None:
        self.metric, self.patience = metric, patience
        self.best, self.waited = math.inf, 0

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        improved = metrics[self.metric] < self.best
        self.best = min(self.best, metrics[self.metric])
        self.waited = 0 if improved else self.waited + 1
        if self.waited >= self.patience:
            trainer.stop_requested = f"{self.metric} has not fallen for {self.patience} evaluations"
