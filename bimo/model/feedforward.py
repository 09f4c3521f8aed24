"""The feed-forward part of a block: each position thinks on its own.

`SwiGLU` (Shazeer 2020) gates one projection with the other; its product can be recomputed in the backward pass, which
saves the two largest activations of the block.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.core.config import ModelSpec
from bimo.model.recompute import cheap


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): (B, T, C) in and out."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        bias = spec.biases == "all"
        self.gate_proj = nn.Linear(spec.d_model, spec.d_ff, bias=bias)
        self.up_proj = nn.Linear(spec.d_model, spec.d_ff, bias=bias)
        self.down_proj = nn.Linear(spec.d_ff, spec.d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of which only gate and up are kept for the backward pass."""
    kept = gate.detach(), up.detach()
    return cheap(_Gate.apply(gate, up), lambda: F.silu(kept[0]).mul_(kept[1]))


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return grad_gate, F.silu(gate).mul_(grads[0])


class GELU(nn.Module):
    """fc_out(gelu(fc_in(x))), GPT-2's part: (B, T, C) in and out."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        bias = spec.biases == "all"
        self.up_proj = nn.Linear(spec.d_model, spec.d_ff, bias=bias)
        self.down_proj = nn.Linear(spec.d_ff, spec.d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


FEEDFORWARDS: dict[str, type[SwiGLU] | type[GELU]] = {"swiglu": SwiGLU, "gelu": GELU}
