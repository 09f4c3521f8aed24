"""Weights that stay packed as GGUF blocks until they are computed with.

A `PackedTensor` is a float32 parameter to everyone who looks at it: shape, state_dict, gradients. In memory it is the
blocks of its file, mapped and not copied; each operation unpacks what it needs. `unpack` turns a whole model into plain
tensors, which whoever computes more than once (engine, trainer) does first: memory for speed.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bimo.core.errors import UserError
from bimo.model.blocks import dequantize
from bimo.model.formats import BlockFormat

_aten = torch.ops.aten
Model = TypeVar("Model", bound=nn.Module)


class PackedTensor(torch.Tensor):
    """A float32 tensor (…, rows, width) that lies in memory as quantised rows.

    Args:
        rows: The blocks, uint8, (…, rows, bytes of a row).
        format: What the blocks are.
        width: Numbers in a row.
    """

    rows: Tensor
    format: BlockFormat

    @staticmethod
    def __new__(cls, rows: Tensor, format: BlockFormat, width: int) -> PackedTensor:
        shape = (*rows.shape[:-1], width)
        tensor: PackedTensor = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=torch.float32, device=rows.device, requires_grad=False
        )
        tensor.rows, tensor.format = rows, format
        return tensor

    def __init__(self, rows: Tensor, format: BlockFormat, width: int) -> None:
        """All is done in `__new__`, as torch wants it."""

    def __repr__(self) -> str:  # type: ignore[override]  # torch's takes an argument of its own
        return f"PackedTensor({self.format.name}, {tuple(self.shape)})"

    def as_parameter(self) -> PackedTensor:
        """Itself, as a parameter. `nn.Parameter` would take a view, and torch imports its distributed tensors (half a
        second) at the first operation on a tensor of a class of its own."""
        self.requires_grad_(True)
        self._is_param = True
        return self

    def __deepcopy__(self, memory: dict[int, Any]) -> PackedTensor:
        """Another one of the same blocks, which nobody can change."""
        found = PackedTensor(self.rows, self.format, self.shape[-1])
        if isinstance(self, nn.Parameter):
            found.as_parameter().requires_grad_(self.requires_grad)
        memory[id(self)] = found
        return found

    def unpacked(self) -> Tensor:
        """The numbers, float32."""
        return dequantize(self.rows, self.format)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # a class method, as torch documents it
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        first = args[0] if args else None
        if func in (_aten.detach.default, _aten.alias.default) and isinstance(first, PackedTensor):
            return PackedTensor(first.rows, first.format, first.shape[-1])
        if func is _aten.embedding.default and isinstance(first, PackedTensor):
            return dequantize(first.rows[args[1]], first.format)  # only the rows that are asked for
        if func._schema.is_mutable and isinstance(first, PackedTensor):
            raise UserError(
                "packed weights cannot be changed in place", mend="Call bimo.unpack(lm.model) before you train it."
            )
        return func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))


def plain(value: Any) -> Any:
    """A packed tensor's numbers; anything else as it is."""
    return value.unpacked() if isinstance(value, PackedTensor) else value


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter."""
    module, _, leaf = name.rpartition(".")
    parameter = tensor.as_parameter() if isinstance(tensor, PackedTensor) else nn.Parameter(tensor)
    setattr(model.get_submodule(module), leaf, parameter)


def twin(model: Model) -> Model:
    """A copy of a model that shares its parameters: either may put others in their place."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def unpack(model: Model) -> Model:
    """Replace every packed parameter by a plain one of the same values, shared ones once. Returns the model."""
    done: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, PackedTensor):
                plain = done.get(id(parameter))
                if plain is None:
                    plain = done[id(parameter)] = nn.Parameter(parameter.unpacked(), parameter.requires_grad)
                module._parameters[name] = plain
    return model
