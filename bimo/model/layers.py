"""The small layers of a GPT: normalisation, and the turning of queries and keys.

- RMSNorm (Zhang & Sennrich 2019) or torch's LayerNorm; `make_norm` picks by the spec.
- `rotate` pairs dimension i with i + pairs, as Hugging Face checkpoints do. It is one autograd function: its backward
  is the rotation by the negative angle, so nothing needs to be stored and each direction writes its output once.
- `joined` computes several projections of one input.

Where torch's compiler reads this, it is given the plain formulas: it fuses them better than anything written by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.core.registry import REGISTRIES
from bimo.core.spec import ModelSpec
from bimo.model.recompute import cheap


def make_norm(spec: ModelSpec, width: int) -> nn.Module:
    """The spec's normalisation over the last dimension, of size `width`."""
    norm: nn.Module = REGISTRIES["norm"].get(spec.norm)(spec, width)
    return norm


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm (Ba et al. 2016), with a bias where the feed-forward part has one."""

    def __init__(self, spec: ModelSpec, width: int) -> None:
        super().__init__(width, eps=spec.norm_eps, bias=spec.has_bias("feedforward"))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight over the last dimension; computed in float32, returned in the dtype of x."""

    offset = 0.0
    """Added to the weight."""

    def __init__(self, spec: ModelSpec, width: int) -> None:
        super().__init__()
        self.eps = spec.norm_eps
        self.weight = nn.Parameter(torch.full((width,), 1.0 - self.offset))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.offset if self.offset else self.weight
        if torch.compiler.is_compiling():
            return _plain_rms_norm(x, weight, self.eps)
        if x.device.type == "cpu":
            kept, kept_weight = x.detach(), weight.detach()
            return cheap(_RMSNorm.apply(x, weight, self.eps), lambda: _rms_norm(kept, kept_weight, self.eps)[0])
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), self.eps)  # one fused kernel there


class RMSNorm1p(RMSNorm):
    """RMSNorm whose weight counts from 1 (Gemma): weight decay pulls it towards doing nothing."""

    offset = 1.0


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


def _plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The formula."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype)


@torch.no_grad()
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normalised x, and 1 / rms of each row, (…, 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(x, scale).mul_(weight).to(x.dtype), scale


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + pairs]) by its angle; dimensions beyond the pairs stay as they are.

    Args:
        x: Queries or keys, (B, T, H, D).
        cos: Cosines that broadcast to (B, T, H, pairs), with pairs at most D / 2; `sin` likewise.
    """
    if torch.compiler.is_compiling():
        return _plain_turn(x, cos, sin)
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


def _plain_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The formula."""
    pairs = cos.shape[-1]
    left, right = x[..., :pairs], x[..., pairs : 2 * pairs]  # (B, T, H, pairs) each
    turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)
    return torch.cat((turned, x[..., 2 * pairs :]), dim=-1) if 2 * pairs < x.shape[-1] else turned


def joined(x: Tensor, *projections: nn.Module) -> list[Tensor]:
    """Several projections of the same input, (…, C) to (…, width of each).

    To the compiler they are one matrix product of the joined weights: it reads the input once and fills a GPU better,
    and the joining costs no more than the cast of the weights that it is fused with. Projections that somebody has
    replaced, hooked or cut over several processes are left alone. Where an engine has laid the weights side by side
    (`joining.py`), they are one product without a compiler, too.
    """
    whole = getattr(projections[0], "whole", None)
    if whole is not None and not any(p._forward_hooks for p in projections):
        return list(whole(x).split([p.out_features for p in projections], dim=-1))
    plain = all(type(p) is nn.Linear and type(p.weight) is nn.Parameter and not p._forward_hooks for p in projections)
    if not (plain and torch.compiler.is_compiling()):
        return [projection(x) for projection in projections]
    linears = [cast(nn.Linear, projection) for projection in projections]
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    weight = torch.cat([linear.weight.to(x.dtype) for linear in linears])
    y = F.linear(x, weight, torch.cat(biases) if len(biases) == len(linears) else None)
    return list(y.split([linear.out_features for linear in linears], dim=-1))


def _turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    pairs = cos.shape[-1]
    left, right = x[..., :pairs], x[..., pairs : 2 * pairs]  # (B, T, H, pairs) each
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out_left, out_right = out[..., :pairs], out[..., pairs : 2 * pairs]
    torch.mul(left, cos, out=out_left).addcmul_(right, sin, value=-direction)
    torch.mul(right, cos, out=out_right).addcmul_(left, sin, value=direction)
    if 2 * pairs < x.shape[-1]:
        out[..., 2 * pairs :] = x[..., 2 * pairs :]
    return out
