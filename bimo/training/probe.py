"""A probe: the first updates of a real run, made to learn how much memory and time the whole of it will take.

It is a callback, so that nothing is imitated: the run that it looks at has its own model, batches, optimizer, watchdog,
evaluation and checkpoint. Where an update is long the probe trains on a part of each batch, in whole micro-batches, and
scales what it measured; everything that happens once per update is timed apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bimo.core import machine
from bimo.core.batch import Batch
from bimo.core.config import RunSettings
from bimo.training.callbacks import Callback, Gradient, GrowingDepth, StepResult
from bimo.training.callbacks.stopping import mean_cost
from bimo.training.watchdog import Watchdog

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer

_MOST = 60  # updates
_UPDATES = 3  # at the least, in the time that there is
_FIRST_PARTS = 4  # micro-batches of the first update: the heap still grows in the later ones
_EVALUATED_TOKENS = 4096  # on how many an evaluation is tried
_FORWARD = 1 / 3  # of a training step's work is the forward pass


class ProbeEnded(Exception):  # noqa: N818  # no error: it leaves a run whose rest is not wanted
    """All was measured."""


def evaluated_rows(settings: RunSettings) -> int:
    """Rows of held-out text that a probe reads; as many as one evaluation has at once, on a CPU."""
    return min(settings.training.evaluate_rows, max(2, _EVALUATED_TOKENS // settings.model.context_length))


@dataclass
class Measured:
    """What a probe found; bytes and seconds.

    Attributes:
        baseline: Memory before the first update, without the weights.
        weights: Of the model; its gradient is as large.
        optimizer: State of the optimizer.
        good_states: What the watchdog keeps for a run of this length.
        best_weights: What it keeps of the best evaluation.
        peak: The most memory at any moment.
        step_s: One whole update, at the end of the run.
        mean_cost: An average update against that, less than 1 where the depth grows.
        evaluation_row_s: One row of held-out text.
        snapshot_s: One good state.
        checkpoint_s: One checkpoint.
        sample_s: One sample text.
        updates: Updates that were timed.
        most_rows: Rows at once that memory allowed; 0: all that were wanted.
    """

    baseline: int = 0
    weights: int = 0
    optimizer: int = 0
    good_states: int = 0
    best_weights: int = 0
    peak: int = 0
    step_s: float = 0.0
    mean_cost: float = 1.0
    evaluation_row_s: float = 0.0
    snapshot_s: float = 0.0
    checkpoint_s: float = 0.0
    sample_s: float = 0.0
    updates: int = 0
    most_rows: int = 0


@dataclass
class Probe(Callback):
    """Looks at the beginning of a run, then ends it; where measuring on held-out text takes too long, by `ProbeEnded`.

    Args:
        seconds: Time for updates.
        clock: Gives the time in seconds.

    Attributes:
        measured: The result.
        lasted: Seconds from its first look to its last.
    """

    seconds: float
    clock: Callable[[], float] = time.perf_counter
    measured: Measured = field(default_factory=Measured)
    steps: list[tuple[float, float, float]] = field(default_factory=list)  # share of the batch, seconds, of the update
    started: float = 0.0
    last: float = 0.0
    share: float = 1.0
    evaluated_rows: int = 0
    lasted: float = 0.0
    device: str = "cpu"
    at_the_end: bool = False

    def on_start(self, trainer: Trainer) -> None:
        self.started = self.clock()
        self.measured.weights = _nbytes(dict(trainer.model.named_parameters()))
        self.measured.baseline = max(0, _held(trainer.device) - self.measured.weights)

    def on_batch(self, trainer: Trainer, batch: Batch) -> Batch | None:
        if not self.at_the_end:
            self._go_to_the_end(trainer)
        micro = trainer.micro_rows(batch)
        parts = _FIRST_PARTS
        if self.steps:
            share, seconds, update = self.steps[-1]
            part_s = max(seconds - update, 1e-6) / (share * batch.n_rows) * micro
            parts = max(1, int(self.seconds / _UPDATES / part_s))
        rows = min(batch.n_rows, parts * micro)
        self.share = rows / batch.n_rows
        return None if rows == batch.n_rows else next(iter(batch.split(rows)))

    def on_gradient(self, trainer: Trainer, gradient: Gradient) -> None:
        self.last = self.clock()

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        now = self.clock()
        self.steps.append((self.share, result.seconds, now - self.last))
        late = now - self.started + result.seconds > self.seconds
        wanted = min(2 if late else _MOST, trainer.settings.steps)
        if len(self.steps) < wanted:
            return
        rows = trainer.settings.evaluate_rows
        per_row = self.step_seconds() / trainer.settings.batch_size * _FORWARD
        self.measured.evaluation_row_s = per_row
        self.evaluated_rows = rows if rows * per_row < self.seconds else 0
        if trainer.settings.sample_every and trainer.generate_fn is not None:
            with trainer.looking():
                trainer.generate_fn(trainer.model)
            self.measured.sample_s = self.clock() - now
        trainer.settings = replace(trainer.settings, evaluate_every=int(bool(self.evaluated_rows)), sample_every=0)
        trainer.stop_requested = "all was measured"
        self.last = self.clock()

    def on_settled(self, trainer: Trainer) -> None:
        if not trainer.stop_requested:
            return
        if self.evaluated_rows:
            self.measured.evaluation_row_s = (self.clock() - self.last) / self.evaluated_rows
        for watchdog in (callback for callback in trainer.callbacks if isinstance(callback, Watchdog)):
            for _ in range(min(2, trainer.settings.steps // watchdog.snapshot_every)):
                start = self.clock()
                watchdog.good.take(trainer, watchdog)
                self.measured.snapshot_s = self.clock() - start
            self.measured.good_states = sum(map(_nbytes, watchdog.good.states))
            self.measured.best_weights = _nbytes(watchdog.overfitting.weights)
        self.last = self.clock()

    def on_end(self, trainer: Trainer) -> None:
        found = self.measured
        found.checkpoint_s = self.clock() - self.last
        found.optimizer = sum(map(_nbytes, trainer.optimizer.state.values()))
        found.step_s, found.updates = self.step_seconds(), len(self.steps) - 1
        found.most_rows = trainer.state.most_rows
        self.device = trainer.device
        if not self.evaluated_rows:  # nor can the last measurement be afforded
            raise ProbeEnded

    def _go_to_the_end(self, trainer: Trainer) -> None:
        """Memory and time are those of the model at its whole depth."""
        self.at_the_end = True
        self.measured.mean_cost = mean_cost(trainer)
        for growing in (callback for callback in trainer.callbacks if isinstance(callback, GrowingDepth)):
            growing.grow(trainer, len(trainer.model.layers))

    def finish(self) -> Measured:
        """What was found, when the run has come to its end."""
        self.measured.peak = _peak(self.device)
        self.lasted = self.clock() - self.started
        return self.measured

    def step_seconds(self) -> float:
        """A whole update: the median of those after the first, which warms up."""
        timed = self.steps[1:] or self.steps
        return statistics.median(update + (seconds - update) / share for share, seconds, update in timed)


def _nbytes(tree: Any) -> int:
    """Memory of all tensors in a tree."""
    if isinstance(tree, Tensor):
        return tree.nbytes
    values = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(map(_nbytes, values))


def _held(device: str) -> int:
    return torch.cuda.memory_reserved() if device.startswith("cuda") else machine.held_memory()


def _peak(device: str) -> int:
    return torch.cuda.max_memory_reserved() if device.startswith("cuda") else machine.peak_memory()
