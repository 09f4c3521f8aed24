"""A mixture of experts: each token is sent to the few feed-forward parts that a router finds fit (Shazeer et al. 2017).

As in Mixtral (Jiang et al. 2024) and Qwen3-MoE: a softmax over all experts, the best k of them, and their outputs added
up by those probabilities, which may be made to sum to 1. No token is dropped. The weights of all experts lie in one
tensor per projection.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.core.registry import REGISTRIES
from bimo.core.spec import ModelSpec


class Experts(nn.Module):
    """The weights of E gated feed-forward parts."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        E, F_, C = spec.n_experts, spec.d_expert, spec.d_model
        self.gate_proj = nn.Parameter(torch.zeros(E, F_, C))
        self.up_proj = nn.Parameter(torch.zeros(E, F_, C))
        self.down_proj = nn.Parameter(torch.zeros(E, C, F_))
        self.gate = REGISTRIES["feedforward"].get(spec.feedforward).gate

    def forward(self, x: Tensor, expert: int) -> Tensor:
        """One expert's answer to some tokens: (n, C) in and out."""
        gate, up = F.linear(x, self.gate_proj[expert]), F.linear(x, self.up_proj[expert])  # (n, F)
        return F.linear(self.gate(gate, up), self.down_proj[expert])


class MixtureOfExperts(nn.Module):
    """A router and its experts in the place of a feed-forward part: (B, T, C) in and out."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.k, self.normalize = spec.n_experts_per_token, spec.normalize_router
        self.gate = nn.Linear(spec.d_model, spec.n_experts, bias=False)
        self.experts = Experts(spec)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)  # (n, C)
        shares, chosen = self.gate(tokens).softmax(dim=-1, dtype=torch.float32).topk(self.k)  # (n, k)
        if self.normalize:
            shares = shares / shares.sum(dim=-1, keepdim=True)
        y = torch.zeros_like(tokens)
        for expert in chosen.unique().tolist():
            token, place = (chosen == expert).nonzero(as_tuple=True)
            share = shares[token, place, None].to(x.dtype)  # (n of this expert, 1)
            y = y.index_add(0, token, self.experts(tokens[token], expert) * share)
        return y.view_as(x)
