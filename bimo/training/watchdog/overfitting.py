"""When a model learns its text by heart: the training loss falls while the held-out one rises."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from bimo.training.callbacks.stopping import chosen_metric
from bimo.training.state import copied, load_model_state, model_state

_RISE = 1.01  # times the lowest held-out figure: what is above has risen
_PATIENCE = 4  # evaluations in a row


class Overfitting:
    """Compares each evaluation with the best one, and keeps the weights of that.

    Attributes:
        best: The lowest held-out figure.
        trained: The training loss at that evaluation, in nats per token.
        risen: Evaluations in a row that were clearly above the best one.
    """

    def __init__(self) -> None:
        self.best = self.trained = math.inf
        self.risen = 0
        self.weights: dict[str, Tensor] = {}

    def look(self, metrics: dict[str, float], training_loss: float, model: nn.Module) -> str:
        """'' as long as all is well, else what is wrong."""
        if not {"loss", "bits_per_byte"} & metrics.keys():
            return ""
        figure = chosen_metric(metrics, "")
        if figure < self.best:
            self.best, self.trained, self.risen = figure, training_loss, 0
            self.weights = copied(model_state(model), self.weights)
            return ""
        risen = figure > _RISE * self.best and training_loss < self.trained
        self.risen = self.risen + 1 if risen else 0
        if self.risen < _PATIENCE:
            return ""
        return (
            f"the held-out figure has risen from {self.best:.3f} to {figure:.3f} while the training loss fell from "
            f"{self.trained:.3f} to {training_loss:.3f}; the weights of the best evaluation are put back"
        )

    def put_back(self, model: nn.Module) -> None:
        """Give the model the weights of the best evaluation."""
        if self.weights:
            load_model_state(model, self.weights)

    def state_dict(self) -> dict[str, Any]:
        """What goes on from here depends on: the weights too, because they may be put back."""
        return {"best": self.best, "trained": self.trained, "risen": self.risen, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.best, self.trained, self.risen = state["best"], state["trained"], state["risen"]
        self.weights = copied(state["weights"])
