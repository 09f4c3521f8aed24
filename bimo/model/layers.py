"""The small layers of a GPT: normalisation and positions.

- RMSNorm (Zhang & Sennrich 2019) or torch's LayerNorm; `make_norm` picks by the spec.
- Rotary positions (Su et al. 2021, RoFormer) pair dimension i with i + D/2, as Hugging Face checkpoints do. The
  rotation is one autograd function: its backward is the rotation by the negative angle, so nothing needs to be stored
  and each direction writes its output once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.core.config import ModelSpec
from bimo.model.recompute import cheap


def make_norm(spec: ModelSpec, width: int) -> nn.Module:
    """The spec's normalisation over the last dimension, of size `width`."""
    if spec.norm == "rmsnorm":
        return RMSNorm(width, spec.norm_eps)
    return nn.LayerNorm(width, eps=spec.norm_eps, bias=spec.biases == "all")


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight over the last dimension; computed in float32, returned in the dtype of x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            kept = x.detach()
            return cheap(_RMSNorm.apply(x, self.weight, self.eps), lambda: _rms_norm(kept, self.weight, self.eps)[0])
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)  # one fused kernel there


class _RMSNorm(torch.autograd.Function):
    """torch composes rms_norm of single operations on CPU; written out, it needs half the time and memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        result, scale = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = normed * grads[0]
        grad_weight = product.flatten(0, -2).sum(0)
        share = (product @ weight).div_(x.shape[-1]).unsqueeze(-1)  # mean of normed * grad * weight
        grad_x = torch.mul(grads[0], weight).addcmul_(normed, share, value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None


@torch.no_grad()
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised x, and 1 / rms of each row, (…, 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(x, scale).mul_(weight).to(x.dtype), scale


def rotary_table(spec: ModelSpec) -> Tensor:
    """Cosines and sines of every position: (2, context_length, D/2), computed in float64 and kept in float32."""
    frequency = spec.rope_theta ** -(torch.arange(0, spec.head_dim, 2, dtype=torch.float64) / spec.head_dim)
    angle = torch.outer(torch.arange(spec.context_length, dtype=torch.float64), frequency)  # (T, D/2)
    return torch.stack((angle.cos(), angle.sin())).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its angle.

    Args:
        x: Queries or keys, (B, T, H, D).
        cos: Cosines that broadcast to (B, T, H, D/2); `sin` likewise.
    """
    before: Callable[[], Tensor] = getattr(x, "again", x.detach)
    return cheap(_Rotation.apply(x, cos, sin), lambda: _turn(before(), cos, sin, direction=1))


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, direction=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, sin, direction=-1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    left, right = x.chunk(2, dim=-1)  # (B, T, H, D/2) each
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out_left, out_right = out.chunk(2, dim=-1)
    torch.mul(left, cos, out=out_left).addcmul_(right, sin, value=-direction)
    torch.mul(right, cos, out=out_right).addcmul_(left, sin, value=direction)
    return out
