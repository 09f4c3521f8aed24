"""What the watchdog sees: figures of a step that are not what they should be, told as faults.

A look costs one pass over the weights and the optimizer's memory and some arithmetic on a few hundred numbers; no look
waits for the device more than once.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bimo.training import parallel
from bimo.training.callbacks import Gradient
from bimo.training.faults import Fault
from bimo.training.watchdog.normal import Normal, by_layer

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer

_KNOWN = 16  # steps after which it is known what a layer does
_SAME_IN_A_ROW = 3  # equal batches in a row that chance does not make
_DISTINCT = 8  # different batches that must have been seen before equal ones are strange
_JUMP = 20.0  # times the largest change of a weight's norm so far
_GROWTH = 1000.0  # times the largest norm of a moment so far
_SHARE = 0.1  # of the whole gradient, from which a layer counts as exploding
_DRIFT = 0.3  # share by which a falling loss may rise again
_DEPTH = math.log(1000.0)  # a gradient that has fallen by this belongs to a loss near zero; what it does is harmless
_ONE_TOKEN = 20.0  # nats by which the loss of a single token may rise by chance; of n tokens, by this over sqrt(n)
_FEW = 128.0  # tokens of a batch below which gradients vary more
STILL = 8  # updates that change nothing, after which this is told


class Senses:
    """Knows what was normal so far, and raises a `Fault` for what is not."""

    def __init__(self) -> None:
        self.loss = Normal(sigmas=10.0, least=0.5)
        self.norm = Normal(sigmas=10.0, least=math.log(20.0), depth=_DEPTH)
        self.layers: dict[str, Normal] = {}
        self.alive: dict[str, int] = {}  # steps in a row in which a layer had a gradient
        self.batch = ""  # fingerprint of the one that is looked at
        self.batches: deque[str] = deque(maxlen=64)  # of the last sound steps
        self.before: dict[str, float] = {}  # norms of weights and moments at the last look
        self.largest: dict[str, float] = {}  # largest change of a weight's norm, largest norm of a moment
        self.looks = 0
        self.still = 0  # updates in a row that have changed neither weights nor moments

    def look_at_batch(self, name: str, step: int) -> None:
        """Whether the data moves on; `name` is the batch's fingerprint."""
        recent = [*self.batches][-(_SAME_IN_A_ROW - 1) :]
        stuck = len(recent) == _SAME_IN_A_ROW - 1 and all(other == name for other in recent)
        if stuck and len(set(self.batches)) > _DISTINCT:
            raise Fault(
                "repeated batch",
                f"the batch of step {step} is the same as the {len(recent)} before it",
                mend="Look at what gives the batches: it does not move on.",
            )
        self.batch = name

    def look_at_state(self, trainer: Trainer) -> None:
        """Whether weights and the optimizer's memory are what the last update left."""
        names, norms = _norms(trainer)
        self.looks += 1
        self.still = self.still + 1 if names and all(map(self._unchanged, names, norms)) else 0
        for name, norm in zip(names, norms, strict=True):
            before = self.before.get(name)
            moment = "/" in name
            what = self._damage(name, norm, before, moment)
            if what:
                self.before = {}
                raise Fault(
                    "damaged optimizer" if moment else "damaged weights",
                    f"{name} {what} before step {trainer.state.step + 1}",
                    mend="If this happens again, suspect the memory of this machine, or a callback that writes there.",
                )
            change = norm if moment else abs(norm - before) if before is not None else 0.0
            self.largest[name] = max(self.largest.get(name, 0.0), change)
            self.before[name] = norm

    def _unchanged(self, name: str, norm: float) -> bool:
        return self.before.get(name) == norm

    def _damage(self, name: str, norm: float, before: float | None, moment: bool) -> str:
        """'' when a norm can be the one that follows from the norm before."""
        if not math.isfinite(norm):
            return "holds numbers that are not finite"
        if before is None or self.looks <= _KNOWN:
            return ""
        if norm == 0 < before:
            return "has become zero"
        largest = self.largest.get(name, 0.0)
        limit = _GROWTH * largest if moment else max(0.5 * before, _JUMP * largest)
        # A limit of 0: it was zero so far, as the outputs of a layer that waits are.
        grown = (norm if moment else abs(norm - before)) > limit > 0
        return f"has jumped from norm {before:.3g} to {norm:.3g}" if grown else ""

    def look_at_gradient(self, gradient: Gradient, step: int) -> None:
        """Whether loss and gradient are what they were in the last steps."""
        tokens = max(1, int(torch.count_nonzero(gradient.batch.weights)))
        if self.loss.stands_out(gradient.loss, _ONE_TOKEN / math.sqrt(tokens)):
            raise Fault(
                "loss spike",
                f"a loss of {gradient.loss:.3f} at step {step}, it was {self.loss.level:.3f}",
                mend="Look at the text of this batch; if there are many, lower the learning rate.",
            )
        if self.loss.drifted(_DRIFT):
            raise Fault(
                "rising loss",
                f"the loss rises: {self.loss.level:.3f} at step {step}, it was {self.loss.lowest:.3f}",
                mend="Lower the learning rate.",
            )
        layers = by_layer(gradient.names, gradient.norms)
        for layer, norm in layers.items():
            known = self.layers.get(layer)
            small = self.norm.at_floor or (known is not None and known.at_floor)
            if norm == 0 and self.alive.get(layer, 0) >= _KNOWN and not small:
                kind = "no gradient" if gradient.norm == 0 else "dead layer"
                raise Fault(
                    kind, f"{layer} gets no gradient at step {step}", mend="Lower the learning rate, look at the loss."
                )
        noise = self.norm.least * math.sqrt(_FEW / tokens)
        if self.norm.stands_out(_log(gradient.norm), noise):
            raise Fault(
                "gradient spike",
                f"a gradient of norm {gradient.norm:.3g} at step {step}, it was {math.exp(self.norm.level):.3g}",
                mend="Look at the text of this batch; if there are many, lower the learning rate.",
            )
        for layer, norm in layers.items():
            known = self.layers.get(layer)
            small = norm < _SHARE * gradient.norm  # a layer of few weights has heavy tails, and does no harm
            if known is not None and not small and known.stands_out(_log(norm), noise):
                raise Fault(
                    "exploding layer",
                    f"the gradient of {layer} has norm {norm:.3g} at step {step}, it was {math.exp(known.level):.3g}",
                    mend="Lower the learning rate.",
                )

    def add(self, gradient: Gradient) -> None:
        """Remember a sound step."""
        self.batches.append(self.batch)
        self.loss.add(gradient.loss)
        self.norm.add(_log(gradient.norm))
        for layer, norm in by_layer(gradient.names, gradient.norms).items():
            self.alive[layer] = self.alive.get(layer, 0) + 1 if norm else 0
            if norm:
                self.layers.setdefault(layer, _of_layer()).add(_log(norm))

    def forget_state(self) -> None:
        """After the weights were set back: the last norms are no longer those before this update."""
        self.before = {}

    def forget_spikes(self) -> None:
        """After the data have changed their character: what was normal is not any more."""
        for normal in (self.loss, self.norm, *self.layers.values()):
            normal.forget()

    def state_dict(self) -> dict[str, Any]:
        """All that they know."""
        return {
            "loss": self.loss.state_dict(),
            "norm": self.norm.state_dict(),
            "layers": {name: normal.state_dict() for name, normal in self.layers.items()},
            "alive": dict(self.alive),
            "batches": list(self.batches),
            "before": dict(self.before),
            "largest": dict(self.largest),
            "looks": self.looks,
            "still": self.still,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Know what others knew."""
        self.loss.load_state_dict(state["loss"])
        self.norm.load_state_dict(state["norm"])
        self.layers = {}
        for name, known in state["layers"].items():
            self.layers[name] = _of_layer()
            self.layers[name].load_state_dict(known)
        self.alive, self.before, self.largest = dict(state["alive"]), dict(state["before"]), dict(state["largest"])
        self.batches, self.looks = deque(state["batches"], maxlen=64), state["looks"]
        self.still = state.get("still", 0)


def _norms(trainer: Trainer) -> tuple[list[str], list[float]]:
    """Names and norms of all trained weights and of what the optimizer keeps of each, in one transfer."""
    names: list[str] = []
    tensors: list[Tensor] = []
    for name, parameter in trainer.model.named_parameters():
        if not parameter.requires_grad:
            continue
        names.append(name)
        tensors.append(parameter.detach())
        for moment, value in trainer.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.dim() and value.is_floating_point():
                names.append(f"{name}/{moment}")
                tensors.append(value)
    if not tensors:
        return [], []
    if not trainer.team.alone:
        return names, parallel.norms(tensors, trainer.team).tolist()
    return names, torch.stack([norm.float() for norm in torch._foreach_norm(tensors)]).tolist()


def _of_layer() -> Normal:
    # A row of 64 tokens of ordinary text was seen to raise a layer's gradient 80 times.
    return Normal(sigmas=12.0, least=math.log(500.0), window=64, depth=_DEPTH)


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))
