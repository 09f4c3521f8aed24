"""Unlikelihood: cross-entropy that also makes repetitions improbable (Welleck et al. 2020, token level)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bimo.core.batch import Batch
from bimo.training.losses.chunks import ChunkedLoss, Each, check_range

_HELD_AT_ONCE = 2**22  # numbers of (positions, T), so that a long context costs no more than the logits of a chunk


@dataclass(frozen=True)
class Unlikelihood(ChunkedLoss):
    """-log p(target) - alpha Σ log(1 - p(c)) over the ids c that were targets earlier in the same document.

    Only trained targets are candidates: what a prompt says may be said again, and padding is nothing that was said.

    Args:
        alpha: How much repetitions count; 0: plain cross-entropy.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_range("alpha", self.alpha, 0)

    def on(self, batch: Batch) -> Each:
        targets = batch.targets.flatten()

        def each(logits: Tensor, part: slice) -> Tensor:
            log_p = logits.log_softmax(dim=-1)  # (rows, V)
            nats = -log_p.gather(-1, targets[part, None]).squeeze(-1)
            said = _said_before(batch, part, logits)
            # 1 - p cancels where p is near 1. Only the most probable id can be: the others together are its 1 - p.
            top = logits.argmax(dim=-1, keepdim=True)
            without_top = log_p.scatter(-1, top, -math.inf).logsumexp(dim=-1)
            others = torch.log1p(-log_p.exp().scatter(-1, top, 0.0))
            kept = (others * said).sum(dim=-1) + without_top * said.gather(-1, top).squeeze(-1)
            return nats - self.alpha * kept

        return each


@torch.no_grad()
def _said_before(batch: Batch, part: slice, like: Tensor) -> Tensor:
    """1 for the ids that were trained targets earlier in each position's document and are not its target, (rows, V)."""
    length = batch.targets.shape[1]
    places = torch.arange(batch.n_tokens, device=like.device)[part]
    said = torch.zeros_like(like)
    step = max(1, _HELD_AT_ONCE // length)
    for start in range(0, len(places), step):
        some = slice(start, start + step)
        rows, columns = places[some] // length, places[some] % length
        earlier = torch.arange(length, device=like.device) < columns[:, None]  # (some, T)
        earlier &= batch.weights[rows] > 0
        if batch.documents is not None:
            earlier &= batch.documents[rows] == batch.documents[rows, columns][:, None]
        said[some].scatter_add_(-1, batch.targets[rows], earlier.to(said.dtype))
    said.clamp_(max=1)
    return said.scatter_(-1, batch.targets.flatten()[part, None], 0.0)
