"""Low-rank adapters (Hu et al. 2021, LoRA): a model's linear layers get a small product of two matrices added.

    y = W x + scale * up (down x),  down: (r, in), up: (out, r)

`merge` adds it to the weights for good. `AdapterSet` leaves the weights alone and adds it to each row of a batch as the
row asks, so that one model in memory serves many adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bimo.core.errors import UserError, nearest
from bimo.model.gpt import GPT
from bimo.model.packed import PackedTensor


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to one linear layer.

    Attributes:
        down: A of the paper, (r, in).
        up: B of the paper, (out, r).
        scale: Multiplies their product: alpha / r, mostly.
    """

    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """A set of low-rank additions that were trained together.

    Attributes:
        name: For people, and for requests that ask for it.
        parts: By the path of the module in the model, `layers.0.self_attn.q_proj`.
    """

    name: str
    parts: Mapping[str, LowRank]

    @property
    def rank(self) -> int:
        """The largest of its ranks."""
        return max((part.down.shape[0] for part in self.parts.values()), default=0)

    def check(self, model: GPT) -> None:
        """Whether it fits a model.

        Raises:
            UserError: A module is not there or not linear, a shape is not the module's, or a number is not finite.
        """
        linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
        for path, part in self.parts.items():
            problem = _problem(path, part, linears, tied=model.spec.tied_embeddings)
            if problem:
                raise UserError(problem, where=f"adapter {self.name!r}", mend="Use the model that it was trained on.")


def _problem(path: str, part: LowRank, linears: Mapping[str, nn.Linear], *, tied: bool) -> str:
    """What is wrong with a part; '' when it fits."""
    if path not in linears:
        return f"the model has no linear layer {path!r}{nearest(path, linears)}"
    if path == "lm_head" and tied:
        return "it changes the head, which is the same matrix as the embeddings"
    linear, rank = linears[path], part.down.shape[0]
    wanted = ((rank, linear.in_features), (linear.out_features, rank))
    found = (tuple(part.down.shape), tuple(part.up.shape))
    if found != wanted:
        return f"{path} has matrices of {found[0]} and {found[1]}, the model wants {wanted[0]} and {wanted[1]}"
    if not (part.down.isfinite().all() and part.up.isfinite().all()):
        return f"{path} holds NaN or infinite numbers"
    return ""


def check_adapters(model: GPT, adapters: Sequence[Adapter]) -> None:
    """Whether several adapters fit a model, and each has a name of its own.

    Raises:
        UserError: One does not fit, or two have the same name.
    """
    names = [adapter.name for adapter in adapters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two adapters are called {twice!r}", mend="Give each a name of its own.")
    for adapter in adapters:
        adapter.check(model)


@torch.no_grad()
def merge(model: GPT, adapter: Adapter) -> GPT:
    """Add an adapter to the weights of a model, in float32, in place. Returns the model.

    Raises:
        UserError: It does not fit, or a weight is packed.
    """
    adapter.check(model)
    linears: dict[str, Any] = {path: model.get_submodule(path) for path in adapter.parts}
    packed = next((path for path, linear in linears.items() if isinstance(linear.weight, PackedTensor)), None)
    if packed:
        raise UserError(f"{packed} is packed and cannot be changed", mend="Call bimo.unpack(lm.model) first.")
    for path, part in adapter.parts.items():
        weight = linears[path].weight
        down, up = (matrix.to(weight.device, torch.float32) for matrix in (part.down, part.up))
        weight.copy_(weight.float() + part.scale * (up @ down))
    return model


class AdapterSet:
    """Several adapters on one model, chosen row by row.

    Args:
        model: The model, which stays as it is.
        adapters: Number 1, 2, …; 0 is the model alone.

    Attributes:
        names: Of the adapters, in order.
    """

    def __init__(self, model: GPT, adapters: Sequence[Adapter]) -> None:
        check_adapters(model, adapters)
        self.names = [adapter.name for adapter in adapters]
        paths = dict.fromkeys(path for adapter in adapters for path in adapter.parts)
        self._layers = [_Layer.of(model.get_submodule(path), [a.parts.get(path) for a in adapters]) for path in paths]

    @contextmanager
    def chosen(self, numbers: Sequence[int]) -> Iterator[None]:
        """While it lasts, row i of whatever goes through the model has adapter numbers[i]."""
        if not any(numbers):
            yield
            return
        for number in numbers:
            assert 0 <= number <= len(self.names), f"adapter {number} was asked for, there are {len(self.names)}"
        rows: Tensor | None = None
        with ExitStack() as stack:
            for layer in self._layers:
                rows = rows if rows is not None else torch.tensor(numbers, device=layer.down.device)
                stack.enter_context(layer.adding(rows))
            yield


@dataclass(frozen=True, slots=True)
class _Layer:
    """One linear layer and what all adapters add to it; number 0 adds nothing.

    Attributes:
        linear: The layer.
        down: (adapters + 1, r, in).
        up: (adapters + 1, out, r), scale included.
    """

    linear: nn.Linear
    down: Tensor
    up: Tensor

    @classmethod
    def of(cls, linear: nn.Module, parts: Sequence[LowRank | None]) -> _Layer:
        """Smaller ranks are filled up with zeros."""
        assert isinstance(linear, nn.Linear), "the adapters were checked against the model"
        like = linear.weight
        rank = max(part.down.shape[0] for part in parts if part is not None)
        down = torch.zeros(len(parts) + 1, rank, linear.in_features, device=like.device, dtype=like.dtype)
        up = torch.zeros(len(parts) + 1, linear.out_features, rank, device=like.device, dtype=like.dtype)
        for number, part in enumerate(parts, start=1):
            if part is not None:
                down[number, : part.down.shape[0]] = part.down
                up[number, :, : part.down.shape[0]] = part.scale * part.up.float()
        return cls(linear, down, up)

    @contextmanager
    def adding(self, rows: Tensor) -> Iterator[None]:
        """While it lasts, the layer adds what each row asks for; rows: numbers of adapters, int64, (B,)."""

        def hook(linear: nn.Module, inputs: tuple[Tensor], y: Tensor) -> Tensor:
            return y + self.added(inputs[0], rows)

        handle = self.linear.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def added(self, x: Tensor, rows: Tensor) -> Tensor:
        """What is added for x, (B, …, in), or (B T, in) where a module has joined the rows: (…, out)."""
        by_row = x.reshape(len(rows), -1, x.shape[-1])  # (B, T, in)
        low = torch.bmm(by_row, self.down[rows].transpose(1, 2))  # (B, T, r)
        y = torch.bmm(low, self.up[rows].transpose(1, 2))  # (B, T, out)
        return y.view(*x.shape[:-1], y.shape[-1])
