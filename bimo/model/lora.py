"""Low-rank adapters (Hu et al. 2021, LoRA): a model's linear layers get a small product of two matrices added.

    y = W x + scale * up (down x),  down: (r, in), up: (out, r)

`merge` adds it to the weights for good. `AdapterSet` leaves the weights alone and adds it to each row of a batch as the
row asks, so that one model in memory serves many adapters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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
        modules = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
        shapes = {path: (module.out_features, module.in_features) for path, module in modules.items()}
        self.check_shapes(shapes, tied=model.spec.tied_embeddings)

    def check_shapes(self, shapes: Mapping[str, tuple[int, int]], *, tied: bool) -> None:
        """The same for linear layers by their (out, in) alone; tied: the head is the same matrix as the embeddings.

        Raises:
            UserError: As `check`.
        """
        for path, part in self.parts.items():
            problem = _problem(path, part, shapes, tied=tied)
            if problem:
                raise UserError(problem, where=f"adapter {self.name!r}", mend="Use the model that it was trained on.")


def _problem(path: str, part: LowRank, shapes: Mapping[str, tuple[int, int]], *, tied: bool) -> str:
    """What is wrong with a part; '' when it fits."""
    if path not in shapes:
        return f"the model has no linear layer {path!r}{nearest(path, shapes)}"
    if path == "lm_head" and tied:
        return "it changes the head, which is the same matrix as the embeddings"
    (n_out, n_in), rank = shapes[path], part.down.shape[0]
    wanted = ((rank, n_in), (n_out, rank))
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
    check_names(adapters)
    for adapter in adapters:
        adapter.check(model)


def check_names(adapters: Sequence[Adapter]) -> None:
    """Whether each adapter has a name of its own.

    Raises:
        UserError: Two have the same.
    """
    names = [adapter.name for adapter in adapters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two adapters are called {twice!r}", mend="Give each a name of its own.")


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
    """

    def __init__(self, model: GPT, adapters: Sequence[Adapter]) -> None:
        check_adapters(model, adapters)
        self._model = model
        self._adapters: dict[int, Adapter] = {}
        self.change(dict(enumerate(adapters, start=1)))

    def change(self, added: Mapping[int, Adapter], dropped: Collection[int] = ()) -> None:
        """Have adapters that fit under new numbers, and those of other numbers no more."""
        kept = {number: adapter for number, adapter in self._adapters.items() if number not in dropped}
        self._adapters = {**kept, **added}
        every = list(self._adapters.values())
        paths = dict.fromkeys(path for adapter in every for path in adapter.parts)
        self._layers = [_Layer.of(self._model.get_submodule(p), [a.parts.get(p) for a in every]) for p in paths]
        self._rows = {0: 0, **{number: row for row, number in enumerate(self._adapters, start=1)}}

    @contextmanager
    def chosen(self, numbers: Sequence[int]) -> Iterator[None]:
        """While it lasts, row i of whatever goes through the model has adapter numbers[i]."""
        if not any(numbers):
            yield
            return
        for number in numbers:
            assert number in self._rows, f"adapter {number} was asked for, there are {sorted(self._rows)}"
        rows: Tensor | None = None
        with ExitStack() as stack:
            for layer in self._layers:
                if rows is None:
                    rows = torch.tensor([self._rows[n] for n in numbers], device=layer.down.device)
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
