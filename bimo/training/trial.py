"""One trial of a search: a run that is fitted to some seconds and reports its held-out loss on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from bimo.core import machine
from bimo.core.config import TrainingSettings
from bimo.core.registry import name_and_parameters
from bimo.training.callbacks.protocol import Callback, Event, StepResult
from bimo.training.callbacks.stopping import cost_of, steps_for
from bimo.training.search import POINTS, Curve

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer

WORSE = "ended early: worse than most trials were at that point"
# They steer, end or write down a run of their own, or take time that others would not.
_LEFT_OUT = (
    "rate_finder", "early_stopping", "time_budget", "best_checkpoint", "tensorboard", "sampling", "progress",
    "gradient_statistics", "activation_statistics",
)  # fmt: skip


def trial_settings(training: TrainingSettings, seed: int) -> TrainingSettings:
    """How a trial trains: as the recipe, without checkpoints, samples and evaluations of its own."""
    kept = [text for text in training.callbacks if name_and_parameters(text)[0] not in _LEFT_OUT]
    return replace(training, seed=seed, callbacks=kept, evaluate_every=0, checkpoint_every=0, sample_every=0)


def undisturbed_time() -> float:
    """Seconds, without those in which other programs had the cores: all trials get the same of what is left."""
    return time.monotonic() - machine.waited_for_cores() / torch.get_num_threads()


class TrialClock(Callback):
    """Fits steps and warm-up to a time, evaluates at equal shares of it, and ends a trial that is told to end.

    The schedule is a function of the share of the steps, so each trial ends with its rate decayed, whatever its pace.

    Args:
        seconds: Time for the trial, evaluations included.
        report: (number of the point, held-out loss) → whether to end here.
        clock: Gives the time in seconds; `undisturbed_time` when it is left out.
    """

    def __init__(
        self, seconds: float, report: Callable[[int, float], bool], clock: Callable[[], float] | None = None
    ) -> None:
        clock = clock or undisturbed_time
        self.seconds, self.report, self.clock = seconds, report, clock
        self.start = 0.0
        self.warmup_share = 0.0
        self.point, self.work = 0, 0.0
        self.loss = math.inf
        self.ended = ""

    @property
    def elapsed(self) -> float:
        return self.clock() - self.start

    def on_start(self, trainer: Trainer) -> None:
        self.start = self.clock()
        self.warmup_share = trainer.settings.warmup_steps / trainer.settings.steps
        trainer.settings = replace(trainer.settings, steps=10**9)  # until the pace is known

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if result.step == 1:  # the first step may have waited for a compiler
            self.start = self.clock()
            return
        self.work += cost_of(trainer, (result.step - 1) / trainer.settings.steps)
        elapsed = self.elapsed
        steps = steps_for(trainer, result.step, self.work * max(0.0, self.seconds / max(elapsed, 1e-9) - 1))
        trainer.settings = replace(trainer.settings, steps=steps, warmup_steps=round(self.warmup_share * steps))

    def on_settled(self, trainer: Trainer) -> None:
        due = min(POINTS - 1, int(POINTS * self.elapsed / self.seconds))
        if trainer.state.step >= trainer.settings.steps or due <= self.point:
            return
        assert trainer.evaluate_fn is not None, "a trial is measured"
        with trainer.looking():
            loss = trainer.evaluate_fn(trainer.model)["valid_loss"]
        self.point = due
        if self.report(due, loss):
            self.ended = WORSE
            trainer.stop_requested = self.ended

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.loss = metrics["valid_loss"]
        self.report(POINTS, self.loss)

    def on_event(self, trainer: Trainer, event: Event) -> None:
        """What happens within a trial is not told: its loss says enough."""

    def curve(self, trainer: Trainer) -> Curve:
        """What the trial came to."""
        loss = math.inf if self.ended else self.loss
        return Curve(loss, self.elapsed, trainer.state.step, trainer.state.tokens, self.ended)
