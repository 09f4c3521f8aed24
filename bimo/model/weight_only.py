"""Matrices of 8 or 4 bits on any device, unpacked while they are multiplied: the numbers are those of Q8_0 and Q4_0.

A row lies as levels and, beside them, one float16 scale for each 32 of them, so that a GPU reads both in order. With
few inputs the product is written as a sum: torch's compiler makes one kernel of it, which reads each level once and
keeps no unpacked weight. With many, and without the compiler, the matrix is unpacked in the dtype of the input first.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.model.blocks import quantize
from bimo.model.formats import FORMATS
from bimo.model.packed import PackedTensor, twin

GROUP = 32  # levels that share a scale
PACKED = {"int8": "Q8_0", "int4": "Q4_0"}
"""The format of matrices, by the word of the setting."""

_FEW = 4  # rows up to which the compiled product is a sum
Model = TypeVar("Model", bound=nn.Module)


class Levels(nn.Module):
    """A matrix (N, K) as levels and scales.

    Args:
        levels: int8 (N, K) of Q8_0; or uint8 (N, K / 2) of Q4_0, where byte i of a group holds numbers i and i + 16.
        scales: float16, (N, K / 32).
    """

    def __init__(self, levels: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.levels, self.scales = _fixed(levels), _fixed(scales)

    @property
    def halved(self) -> bool:
        """Whether two levels share a byte."""
        return self.levels.dtype == torch.uint8

    def dense(self, dtype: torch.dtype, rows: Tensor | None = None) -> Tensor:
        """The numbers of all rows, or of some, (…, K)."""
        levels, scales = (self.levels, self.scales) if rows is None else (self.levels[rows], self.scales[rows])
        groups = levels.unflatten(-1, (scales.shape[-1], -1))  # (…, K / 32, 32 or 16)
        if self.halved:
            groups = torch.cat((groups & 15, groups >> 4), dim=-1).to(torch.int8) - 8
        return (groups.float() * scales.float()[..., None]).to(dtype).flatten(-2)


class PackedLinear(Levels):
    """In the place of an `nn.Linear`: (…, K) to (…, N)."""

    def __init__(self, levels: Tensor, scales: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(levels, scales)
        self.bias = None if bias is None else _fixed(bias)
        self.in_features, self.out_features = scales.shape[1] * GROUP, scales.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and x.numel() <= _FEW * self.in_features:
            return self.summed(x)
        return F.linear(x, self.dense(x.dtype), self.bias)

    def summed(self, x: Tensor) -> Tensor:
        """The product as a sum in float32, for the compiler."""
        groups = self.levels.view(*self.scales.shape, -1)  # (N, K / 32, 32 or 16)
        parts = x.float().reshape(-1, 1, self.scales.shape[1], GROUP)  # (M, 1, K / 32, 32)
        if self.halved:
            low, high = (groups & 15).float() - 8, (groups >> 4).float() - 8
            products = parts[..., : GROUP // 2] * low + parts[..., GROUP // 2 :] * high
        else:
            products = parts * groups.float()
        y = (products * self.scales.float()[..., None]).sum(dim=(-2, -1))  # (M, N)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


class PackedEmbedding(Levels):
    """In the place of an `nn.Embedding`: ids (…) to (…, K) of a dtype."""

    def __init__(self, levels: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
        super().__init__(levels, scales)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        return self.dense(self.dtype, ids)


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


def split(packed: PackedTensor) -> tuple[Tensor, Tensor]:
    """Levels and scales of Q8_0 or Q4_0 rows."""
    assert packed.format.name in PACKED.values(), f"{packed.format.name} has other levels"
    blocks = packed.rows.reshape(len(packed.rows), -1, packed.format.block_bytes)  # (N, K / 32, bytes)
    scales = blocks[..., :2].clone(memory_format=torch.contiguous_format).view(torch.float16).squeeze(-1)
    levels = blocks[..., 2:].clone(memory_format=torch.contiguous_format).flatten(1)
    return (levels.view(torch.int8) if packed.format.name == "Q8_0" else levels), scales


@torch.no_grad()
def laid_out(model: Model, device: torch.device, dtype: torch.dtype, to: str = "") -> Model:
    """A copy of a model on a device, in a dtype; matrices that are Q8_0 or Q4_0 stay packed.

    Args:
        model: Stays as it is; what needs no change is shared with it.
        device: Of the copy.
        dtype: Of all that is not packed, and of what flows between the layers.
        to: Q8_0 or Q4_0: linear layers become that, rounded to the nearest level, where they are not packed and their
            width allows it. Embeddings that are the head, too, become the same; others Q8_0.
    """
    copy = twin(model).eval()
    done: dict[int, Any] = {}

    def packed_parts(weight: Any, name: str) -> tuple[Tensor, Tensor] | None:
        if id(weight) not in done:
            now = _packed(weight, name, device)
            done[id(weight)] = None if now is None else tuple(part.to(device) for part in split(now))
        found: tuple[Tensor, Tensor] | None = done[id(weight)]
        return found

    for path, module in list(copy.named_modules()):
        if type(module) is nn.Linear and (parts := packed_parts(module.weight, to)):
            bias = None if module.bias is None else module.bias.to(device, dtype)
            _put(copy, path, PackedLinear(*parts, bias))
    for path, module in list(copy.named_modules()):  # now: a head of the same matrix has settled what it becomes
        if type(module) is nn.Embedding and (parts := packed_parts(module.weight, to and "Q8_0")):
            _put(copy, path, PackedEmbedding(*parts, dtype))
    _move(copy, device, dtype)
    return copy


def _packed(weight: Tensor, name: str, device: torch.device) -> PackedTensor | None:
    """A matrix as Q8_0 or Q4_0: as it lies, or, on a device, as the format of that name; None: it stays plain."""
    if isinstance(weight, PackedTensor):
        return weight if weight.format.name in PACKED.values() else None
    if not name or weight.shape[-1] % GROUP or not weight.is_floating_point():
        return None
    return PackedTensor(quantize(weight.detach().to(device), FORMATS[name]), FORMATS[name], weight.shape[-1])


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _move(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Put every parameter's twin of a device and a dtype in its place; buffers, too, which keep their dtype."""
    done: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or isinstance(module, Levels):
                continue
            if id(parameter) not in done:
                plain = parameter.unpacked() if isinstance(parameter, PackedTensor) else parameter.detach()
                moved = plain.to(device, dtype if plain.is_floating_point() else plain.dtype)
                same = moved is plain and not isinstance(parameter, PackedTensor)
                done[id(parameter)] = parameter if same else nn.Parameter(moved, requires_grad=False)
            module._parameters[name] = done[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
