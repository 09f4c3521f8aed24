"""Multi-head self-attention: several heads look back over the text and mix what they find (Vaswani et al. 2017).

Grouped queries (Ainslie et al. 2023): H query heads share K key/value heads, which shrinks the cache by H / K.
Positions, masks and the cache come in one `AttnContext`; how the softmax is computed is a backend's affair.
"""

from __future__ import annotations

from torch import Tensor, nn

from bimo.core.spec import ModelSpec
from bimo.model.backends import Attend, AttnContext
from bimo.model.layers import joined, make_norm, rotate


class Attention(nn.Module):
    """Self-attention of one block: (B, T, C) in, (B, T, C) out."""

    def __init__(self, spec: ModelSpec, layer: int, attend: Attend) -> None:
        super().__init__()
        self.layer, self.head_dim, self.attend = layer, spec.head_dim, attend
        width, kv_width = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        bias = spec.has_bias("qkv")
        self.q_proj = nn.Linear(spec.d_model, width, bias=bias)
        self.k_proj = nn.Linear(spec.d_model, kv_width, bias=bias)
        self.v_proj = nn.Linear(spec.d_model, kv_width, bias=bias)
        self.o_proj = nn.Linear(width, spec.d_model, bias=spec.has_bias("o"))
        self.norm_across_heads = spec.qk_norm and spec.qk_norm_across_heads
        q_width, k_width = (width, kv_width) if self.norm_across_heads else (spec.head_dim, spec.head_dim)
        self.q_norm = make_norm(spec, q_width) if spec.qk_norm else nn.Identity()
        self.k_norm = make_norm(spec, k_width) if spec.qk_norm else nn.Identity()

    def forward(self, x: Tensor, ctx: AttnContext) -> Tensor:
        B, T, _ = x.shape
        q, k, v = joined(x, self.q_proj, self.k_proj, self.v_proj)
        q, k = self._normalised(q, k)  # (B, T, H, D), (B, T, K, D)
        v = v.unflatten(-1, (-1, self.head_dim))  # (B, T, K, D)
        if ctx.cos is not None and ctx.sin is not None:
            q, k = rotate(q, ctx.cos, ctx.sin), rotate(k, ctx.cos, ctx.sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or K, T, D)
        if ctx.cache is not None:
            k, v = ctx.cache.append(self.layer, k, v)  # (B, K, S, D)
        y = self.attend(q, k, v, ctx)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)

    def _normalised(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys by heads, (B, T, H, D) and (B, T, K, D), after their norms."""
        if self.norm_across_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.unflatten(-1, (-1, self.head_dim)), k.unflatten(-1, (-1, self.head_dim))
        return (q, k) if self.norm_across_heads else (self.q_norm(q), self.k_norm(k))
