"""Depth that grows: a run begins with a few layers and copies them, so that its first updates cost a fraction.

What a model learns first, frequent tokens and what follows them, needs no depth. A shallow one learns it in a fraction
of the time, and its layers, stacked on themselves, are a better beginning for the deep one than random weights (Gong et
al. 2019; Du et al. 2024, whose G_stack this is). The model is whole from the beginning: layers that wait add nothing to
what passes them, so whatever is saved on the way is the model that was judged.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training import parallel
from bimo.training.callbacks.protocol import Callback
from bimo.training.parts import local
from bimo.training.randomness import undisturbed

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer

_OUTPUTS = ("o_proj", "down_proj")  # what a block adds to the residual stream
_BESIDES = 0.3  # of a layer: what an update takes besides layers and head (measured: 4 layers of 128 on a CPU)
_SAME = 1e-5  # of the largest number: how far a model may be from the one without the layers that wait


class GrowingDepth(Callback):
    """Trains some layers first and doubles them until all are there; for pretraining.

    Args:
        share: Of the run's time in which layers still wait. Each depth on the way gets an equal part of it.
        least: Layers to begin with.

    Attributes:
        depth: Layers that are trained; 0: not yet known.
    """

    def __init__(self, share: float = 0.7, least: int = 1) -> None:
        if not 0 <= share < 1 or least < 1:
            raise UserError(
                f"share must be at least 0 and below 1, and least at least 1; they are {share} and {least}",
                where="GrowingDepth",
            )
        self.share, self.least, self.depth = share, least, 0
        self._model: Any = None
        self._besides = 0.0

    def on_start(self, trainer: Trainer) -> None:
        model = self._model = trainer.model
        layers = len(model.layers)
        if not trainer.state.step:
            self.depth, self._besides = 0, 0.0
        if not self.depth:
            why = self._obstacle(trainer)
            self.depth = layers if why else self._depth_at(trainer, 0.0)
            if not why and not self._let_wait(model):
                why, self.depth = "one cannot be made to pass on what it gets", layers
            if why:
                trainer.event("depth does not grow", what=f"all layers are trained from the beginning: {why}")
        self._show()

    def on_batch(self, trainer: Trainer, batch: Batch) -> None:
        if self._model is not None:
            self.grow(trainer, self._depth_at(trainer, trainer.state.step / trainer.settings.steps))

    def on_end(self, trainer: Trainer) -> None:
        layers = len(trainer.model.layers)
        if 0 < self.depth < layers:
            what = f"the run ends while {layers - self.depth} of {layers} layers wait: they add nothing to the model"
            trainer.event("layers wait", what=what)
        self._release()

    def on_error(self, trainer: Trainer) -> None:
        self._release()

    def step_cost(self, trainer: Trainer, share: float) -> float:
        layers, depth = len(trainer.model.layers), self._depth_at(trainer, share)
        return 1.0 if depth == layers else (self._besides + depth) / (self._besides + layers)

    def average_cost(self, n_layers: int, besides: float) -> float:
        """Of an update of a run that grows, against one at its end; `besides`: of `work_besides`."""
        stages = self._stages(n_layers, besides)
        costs = [(besides + depth) / (besides + n_layers) for depth, _ in stages]
        ends = [0.0, *(end for _, end in stages)]
        return sum(cost * (end - begin) for cost, begin, end in zip(costs, ends, ends[1:], strict=False))

    def grow(self, trainer: Trainer, depth: int) -> None:
        """Train so many layers from now on: those that have waited become copies of the ones below, momentum included.

        Args:
            trainer: The run.
            depth: One that is not above the present one changes nothing.
        """
        if depth <= self.depth:
            return
        layers, now = trainer.model.layers, self.depth
        for new in range(now, depth):
            _copy(layers[new % now], layers[new], trainer.optimizer)
        self.depth = depth
        self._show()
        trainer.changed("grown", what=f"from {now} to {depth} layers after step {trainer.state.step}")

    def state_dict(self) -> dict[str, Any]:
        return {"depth": self.depth}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.depth = state["depth"]
        self._show()  # a rollback, perhaps to before it grew

    def _show(self) -> None:
        """Let the model run as many layers as are trained."""
        if self._model is not None:
            self._model.depth = self.depth if self.depth < len(self._model.layers) else None

    def _release(self) -> None:
        """The model runs all of its layers again; those that still wait change nothing."""
        if self._model is not None:
            self._model.depth = None
            self._model = None

    def _obstacle(self, trainer: Trainer) -> str:
        """Why the depth cannot grow; '' if it can."""
        if trainer.state.step:
            return "the run has begun without this callback"
        if not getattr(trainer.model, "untrained", False):
            return "the model has been trained before"
        return ""

    def _let_wait(self, model: Any) -> bool:
        """Make the layers from `depth` on pass on what they get; False, and nothing changed, where that fails."""
        waiting = [
            p for layer in model.layers[self.depth :] for name, p in layer.named_parameters() if _is_output(name)
        ]
        kept = [local(parameter).clone() for parameter in waiting]
        training, same = model.training, False
        with undisturbed(), torch.no_grad():
            for parameter in waiting:
                local(parameter).zero_()
            ids = torch.arange(8, device=model.embed_tokens.weight.device)[None] % model.spec.vocab_size
            ids = ids[:, : model.spec.context_length]
            model.eval()
            try:
                whole = model.hidden(ids)
                model.depth = self.depth
                same = float((whole - model.hidden(ids)).abs().max()) <= _SAME * float(whole.abs().max())
            except Exception:  # whatever a module of the user's does not like: all layers can still be trained
                same = False
            finally:
                model.depth = None
                model.train(training)
                parallel.reshard(model)
            if not same:
                for parameter, before in zip(waiting, kept, strict=True):
                    local(parameter).copy_(before)
        return same

    def _stages(self, n_layers: int, besides: float) -> list[tuple[int, float]]:
        """Depths, each with the share of the steps at which it ends."""
        depths = [n_layers]
        while self.share and depths[0] > self.least:
            depths.insert(0, max(self.least, (depths[0] + 1) // 2))
        times = [self.share / max(1, len(depths) - 1)] * (len(depths) - 1) + [1 - self.share]
        steps = [time / (besides + depth) for time, depth in zip(times, depths, strict=True)]
        return [(depth, sum(steps[: i + 1]) / sum(steps)) for i, depth in enumerate(depths)]

    def _depth_at(self, trainer: Trainer, share: float) -> int:
        """Layers that are trained at a share of the steps."""
        layers = trainer.model.layers
        if self.depth == len(layers):
            return self.depth
        if not self._besides:
            layer = sum(parameter.numel() for parameter in layers.parameters()) / len(layers)
            self._besides = work_besides(trainer.model.lm_head.weight.numel(), layer)
        stages = self._stages(len(layers), self._besides)
        return max(self.depth, next((depth for depth, end in stages if share < end), len(layers)))


def work_besides(head: float, layer: float) -> float:
    """What an update takes besides the layers, in layers.

    Args:
        head: Weights of the head.
        layer: Weights of a layer.
    """
    return head / layer + _BESIDES


def _is_output(name: str) -> bool:
    return any(output in name for output in _OUTPUTS)


@torch.no_grad()
def _copy(below: nn.Module, above: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Weights and the optimizer's memory of one layer for another; one of another shape keeps its own."""
    sources, targets = _tensors(below), _tensors(above)
    if {name: t.shape for name, t in sources.items()} != {name: t.shape for name, t in targets.items()}:
        return
    for name, source in sources.items():
        local(targets[name]).copy_(local(source))
        if optimizer.state.get(source):
            optimizer.state[targets[name]] = copy.deepcopy(optimizer.state[source])


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
