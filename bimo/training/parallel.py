"""Parallelism, applied to a plain model from outside; nothing happens in one process.

- data: each process has the model; after the backward pass the gradients are added up, in a few large messages.
- shard: FSDP2. Weights, gradients and moments lie in parts; a layer's weights are gathered while it computes
  (Rajbhandari et al. 2020, ZeRO-3). With data above 1, the parts are copied (hybrid).
- tensor: the heads and the feed-forward width of each layer are cut; q, k, v, gate and up by columns, o and down by
  rows (Shoeybi et al. 2019, Megatron-LM). All of it may be combined.

The loss of a step is divided by the trained tokens of all processes, so gradients are sums, never means. Parts are
`DTensor`s: they know their place in the whole.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bimo.core.errors import UserError
from bimo.model.attention import Attention
from bimo.model.feedforward import Gated, Plain
from bimo.model.gpt import GPT
from bimo.training.parts import is_part, local
from bimo.training.state import load_model_state, model_state
from bimo.training.team import Team

_COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_ROWS = ("self_attn.o_proj", "mlp.down_proj")
_BUCKET = 2**24  # numbers that travel in one message: 64 MB in float32


def parallelize(model: Any, team: Team) -> None:
    """Cut a model, in place, as its team says; first all get the weights of the first process.

    Raises:
        UserError: Something in it cannot be cut that way.
    """
    if team.alone or any(is_part(parameter) for parameter in model.parameters()):
        return
    # Here, because they take a second to import, which a run in one process does without.
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    # Of a matrix that is cut twice, the parts are put together in two messages, as torch says again and again.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    if team.tensor > 1:
        _check_layers(model, team.tensor)
    for tensor in model_state(model).values():
        dist.broadcast(tensor, src=0)
    assert team.mesh is not None, "a team of several has a mesh"
    if team.tensor > 1:
        for layer in model.layers:
            names = {name for name, _ in layer.named_modules()}
            plan: dict[str, Any] = {name: ColwiseParallel() for name in _COLUMNS if name in names}
            plan |= {name: RowwiseParallel() for name in _ROWS}
            parallelize_module(layer, team.mesh["tensor"], plan)
    if team.shard > 1:
        mesh = team.mesh["data", "shard"] if team.data > 1 else team.mesh["shard"]
        for module in (*model.layers, model):
            fully_shard(module, mesh=mesh)
            module.set_gradient_divide_factor(1.0)  # the loss is divided once, by the tokens of all
            module.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(model, "hidden")


def _check_layers(model: Any, tensor: int) -> None:
    """Whether every layer can be cut into so many parts."""
    spec = model.spec
    for name in ("n_heads", "n_kv_heads", "d_ff"):
        if getattr(spec, name) % tensor:
            raise UserError(
                f"{name} is {getattr(spec, name)}, which {tensor} processes cannot share out evenly",
                where="parallel.tensor",
                mend=f"Choose a parallel.tensor that divides it, or another model.{name}.",
            )
    for number, layer in enumerate(model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        known = isinstance(attention, Attention) and isinstance(mlp, (Gated, Plain))
        if not known or attention.norm_across_heads:
            what = "a QK-norm across all heads" if known else f"{type(attention).__name__} and {type(mlp).__name__}"
            raise UserError(
                f"layer {number} has {what}, which tensor parallelism cannot cut",
                where="parallel.tensor",
                mend="Set parallel.tensor to 1; data and shard work with every model.",
            )


def reduce_gradients(model: Any, team: Team) -> None:
    """After the backward pass: add up what FSDP2 and the cut layers have not added up themselves."""
    if team.tensor > 1:  # each process has seen its own heads, all of which these norms belong to
        assert team.mesh is not None, "a team of several has a mesh"
        norms = [norm for layer in model.layers for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm)]
        parts = [local(p.grad) for norm in norms for p in norm.parameters() if p.grad is not None]
        if parts:
            whole = torch.cat([part.flatten() for part in parts])
            dist.all_reduce(whole, group=team.mesh.get_group("tensor"))
            _copy_back(parts, whole)
    if team.shard == 1 and team.data > 1:
        assert team.mesh is not None, "a team of several has a mesh"
        for bucket in _buckets([p for p in model.parameters() if p.requires_grad]):
            _add_up(bucket, team.mesh.get_group("data"))


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Parameters of one dtype in groups of bounded size."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size + parameter.numel() > _BUCKET or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket


def _add_up(bucket: list[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Gradients of a bucket, summed over a group; one that no process has stays None."""
    has = [float(parameter.grad is not None) for parameter in bucket]
    for parameter in bucket:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    parts = [local(parameter.grad) for parameter in bucket if parameter.grad is not None]
    whole = torch.cat([*(part.flatten() for part in parts), parts[0].new_tensor(has)])
    dist.all_reduce(whole, group=group)
    _copy_back(parts, whole)
    for parameter, count in zip(bucket, whole[-len(bucket) :].tolist(), strict=True):
        if not count:
            parameter.grad = None


