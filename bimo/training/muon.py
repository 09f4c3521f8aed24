"""Muon: matrices are changed by their orthogonalised momentum, everything else by AdamW.

The gradient of a matrix has a few directions in which it is large, and AdamW follows those. Muon (Jordan et al. 2024)
replaces the momentum by the nearest matrix whose singular values are all 1, so that rare directions are learned as
fast. The nearest one is found by products alone, an iteration of Newton and Schulz with the coefficients of Polar
Express (Amsel et al. 2025). What is a matrix by its shape only (embeddings, the head, a router) is left to AdamW, as
are vectors.

A matrix that is many small ones side by side (the heads of attention, groups of neurons) is orthogonalised block by
block (Boreiko et al. 2025): that is what the blocks are to each other, and costs a fraction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_step

from bimo.core.config import TrainingSettings
from bimo.training.parts import local, made_whole, placed

# Each triple (a, b, c) maps singular values s to a s + b s³ + c s⁵; the sequence brings 0.001 … 1 close to 1 fastest.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# Rates as shares of the rate of the matrices, found at two widths (docs/experiments.md). A tied embedding is the head,
# too, and learns more carefully.
_EMBEDDING, _TIED, _OTHERS = 2.5, 0.25, 0.5
_INNER_BLOCKS = 4  # parts of the feed-forward width, orthogonalised one by one: better and cheaper than in one
_SAFETY = 1.02  # a norm that rounding made too small would let the iteration diverge


def orthogonalized(matrices: Tensor, iterations: int = 4, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest matrices with all singular values near 1, (N, m, n) in and out.

    Args:
        matrices: Any scale; zeros stay zeros.
        iterations: At most 5. After 4, singular values from 0.03 of the norm on lie within 0.5 … 1.6, after 5 within
            0.7 … 1.3.
        dtype: To compute in; the iteration forgives the rounding of bf16. None: that of the matrices.
    """
    x = matrices.to(dtype or matrices.dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) * _SAFETY + 1e-7)
    for a, b, c in POLAR_EXPRESS[:iterations]:
        gram = x @ x.mT  # (N, m, m)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for some groups, AdamW for the others.

    A group with `"blocks": n` holds matrices, each of n blocks side by side along dimension `"along"`. All of its
    matrices have one shape and are orthogonalised in one go. The step of a matrix is its rate times sqrt(max(1, rows /
    columns)), so that a rate fits every width (Bernstein 2025).

    Args:
        groups: Parameter groups; `lr`, `weight_decay`, and for matrices `momentum`, for the rest `betas`.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        defaults = {"lr": 0.02, "weight_decay": 0.0, "momentum": 0.9, "betas": (0.9, 0.95), "eps": 1e-10}
        super().__init__(groups, defaults | {"blocks": 0, "along": 0, "rate_share": 1.0, "rounded": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Change the weights by their gradients; parameters without one stay."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._step_matrices if group["blocks"] else self._step_others)(parameters, group)
        return result

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        kept = [local(self._state(p, "momentum_buffer")) for p in parameters]
        momentum = group["momentum"]
        torch._foreach_lerp_(kept, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, kept, momentum)  # Nesterov's look ahead
        rows, columns = parameters[0].shape[-2:]
        # A matrix is orthogonal as a whole: where processes hold parts of it, each puts it together and takes its part.
        whole = [made_whole(part, p) for part, p in zip(ahead, parameters, strict=True)]
        blocks = _cut(torch.stack(whole), group["blocks"], group["along"])  # (N, n, rows, columns) of a block
        # On a GPU in bf16, like the rest of the step, unless the run was told to be exact.
        dtype = torch.bfloat16 if blocks.is_cuda and group["rounded"] else None
        steps = _joined(orthogonalized(blocks.flatten(0, -3), dtype=dtype).view(blocks.shape), group["along"])
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        changed = [local(placed(step, p)) for step, p in zip(steps.unbind(0), parameters, strict=True)]
        own = [local(p) for p in parameters]
        if group["weight_decay"]:
            torch._foreach_mul_(own, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(own, changed, alpha=-rate)

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        state = [self.state[p] for p in parameters]
        for p, kept in zip(parameters, state, strict=True):
            if not kept:
                kept["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                kept["exp_avg"], kept["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        adamw_step(
            [local(p) for p in parameters],
            [local(p.grad) for p in parameters if p.grad is not None],
            [local(kept["exp_avg"]) for kept in state],
            [local(kept["exp_avg_sq"]) for kept in state],
            [],
            [kept["step"] for kept in state],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _state(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        tensor: Tensor = state[name]
        return tensor


def _cut(matrices: Tensor, n: int, along: int) -> Tensor:
    """(…, R, C) to n blocks side by side, (…, n, R / n, C) along the rows or (…, n, R, C / n) along the columns."""
    if along == 0:
        return matrices.unflatten(-2, (n, -1))
    return matrices.unflatten(-1, (n, -1)).transpose(-2, -3)


def _joined(blocks: Tensor, along: int) -> Tensor:
    """The inverse of `_cut`."""
    return blocks.flatten(-3, -2) if along == 0 else blocks.transpose(-2, -3).flatten(-2)


def muon(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Muon for the matrices of the blocks, AdamW for embeddings, head, routers and vectors."""
    matrices: defaultdict[tuple[Any, ...], list[nn.Parameter]] = defaultdict(list)
    rest: defaultdict[float, list[nn.Parameter]] = defaultdict(list)
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.dim() >= 2 and name.startswith("layers.") and not name.endswith(".mlp.gate.weight"):
            matrices[(*p.shape, *_blocks_of(model, name, p))].append(p)
        else:
            rest[_share_of(model, name)].append(p)
    betas = (settings.beta1, settings.beta2)
    common = {"momentum": settings.momentum, "weight_decay": settings.weight_decay}
    common |= {"rounded": settings.precision != "fp32"}
    groups: list[dict[str, Any]] = [
        {"params": same, "blocks": blocks, "along": along, **common} for (*_, blocks, along), same in matrices.items()
    ]
    groups += [{"params": same, "betas": betas, "rate_share": share} for share, same in rest.items()]
    return Muon([{"lr": settings.learning_rate * group.get("rate_share", 1.0), **group} for group in groups])


def _share_of(model: nn.Module, name: str) -> float:
    """The rate of a parameter that is left to AdamW, as a share of the rate of the matrices."""
    if not name.startswith("embed_tokens."):
        return _OTHERS
    return _TIED if getattr(getattr(model, "spec", None), "tied_embeddings", True) else _EMBEDDING


def _blocks_of(model: nn.Module, name: str, parameter: nn.Parameter) -> tuple[int, int]:
    """How many blocks a matrix has, and along which dimension they lie: 0 for its rows, 1 for its columns."""
    along = int(name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")))
    size = parameter.shape[-2 + along]
    head_dim = getattr(getattr(model, "spec", None), "head_dim", 0)
    blocks = size // head_dim if ".self_attn." in name and head_dim else _INNER_BLOCKS if ".mlp." in name else 1
    return (blocks, along) if blocks and size % blocks == 0 else (1, along)
