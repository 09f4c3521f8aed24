"""Depth that grows: a run begins with a few layers and copies them, so that its first updates cost a fraction.

What a model learns first, frequent tokens and what follows them, needs no depth. A shallow one learns it in a fraction
of the time, and its layers, stacked on themselves, are a better beginning for the deep one than random weights (Gong et
al. 2019; Du et al. 2024, whose G_stack this is). The model is whole from the beginning: layers that wait add nothing to
what passes them, so whatever is saved on the way is the model that was judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bimo.core.batch import Batch
from bimo.core.errors import UserError
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

    def on_start(self, trainer: Trainer) -> None:
        model = self._model = trainer.model
        if not self.depth:
            why = self._obstacle(trainer)
            self.depth = len(model.layers) if why else self._stages(len(model.layers), _besides(model))[0][0]
            if not why and not self._let_wait(model):
                why, self.depth = "a layer cannot be made to pass on what it gets", len(model.layers)
            if why:
                trainer.event("depth does not grow", what=f"all layers are trained from the beginning: {why}")
        model.depth = self.depth

    def on_batch(self, trainer: Trainer, batch: Batch) -> None:
        if self._model is not None:
            self.grow(trainer, self._depth_at(trainer, trainer.state.step / trainer.settings.steps))

    def on_end(self, trainer: Trainer) -> None:
        self._release()

    def on_error(self, trainer: Trainer) -> None:
        self._release()

    def step_cost(self, trainer: Trainer, share: float) -> float:
        layers, depth = len(trainer.model.layers), self._depth_at(trainer, share)
        if depth == layers:
            return 1.0
        besides = _besides(trainer.model)
        return (besides + depth) / (besides + layers)

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
        self.depth = trainer.model.depth = depth
        trainer.changed("grown", what=f"from {now} to {depth} layers after step {trainer.state.step}")

    def state_dict(self) -> dict[str, Any]:
        return {"depth": self.depth}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.depth = state["depth"]
        if self._model is not None:  # a rollback, perhaps to before it grew
            self._model.depth = self.depth

    def _release(self) -> None:
        """The model runs all of its layers again; those that still wait change nothing."""
        if self._model is not None:
            self._model.depth = len(self._model.layers)
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
        kept: list[tuple[Tensor, Tensor]] = []
        with undisturbed(), torch.no_grad():
            for layer in model.layers[self.depth :]:
                for name, parameter in layer.named_parameters():
                    if any(output in name for output in _OUTPUTS):
                        own = local(parameter)
                        kept.append((own, own.clone()))
                        own.zero_()
            ids = torch.arange(8, device=model.embed_tokens.weight.device)[None] % model.spec.vocab_size
            ids = ids[:, : model.spec.context_length]
            model.eval()
            whole = model.hidden(ids)
            model.depth = self.depth
            part = model.hidden(ids)
            model.depth = len(model.layers)
            model.train()
            if float((whole - part).abs().max()) <= _SAME * float(whole.abs().max()):
                return True
            for own, before in kept:
                own.copy_(before)
        return False

    def average_cost(self, n_layers: int, besides: float) -> float:
        """Of an update of a run that grows, against one at its end; `besides`: of `work_besides`."""
        costs = [(besides + depth) / (besides + n_layers) for depth, _ in self._stages(n_layers, besides)]
        ends = [0.0, *(end for _, end in self._stages(n_layers, besides))]
        return sum(cost * (end - begin) for cost, begin, end in zip(costs, ends, ends[1:], strict=False))

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
        stages = self._stages(len(layers), _besides(trainer.model))
        return max(self.depth, next((depth for depth, end in stages if share < end), len(layers)))


def work_besides(head: float, layer: float) -> float:
    """What an update takes besides the layers, in layers.

    Args:
        head: Weights of the head.
        layer: Weights of a layer.
    """
    return head / layer + _BESIDES


def _besides(model: Any) -> float:
    layer = sum(p.numel() for p in model.layers[0].parameters())
    return work_besides(model.lm_head.weight.numel(), layer)


@torch.no_grad()
def _copy(below: nn.Module, above: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Weights and the optimizer's memory of one layer for another; one of another shape keeps its own."""
    sources, targets = dict(below.named_parameters()), dict(above.named_parameters())
    if {name: p.shape for name, p in sources.items()} != {name: p.shape for name, p in targets.items()}:
        return
    for name, source in sources.items():
        local(targets[name]).copy_(local(source))
        state = optimizer.state.get(source)
        if state:
            optimizer.state[targets[name]] = {
                key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()
            }