def _copy_back(parts: list[Tensor], whole: Tensor) -> None:
    start = 0
    for part in parts:
        part.copy_(whole[start : start + part.numel()].view_as(part))
        start += part.numel()


def norms(tensors: Sequence[Tensor], team: Team, *sums: Tensor) -> Tensor:
    """Norms of whole tensors, of which this process may hold a part, and sums of scalars over the data ranks.

    One message for all. Copies count by their share, so that one which has gone astray is seen everywhere alike.

    Returns:
        (tensors + sums,), in float64; the same in all processes.
    """
    squares = [norm.double().square() for norm in torch._foreach_norm([local(tensor) for tensor in tensors])]
    shares = [1 / _copies(tensor, team) for tensor in tensors] + [1 / team.tensor] * len(sums)
    numbers = torch.stack([*squares, *(one.detach().double() for one in sums)])
    numbers *= torch.tensor(shares, dtype=torch.float64, device=numbers.device)
    dist.all_reduce(numbers)
    return torch.cat([numbers[: len(squares)].sqrt(), numbers[len(squares) :]])


def _copies(tensor: Any, team: Team) -> int:
    """How many processes hold the same part of a tensor."""
    if not is_part(tensor):
        return team.size
    mesh, placements = tensor.device_mesh, tensor.placements
    parts = math.prod(mesh.size(place) for place, how in enumerate(placements) if not how.is_replicate())
    return team.size // parts


def scale_gradients(model: nn.Module, factor: float) -> None:
    """Multiply every gradient by the same number."""
    torch._foreach_mul_([local(p.grad) for p in model.parameters() if p.grad is not None], factor)


def reshard(model: nn.Module) -> None:
    """After passes without a backward one: give back the weights that FSDP2 has gathered and kept for that."""
    give_back: Any = getattr(model, "reshard", None)  # a method that FSDP2 has added
    if give_back is not None:
        give_back()


def whole_state(model: nn.Module, team: Team) -> dict[str, Tensor]:
    """The model's state in one piece, on the CPU of the first process; the others get nothing, but must take part."""
    reshard(model)
    state: dict[str, Tensor] = {}
    for name, tensor in model_state(model).items():
        part: Any = tensor
        full = part.full_tensor() if is_part(tensor) else tensor
        if team.first:
            state[name] = full.detach().cpu()
    return state


@contextlib.contextmanager
def in_one_piece(lm: Any, team: Team) -> Iterator[None]:
    """Within it, the model of an LM lies in one piece in the first process, on the CPU; all must take part."""
    cut = lm.model
    if team.whole:
        yield
        return
    state = whole_state(cut, team)
    try:
        if team.first:
            lm.model = GPT(cut.spec).eval()
            load_model_state(lm.model, state)
        yield
    finally:
        lm.model = cut


def split_groups(optimizer: torch.optim.Optimizer) -> None:
    """Part an optimizer's groups so that each holds tensors of one kind: one kernel cannot take parts and whole ones.

    A group's `part_of` says which one it was before; a checkpoint knows only that one.
    """
    groups: list[dict[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        kinds: dict[Any, list[Any]] = {}
        for parameter in group["params"]:
            kinds.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
        if len(kinds) > 1:
            groups += [{**group, "params": parameters, "part_of": number} for parameters in kinds.values()]
        else:
            groups.append({**group, "part_of": number})
    if len(groups) > len(optimizer.param_groups):
        optimizer.param_groups[:] = groups
