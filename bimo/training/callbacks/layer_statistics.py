"""How large gradients and activations are, layer by layer: where a model dies or explodes is seen before it does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bimo.core.artifacts import append_jsonl
from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training.callbacks.protocol import Callback, Gradient
from bimo.training.callbacks.records import continue_log
from bimo.training.faults import Fault
from bimo.training.parts import is_part

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Of all numbers of one layer.

    Attributes:
        norm: Root of the sum of their squares.
        rms: Root of the mean of their squares.
        zeros: Share of them that is exactly zero.
        largest: The largest absolute value.
    """

    norm: float
    rms: float
    zeros: float
    largest: float


class _Statistics(Callback):
    """What both kinds share: when they look, and where they write.

    Args:
        every: Steps between looks; the first step is looked at, too.
        folder: A run's folder, in which `layers.jsonl` is written, a line per layer; "": none is.

    Attributes:
        latest: The newest statistics, by layer.
    """

    kind = ""

    everywhere = False

    def __init__(self, every: int = 100, folder: str | Path = "") -> None:
        if every < 1:
            raise UserError(f"every must be at least 1, is {every}", where=type(self).__name__)
        self.every = every
        self.path = Path(folder) / "layers.jsonl" if folder else None
        self.latest: dict[str, LayerStatistics] = {}

    def on_start(self, trainer: Trainer) -> None:
        if self.path is not None:
            continue_log(self.path, trainer.state.step, trainer.state.settled)

    def due(self, trainer: Trainer) -> bool:
        """Whether the step that is being made is looked at."""
        return trainer.state.step == 0 or (trainer.state.step + 1) % self.every == 0

    def keep(self, trainer: Trainer, measured: dict[str, list[Tensor]]) -> None:
        """Keep and write what was measured, by layer: `_measures` of each of its tensors; one transfer for all."""
        if not measured:
            return
        rows = [torch.stack(parts).double() for parts in measured.values()]  # (parts, 4) each
        sums = torch.stack([row[:, :3].sum(dim=0) for row in rows])
        table = torch.cat([sums, torch.stack([row[:, 3:].amax(dim=0) for row in rows])], dim=1)  # (layers, 4)
        self.latest = {
            name: LayerStatistics(math.sqrt(squares), math.sqrt(squares / count), zeros / count, largest)
            for name, (count, squares, zeros, largest) in zip(measured, table.tolist(), strict=True)
        }
        if self.path is not None:
            for name, found in self.latest.items():
                figures = {key: value if math.isfinite(value) else None for key, value in asdict(found).items()}
                append_jsonl(self.path, {"step": trainer.state.step + 1, "of": self.kind, "layer": name, **figures})


class GradientStatistics(_Statistics):
    """Norm, root mean square, share of zeros and largest value of each layer's gradient, before clipping."""

    kind = "gradient"

    def on_start(self, trainer: Trainer) -> None:
        if any(is_part(parameter) for parameter in trainer.model.parameters()):
            raise UserError(
                "weights that lie in parts have no gradient in one place",
                where="gradient_statistics",
                mend="Leave it out, or train with parallel.data alone.",
            )
        super().on_start(trainer)

    def on_gradient(self, trainer: Trainer, gradient: Gradient) -> bool | None:
        if self.due(trainer):
            measured: dict[str, list[Tensor]] = {}
            for name, parameter in trainer.model.named_parameters():
                if parameter.grad is not None:
                    measured.setdefault(name.rpartition(".")[0], []).append(_measures(parameter.grad))
            self.keep(trainer, measured)
        return None


class ActivationStatistics(_Statistics):
    """Norm, root mean square, share of zeros and largest value of what each layer gives.

    It listens only in the steps that it looks at; the other steps are those of a run without it.
    """

    kind = "activation"

    def __init__(self, every: int = 100, folder: str | Path = "") -> None:
        super().__init__(every, folder)
        self._hooks: list[RemovableHandle] = []
        self._measured: dict[str, list[Tensor]] = {}

    def on_start(self, trainer: Trainer) -> None:
        if trainer.team.tensor > 1:
            raise UserError(
                "layers that several processes share have no activations in one place",
                where="activation_statistics",
                mend="Leave it out, or set parallel.tensor to 1.",
            )
        super().on_start(trainer)

    def on_batch(self, trainer: Trainer, batch: Batch) -> Batch | None:
        self._stop_listening()  # a step may have failed before its gradient
        if self.due(trainer):
            for name, module in trainer.model.named_modules():
                if name and not isinstance(module, nn.ModuleList):
                    self._hooks.append(module.register_forward_hook(self._listener(name)))
        return None

    def on_gradient(self, trainer: Trainer, gradient: Gradient) -> bool | None:
        if self._hooks:
            measured = self._measured
            self._stop_listening()
            self.keep(trainer, measured)
        return None

    def on_fault(self, trainer: Trainer, fault: Fault) -> bool:
        self._stop_listening()
        return False

    def on_end(self, trainer: Trainer) -> None:
        self._stop_listening()

    def on_error(self, trainer: Trainer) -> None:
        self._stop_listening()

    def _listener(self, name: str) -> Callable[[nn.Module, object, object], None]:
        """A hook that measures what a module gives and changes nothing; micro-batches add up."""

        def listen(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                self._measured.setdefault(name, []).append(_measures(output))

        return listen

    def _stop_listening(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._measured = [], {}


@torch.no_grad()
def _measures(tensor: Tensor) -> Tensor:
    """Count of its numbers, sum of their squares, count of zeros, largest absolute value: (4,), on its device."""
    numbers = tensor.detach().float()
    count = torch.tensor(float(numbers.numel()), device=numbers.device)
    return torch.stack([count, numbers.square().sum(), (numbers == 0).sum().float(), numbers.abs().amax()])
