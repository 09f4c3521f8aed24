"""The feed-forward part of a block: each position thinks on its own.

Gated parts (Shazeer 2020) multiply one projection with an activation of another; plain parts have one projection.
SwiGLU's product can be recomputed in the backward pass, which saves the two largest activations of the block.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.core.spec import ModelSpec
from bimo.model.layers import joined
from bimo.model.recompute import cheap


class Gated(nn.Module):
    """down(activation(gate(x)) * up(x)): (B, T, C) in and out."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        bias = spec.has_bias("feedforward")
        self.gate_proj = nn.Linear(spec.d_model, spec.d_ff, bias=bias)
        self.up_proj = nn.Linear(spec.d_model, spec.d_ff, bias=bias)
        self.down_proj = nn.Linear(spec.d_ff, spec.d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = joined(x, self.gate_proj, self.up_proj)  # (B, T, F) each
        return self.down_proj(self.gate(gate, up))

    @staticmethod
    def gate(gate: Tensor, up: Tensor) -> Tensor:
        """The activated gate times `up`; any shape."""
        raise NotImplementedError


class SwiGLU(Gated):
    """Gated by SiLU: Llama, Qwen, Mistral."""

    @staticmethod
    def gate(gate: Tensor, up: Tensor) -> Tensor:
        return gated(gate, up)


class GEGLU(Gated):
    """Gated by the tanh form of GELU: Gemma."""

    @staticmethod
    def gate(gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate, approximate="tanh") * up


class GEGLUErf(Gated):
    """Gated by the exact GELU."""

    @staticmethod
    def gate(gate: Tensor, up: Tensor) -> Tensor:
        return F.gelu(gate) * up


class ReGLU(Gated):
    """Gated by ReLU."""

    @staticmethod
    def gate(gate: Tensor, up: Tensor) -> Tensor:
        return F.relu(gate) * up


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of which only gate and up are kept for the backward pass."""
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
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


class Plain(nn.Module):
    """down(activation(up(x))): (B, T, C) in and out."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        bias = spec.has_bias("feedforward")
        self.up_proj = nn.Linear(spec.d_model, spec.d_ff, bias=bias)
        self.down_proj = nn.Linear(spec.d_ff, spec.d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activate(self.up_proj(x)))

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        """The activation; any shape."""
        raise NotImplementedError


class GELU(Plain):
    """The tanh form of GELU: GPT-2."""

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class GELUErf(Plain):
    """The exact GELU: GPT-NeoX."""

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        return F.gelu(x)


class ReLU(Plain):
    """ReLU: the first transformer."""

    @staticmethod
    def activate(x: Tensor) -> Tensor:
        return F.relu(x)
