"""Keeping less for the backward pass: activations that are cheap to compute again are not stored.

The result of a norm, a rotation or a gate costs a pass over memory; storing it for the backward pass costs as much, and
the memory besides. A layer says so with `cheap(result, again)`; nothing else in the model changes. Under `recompute()`
autograd then keeps the function `again` in place of the tensor. This is selective activation recomputation (Korthikanti
et al. 2022) without running any matrix product twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from bimo.core.spec import ModelSpec

_LITTLE = 2**26  # bytes; below that, computing again costs an eighth of a step and saves next to nothing


def cheap(result: Tensor, again: Callable[[], Tensor]) -> Tensor:
    """Mark an activation as cheaper to compute again than to keep.

    Args:
        result: The activation, contiguous.
        again: Gives the same values; called without autograd, possibly more than once. It should hold on to nothing but
            what is stored anyway.
    """
    result.again = again  # type: ignore[attr-defined]  # travels with the tensor, gone when the tensor is
    return result


def kept_is_little(spec: ModelSpec | None, tokens: int) -> bool:
    """Whether all activations of a forward pass are so few that none is worth computing again."""
    if spec is None:
        return False
    per_layer = 16 * spec.d_model + 5 * spec.d_ff  # norms, projections, attention and gate, as they are kept
    return 4 * tokens * spec.n_layers * per_layer < _LITTLE


def recompute() -> AbstractContextManager[object]:
    """A context for the forward pass in which autograd keeps no tensor that was marked cheap, nor views of one."""
    return torch.autograd.graph.saved_tensors_hooks(_pack, _unpack)


def _pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
    whole = tensor if tensor._base is None else tensor._base
    again: Callable[[], Tensor] | None = getattr(whole, "again", None)
    if again is None:
        return tensor
    size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
    return lambda: again().as_strided(size, stride, offset)


def _unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept()
