"""An average of the weights: less noise than the last step has, for the price of one more copy of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bimo.core.errors import UserError
from bimo.training.callbacks.protocol import Callback, StepResult
from bimo.training.callbacks.stopping import OVERFITTING
from bimo.training.parts import local
from bimo.training.state import copied

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer


class WeightAverage(Callback):
    """Averages the weights after each update; evaluations and samples see the average, the run hands it over.

    The updates themselves go on from the weights of their own: training is the same as without it.

    Args:
        decay: Share of the average that stays at each update (Polyak & Juditsky 1992); in the beginning less, after n
            updates (1 + n) / (10 + n), so that the first weights are soon forgotten.
        last: Above 0: in place of that the plain mean of this share of the steps, the last ones (Izmailov et al. 2018).
            Until then the model is judged as it is.
    """

    def __init__(self, decay: float = 0.999, last: float = 0.0) -> None:
        for name, value in (("decay", decay), ("last", last)):
            if not 0 <= value < 1:
                raise UserError(f"{name} must be at least 0 and below 1, is {value}", where="WeightAverage")
        self.decay, self.last = decay, last
        self.average: dict[str, Tensor] = {}  # float32, by name of the parameter
        self.count = 0
        self._own: dict[str, Tensor] = {}  # the weights of the run, while the average is in their place

    def on_start(self, trainer: Trainer) -> None:
        places = _weights(trainer)
        self.average = {name: tensor.to(places[name].device) for name, tensor in self.average.items()}

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if self.last and not self.count and result.step <= (1 - self.last) * trainer.settings.steps:
            return
        weights = [weight.float() for weight in _weights(trainer).values()]
        if not self.count:
            self.average = {name: weight.clone() for name, weight in zip(_weights(trainer), weights, strict=True)}
        else:
            stays = self.count / (self.count + 1) if self.last else self._decay_now()
            torch._foreach_lerp_([local(one) for one in self.average.values()], [local(w) for w in weights], 1 - stays)
        self.count += 1

    def on_changed(self, trainer: Trainer) -> None:
        self.count, self.average = 0, {}  # weights from before are not near those of now

    def on_look(self, trainer: Trainer) -> None:
        if self.average:
            self._own = {name: weight.clone() for name, weight in _weights(trainer).items()}
            _put(self.average, trainer)

    def on_looked(self, trainer: Trainer) -> None:
        if self._own:
            _put(self._own, trainer)
            self._own = {}

    def on_result(self, trainer: Trainer) -> None:
        if self.average and trainer.stop_requested != OVERFITTING:  # then the best average is what the run hands over
            _put(self.average, trainer)

    def state_dict(self) -> dict[str, Any]:
        assert not self._own, "the model holds the average now; save in on_settled, when it has its own weights again"
        return {"average": self.average, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average, self.count = copied(state["average"]), state["count"]
        self._own = {}  # a rollback during an evaluation has filled the model anew

    def _decay_now(self) -> float:
        return min(self.decay, (1 + self.count) / (10 + self.count))


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    """The parameters that are trained, without their gradients; a tied one once."""
    return {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}


def _put(weights: dict[str, Tensor], trainer: Trainer) -> None:
    """Copy weights into the model."""
    torch._foreach_copy_([local(own) for own in _weights(trainer).values()], [local(w) for w in weights.values()])
