"""Which learning rate? A short sweep from far too low to far too high answers (Smith 2017)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training.callbacks.protocol import Callback
from bimo.training.faults import Fault
from bimo.training.inputs import as_stream
from bimo.training.muon import Muon
from bimo.training.randomness import seed_everything
from bimo.training.resuming import restore, state_of
from bimo.training.signals import Abandoned
from bimo.training.state import copied
from bimo.training.streams import Resumable, repeated

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer

_MEMORY = 0.9  # of the smoothed loss
_HIGH, _HIGH_MUON = 1.0, 0.12  # last rates of a sweep
_EXPLODED = 2.0  # times the lowest loss: the sweep ends


@dataclass(frozen=True, slots=True)
class RateReport:
    """What a sweep found.

    Attributes:
        rates: Rate of each update.
        losses: Its loss, smoothed over the updates before, in nats per token.
        steepest: Rate at which the loss fell fastest.
        lowest: Rate at which it was lowest: already too high to train with.
    """

    rates: list[float]
    losses: list[float]
    steepest: float
    lowest: float

    @property
    def suggestion(self) -> float:
        """A peak rate to train with: where the loss fell fastest, but at most a third of where it was lowest.

        A tenth of the latter, the usual advice, is too low for AdamW with a warm-up (docs/experiments.md).
        """
        return min(self.steepest, self.lowest / 3)

    def __str__(self) -> str:
        return (
            f"learning rate {self.suggestion:.2g}: the loss fell fastest at {self.steepest:.2g} and was lowest at "
            f"{self.lowest:.2g}, in {len(self.rates)} updates from {self.rates[0]:.2g} to {self.rates[-1]:.2g}"
        )


def find_rate(
    trainer: Trainer, data: Any = None, targets: Any = None, *, low: float = 1e-6, high: float = 0.0, steps: int = 100
) -> RateReport:
    """Train with a rate that rises from update to update until the loss explodes, and take all of it back.

    Model, optimizer, chance and the place in the data are afterwards what they were before.

    Args:
        trainer: With the model, loss, optimizer and batch size that shall be trained with.
        data: As for `Trainer.fit`; None: what the trainer reads already.
        targets: As for `Trainer.fit`.
        low: First rate.
        high: Last rate; seldom reached. 0: 1, or for Muon, whose equal steps no rate lets explode at once, 0.12.
        steps: Updates from the first to the last rate, each higher than the one before by the same factor.

    Raises:
        UserError: The data cannot be read again, or the loss falls at no rate.
    """
    high = high or (_HIGH_MUON if isinstance(trainer.optimizer, Muon) else _HIGH)
    if not 0 < low < high or steps < 10:
        raise UserError(f"a sweep needs 0 < low < high and 10 steps, not {low}, {high} and {steps}", where="find_rate")
    if data is not None:
        trainer.data = as_stream(trainer.text_model or trainer.model, data, targets, trainer.settings)
    if not isinstance(trainer.data, Resumable) and iter(trainer.data) is trainer.data:
        raise UserError("this data can be read only once", where="find_rate", mend="Give a list of batches, or texts.")
    rates = [low * (high / low) ** (number / (steps - 1)) for number in range(steps)]
    with _taken_back(trainer):
        losses = list(_sweep(trainer, rates))
    return _report(rates, losses)


class RateFinder(Callback):
    """Finds the peak rate before the first step of a run, and trains with it; the lowest rate keeps its share of it.

    Args:
        low: First rate of the sweep.
        high: Last rate; 0: as for `find_rate`.
        steps: Updates in between.

    Attributes:
        report: What the sweep found; None before it, and in a run that is resumed.
        factor: What the rates of the run were multiplied by; 0: not yet known.
    """

    def __init__(self, low: float = 1e-6, high: float = 0.0, steps: int = 100) -> None:
        self.low, self.high, self.steps = low, high, steps
        self.report: RateReport | None = None
        self.factor = 0.0

    def on_start(self, trainer: Trainer) -> None:
        if not self.factor and trainer.state.step == 0:
            try:
                self.report = find_rate(trainer, low=self.low, high=self.high, steps=self.steps)
            except Abandoned:
                trainer.stop_requested = "interrupted before the first step"
                return
            self.factor = self.report.suggestion / _peak(trainer)
            if trainer.own_rates:  # they are saved with the optimizer
                for group in trainer.optimizer.param_groups:
                    group["lr"] *= self.factor
            trainer.event("learning rate", what=str(self.report), rate=self.report.suggestion)
        if self.factor and not trainer.own_rates:
            peak, low = trainer.settings.learning_rate, trainer.settings.min_learning_rate
            trainer.settings = replace(
                trainer.settings, learning_rate=peak * self.factor, min_learning_rate=low * self.factor
            )

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor = state["factor"] or self.factor  # a rollback to the very start does not make it unknown


@contextmanager
def _taken_back(trainer: Trainer) -> Iterator[None]:
    """Whatever is trained inside, the trainer is afterwards as before; no callback hears of it."""
    before, settings, callbacks = copied(state_of(trainer)), trainer.settings, trainer.callbacks
    training, untrained = trainer.model.training, getattr(trainer.model, "untrained", False)
    trainer.callbacks = []
    try:
        trainer.prepare_machine()
        seed_everything(settings.seed)  # the same sweep each time, whatever was drawn before
        trainer.settings = replace(settings, schedule="constant", warmup_steps=0)
        yield
    finally:
        trainer.settings = settings
        trainer.optimizer.zero_grad(set_to_none=True)
        restore(trainer, before)
        trainer.callbacks = callbacks
        trainer.model.train(training)
        trainer.model.untrained = untrained


def _sweep(trainer: Trainer, rates: list[float]) -> Iterator[float]:
    """The smoothed loss at each rate, until it has exploded."""
    batches: Iterator[Batch] = repeated(trainer.data)
    peak, average, lowest = _peak(trainer), 0.0, math.inf
    for number, rate in enumerate(rates, start=1):
        trainer.state.rate_scale = rate / peak
        try:
            loss = trainer.step(batches).loss
        except Fault as fault:
            if not fault.kind.startswith("non-finite"):
                raise
            return
        average = _MEMORY * average + (1 - _MEMORY) * loss
        smooth = average / (1 - _MEMORY**number)
        lowest = min(lowest, smooth)
        if smooth > _EXPLODED * lowest:
            return
        yield smooth


def _peak(trainer: Trainer) -> float:
    """The peak rate as the settings, or the groups of a ready optimizer, have it."""
    group = trainer.optimizer.param_groups[0]
    return group.get("initial_lr", group["lr"]) if trainer.own_rates else trainer.settings.learning_rate


def _report(rates: list[float], losses: list[float]) -> RateReport:
    """The marks of a sweep; rates that were not reached are left out."""
    lowest = losses.index(min(losses)) if losses else 0
    falls = [before - after for before, after in itertools.pairwise(losses[: lowest + 1])]
    if not falls:
        raise UserError(
            f"the loss falls at no rate from {rates[0]:.2g} on",
            where="find_rate",
            mend="Begin lower, or look at the data and the loss.",
        )
    steepest = falls.index(max(falls))
    return RateReport(rates[: len(losses)], losses, rates[steepest], rates[lowest])
