"""When a run ends: at a time, or when it no longer gets better."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bimo.core.errors import UserError, nearest
from bimo.training.callbacks.protocol import Callback, StepResult

OVERFITTING = "overfitting"
"""Why a run ended whose best weights the watchdog puts back."""

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer

_LOOK = 0.05  # of the time that is left lies between two looks
_MARKS = 5  # looks that the pace is taken over
_FIRST_LOOKS = (4, 16)  # updates; the steps that a run was given may be far from what the time allows
_GRID = 50  # places of a run at which the cost of an update is asked for
_ROUNDS = 4  # in which the number of steps settles


class TimeBudget(Callback):
    """Fits the number of steps to a time: every so often `settings.steps` becomes what the pace of late allows.

    The schedule follows, because it is a function of the share of the steps that is done; a machine that slows down
    ends with fewer steps at the right time and still with its rate decayed. The nearer the end, the oftener it looks.

    Args:
        seconds: Time for training, evaluations and samples included.
        clock: Gives the time in seconds.
        until: The end, by the clock, in place of a number of seconds.
    """

    def __init__(
        self, seconds: float = 0.0, clock: Callable[[], float] = time.monotonic, until: float | None = None
    ) -> None:
        self.seconds, self.clock, self.until = seconds, clock, until
        self.end = self.looked = self.work = 0.0
        self.first = 0
        self.marks: deque[tuple[float, float]] = deque(maxlen=_MARKS)  # time and work done at the last looks

    def on_start(self, trainer: Trainer) -> None:
        self.looked = self.clock()
        self.end = self.looked + self.seconds if self.until is None else self.until
        self.work, self.first = 0.0, trainer.state.step
        self.marks.clear()
        self.marks.append((self.looked, self.work))

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        steps = trainer.settings.steps
        self.work += cost_of(trainer, (result.step - 1) / steps)
        now = self.clock()
        left = max(0.0, self.end - now)
        if now - self.looked < _LOOK * left and result.step - self.first not in _FIRST_LOOKS:
            return
        self.looked = now
        then, work = self.marks[0]
        pace = (self.work - work) / max(now - then, 1e-9)  # work per second
        if now - self.marks[-1][0] >= _LOOK * (self.end - then):
            self.marks.append((now, self.work))
        trainer.settings = replace(trainer.settings, steps=steps_for(trainer, result.step, pace * left))


def cost_of(trainer: Trainer, share: float) -> float:
    """How long an update takes at a share of the run's steps, against one at its end."""
    return math.prod(callback.step_cost(trainer, min(share, 1.0)) for callback in trainer.callbacks)


def mean_cost(trainer: Trainer, since: float = 0.0) -> float:
    """The same on average, from a share of the steps on."""
    shares = [since + (1 - since) * (i + 0.5) / _GRID for i in range(_GRID)]
    return sum(cost_of(trainer, share) for share in shares) / _GRID


def updates_left(trainer: Any, made: int) -> float:
    """Of a run in which so many are made, counted in updates that take as long as the present one."""
    steps = trainer.settings.steps
    share = made / max(steps, 1)
    return max(0, steps - made) * mean_cost(trainer, share) / cost_of(trainer, share)


def steps_for(trainer: Trainer, made: int, work: float) -> int:
    """Steps of a run in which so many are made, and so much work, in updates at its end, can still be done."""
    steps = max(made, trainer.settings.steps)
    for _ in range(_ROUNDS):  # what the rest costs depends on where in the run it lies
        steps = made + int(work / mean_cost(trainer, made / max(steps, 1)))
    return max(made, steps)


class EarlyStopping(Callback):
    """Stops when a figure of the evaluation has not fallen for `patience` evaluations.

    Args:
        metric: Which figure; "": bits_per_byte where it is measured, else loss.
        patience: Evaluations without a new lowest figure after which the run ends.
        least: How much lower a figure must be to count as better.
    """

    def __init__(self, metric: str = "", patience: int = 3, least: float = 0.0) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise UserError(f"patience must be a whole number from 1 on, is {patience!r}", where="EarlyStopping")
        self.metric, self.patience, self.least = metric, patience, least
        self.best, self.waited = math.inf, 0

    def on_start(self, trainer: Trainer) -> None:
        require_figures(trainer, "EarlyStopping")
        self._stop_if_due(trainer)  # a run that had stopped is stopped when it is resumed

    def on_changed(self, trainer: Trainer) -> None:
        self.waited = 0  # a model that has just grown is worse for a while

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        value = chosen_metric(metrics, self.metric)
        improved = value < self.best - self.least
        self.best = value if improved else self.best
        self.waited = 0 if improved else self.waited + 1
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer: Trainer) -> None:
        if self.waited >= self.patience:
            name = self.metric or "the held-out figure"
            trainer.stop_requested = f"{name} has not fallen for {self.patience} evaluations"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


def require_figures(trainer: Trainer, name: str) -> None:
    """Refuse a run in which nothing is measured: what waits for figures would do nothing, and nobody would know."""
    if trainer.evaluate_fn is None:
        raise UserError(
            "nothing is measured in this run", where=name, mend="Give fit validation=0.1, or held-out data."
        )


def chosen_metric(metrics: dict[str, float], name: str) -> float:
    """The figure of that name; '' takes bits_per_byte where it is measured, else the loss."""
    name = name or ("bits_per_byte" if "bits_per_byte" in metrics else "loss")
    if name not in metrics:
        raise UserError(
            f"the evaluation gives no {name!r}{nearest(name, metrics)}", mend=f"Known: {', '.join(metrics)}."
        )
    return metrics[name]
