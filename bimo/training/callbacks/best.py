"""The best weights of a run, kept beside the last ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bimo.core.errors import UserError
from bimo.training import state as checkpoint
from bimo.training.callbacks.average import WeightAverage
from bimo.training.callbacks.protocol import Callback
from bimo.training.callbacks.stopping import chosen_metric, require_figures
from bimo.training.resuming import identity

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer


class BestCheckpoint(Callback):
    """Keeps the weights with the lowest figure of an evaluation; the run hands these over.

    Args:
        metric: Which figure; "": bits_per_byte where it is measured, else loss.
        folder: A run's folder, in which `best/` is written too, sealed: the weights, the step and the figure. "": in
            memory and in the run's checkpoints only.
        restore: Whether the best weights are those that the run hands over; False: the last ones are.

    Attributes:
        best: The lowest figure.
        step: The step it was measured after.
        weights: By name, as they were judged.
    """

    def __init__(self, metric: str = "", folder: str | Path = "", restore: bool = True) -> None:
        self.metric, self.folder, self.restore = metric, Path(folder) if folder else None, restore
        self.best, self.step = math.inf, 0
        self.weights: dict[str, Tensor] = {}
        self._written = 0  # step of the weights on disk

    def on_start(self, trainer: Trainer) -> None:
        require_figures(trainer, "BestCheckpoint")
        kinds = [type(callback) for callback in trainer.callbacks[trainer.callbacks.index(self) :]]
        if self.restore and WeightAverage in kinds:
            raise UserError(
                "WeightAverage comes after BestCheckpoint and would replace the best weights at the end",
                where="callbacks",
                mend="Name WeightAverage first: the best average is kept then.",
            )

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        value = chosen_metric(metrics, self.metric)
        if value < self.best:
            self.best, self.step = value, trainer.state.step
            self.weights = checkpoint.copied(checkpoint.model_state(trainer.model), self.weights)
            self._write(trainer)

    def on_end(self, trainer: Trainer) -> None:
        self._write(trainer)  # after a resume or a rollback, what is on disk may be of steps that were made again

    def on_result(self, trainer: Trainer) -> None:
        if self.restore and self.weights:
            checkpoint.load_model_state(trainer.model, self.weights)

    def _write(self, trainer: Trainer) -> None:
        if self.folder is not None and self.weights and self._written != self.step:
            figure = {"step": self.step, "metric": self.metric, "value": self.best}
            tree = {"model": self.weights, "identity": identity(trainer), "best": figure}
            checkpoint.write(self.folder / "best", tree, trainer.team)
            self._written = self.step

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.step = state["best"], state["step"]
        self.weights = checkpoint.copied(state["weights"])
        self._written = 0
