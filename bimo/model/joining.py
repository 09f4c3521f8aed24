"""Projections of one input side by side in memory, so that a step reads the input once and starts one kernel for all.

`joined` is a twin of a model whose queries, keys and values come of one product, and so do the gate and what it gates.
The parts stay what they were, as views of the whole: nothing lies in memory twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bimo.model.attention import Attention
from bimo.model.feedforward import Gated
from bimo.model.gpt import GPT
from bimo.model.packed import twin
from bimo.model.weight_only import PackedLinear

_TENSORS = ("weight", "levels", "scales", "bias")


@torch.no_grad()
def join(model: GPT) -> GPT:
    """A twin that shares the model's weights, whose places in memory change; in modules of the user, nothing does."""
    shared = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for block in model.blocks():
        for group in _groups(block):
            if all(shared[id(p)] == 1 for linear in group for p in linear.parameters()):
                for name in _TENSORS:
                    _lay_side_by_side(_parameters(group, name))
    copy = twin(model)
    for block in copy.blocks():
        for group in _groups(block):
            whole = _whole(group)
            if whole is not None:
                group[0].add_module("whole", whole)
    return copy


def _groups(block: nn.Module) -> list[list[nn.Module]]:
    """Linear layers of a block that read the same input."""
    attention, mlp = getattr(block, "self_attn", None), getattr(block, "mlp", None)
    found: list[list[nn.Module]] = []
    if isinstance(attention, Attention):
        found.append([attention.q_proj, attention.k_proj, attention.v_proj])
    if isinstance(mlp, Gated):
        found.append([mlp.gate_proj, mlp.up_proj])
    return [group for group in found if len({_kind(linear) for linear in group}) == 1 and _kind(group[0])]


def _kind(linear: nn.Module) -> str:
    """What must be equal in linear layers that are joined; '' when it is none of ours."""
    if linear._forward_hooks or linear._forward_pre_hooks:
        return ""
    if type(linear) is nn.Linear:
        plain = type(linear.weight) is nn.Parameter
        return f"{linear.weight.dtype} {linear.weight.device} {linear.bias is None}" if plain else ""
    if type(linear) is PackedLinear:
        return f"{linear.levels.dtype} {linear.levels.device} {linear.bias is None}"
    return ""


def _parameters(group: Sequence[nn.Module], name: str) -> list[nn.Parameter]:
    found = [getattr(linear, name, None) for linear in group]
    return [parameter for parameter in found if isinstance(parameter, nn.Parameter)]


def _lay_side_by_side(parts: Sequence[nn.Parameter]) -> None:
    """Have tensors be views of one, in this order; those that are already stay where they are."""
    if not parts or _one_of(parts) is not None:
        return
    whole, start = torch.cat([part.data for part in parts]), 0
    for part in parts:
        part.data = whole[start : start + len(part)]
        start += len(part)


def _one_of(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor whose rows several tensors are, one after the other; None: they are not."""
    first, place = parts[0], parts[0].data_ptr()
    for part in parts:
        of_one = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (of_one and part.data_ptr() == place and part.is_contiguous()):
            return None
        place += part.numel() * part.element_size()
    shape = (sum(len(part) for part in parts), *first.shape[1:])
    whole = torch.empty(0, dtype=first.dtype, device=first.device)
    return whole.set_(first.untyped_storage(), first.storage_offset(), shape, first.stride())


def _whole(group: Sequence[nn.Module]) -> nn.Module | None:
    """One layer for several."""
    found: dict[str, Tensor | None] = {}
    for name in _TENSORS:
        parts = _parameters(group, name)
        found[name] = _one_of(parts) if parts else None
        if parts and found[name] is None:
            return None
    if found["levels"] is not None:
        return PackedLinear(found["levels"], cast(Tensor, found["scales"]), found["bias"])
    weight = cast(Tensor, found["weight"])
    with torch.device("meta"):
        whole = nn.Linear(weight.shape[1], weight.shape[0], bias=found["bias"] is not None)
    whole.weight = nn.Parameter(weight, requires_grad=False)
    if found["bias"] is not None:
        whole.bias = nn.Parameter(found["bias"], requires_grad=False)
    return whole
