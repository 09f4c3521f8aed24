"""attend(q, k, v, ctx): the ways to compute softmax(q kᵀ / √D) v, chosen once, with a reason that can be printed.

`math` is the oracle: the formula as it stands. `sdpa` is torch's fused kernel (FlashAttention, Dao et al. 2022, on CUDA
and a tiled kernel of the same idea on CPU), which never holds the T x T scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bimo.model.cache import Cache


@dataclass(frozen=True, slots=True)
class AttnContext:
    """All that attention needs beside its input; built once per forward pass for each kind of layer.

    Attributes:
        cos: Cosines of the rotary angles, (B or 1, T, 1, pairs); None without rotary positions. `sin` likewise.
        mask: Which key each query may see, bool, (B or 1, 1, T, S). None: see `causal`.
        causal: Without a mask, whether query t sees keys 0 … t only, or (a single new token) all of them.
        cache: Keys and values of earlier tokens, appended to by every layer; None while training.
        scale: Multiplies the scores; None: 1 / √D.
        softcap: Bounds the scores by c tanh(score / c) before the mask; 0: no bound.
    """

    cos: Tensor | None = None
    sin: Tensor | None = None
    mask: Tensor | None = None
    causal: bool = True
    cache: Cache | None = None
    scale: float | None = None
    softcap: float = 0.0


Attend = Callable[[Tensor, Tensor, Tensor, AttnContext], Tensor]


def attend_math(q: Tensor, k: Tensor, v: Tensor, ctx: AttnContext) -> Tensor:
    """The formula, with every score in memory: slow and obvious. Shapes as in `attend_sdpa`."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)  # (B, H, S, D)
    scale = 1 / math.sqrt(q.shape[-1]) if ctx.scale is None else ctx.scale
    scores = q @ k.transpose(-2, -1) * scale  # (B, H, T, S)
    if ctx.softcap:
        scores = ctx.softcap * torch.tanh(scores / ctx.softcap)
    mask = ctx.mask
    if mask is None and ctx.causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, ctx: AttnContext) -> Tensor:
    """torch's fused attention.

    Args:
        q: Queries, (B, H, T, D).
        k: Keys, (B, K, S, D), with H a multiple of K; `v` likewise.
        ctx: What may be seen.

    Returns:
        (B, H, T, D).
    """
    if ctx.softcap:  # no fused kernel of torch has one
        return attend_math(q, k, v, ctx)
    causal, grouped = ctx.mask is None and ctx.causal, q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=ctx.mask, is_causal=causal, enable_gqa=grouped, scale=ctx.scale
    )


def attend_token(q: Tensor, k: Tensor, v: Tensor, ctx: AttnContext) -> Tensor:
    """Attention of one new token per row, T = 1, under a mask; shapes as in `attend_sdpa`.

    The query heads that share a key head become the queries of one head, so keys and values are never repeated. A
    compiler gets sums of products: it reads keys and values right out of the cache's pages, without a copy.
    """
    B, H, _, D = q.shape
    grouped = q.reshape(B, k.shape[1], -1, D)  # (B, K, G, D)
    if not torch.compiler.is_compiling():
        return attend_sdpa(grouped, k, v, ctx).reshape(B, H, 1, D)
    scale = 1 / math.sqrt(D) if ctx.scale is None else ctx.scale
    scores = (grouped.float()[:, :, :, None] * k.float()[:, :, None]).sum(-1) * scale  # (B, K, G, S)
    if ctx.softcap:
        scores = ctx.softcap * torch.tanh(scores / ctx.softcap)
    if ctx.mask is not None:
        scores = scores.masked_fill(~ctx.mask, float("-inf"))
    y = (scores.softmax(dim=-1)[..., None] * v.float()[:, :, None]).sum(-2)  # (B, K, G, D)
    return y.to(q.dtype).reshape(B, H, 1, D)


BACKENDS: dict[str, Attend] = {"math": attend_math, "sdpa": attend_sdpa}
