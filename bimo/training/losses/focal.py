"""Focal loss: tokens that are already right count less, so that training looks at the hard ones (Lin et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bimo.core.batch import Batch
from bimo.training.losses.chunks import ChunkedLoss, Each, check_range


@dataclass(frozen=True)
class Focal(ChunkedLoss):
    """(1 - p)^gamma x cross-entropy, where p is the probability of the target.

    Args:
        gamma: How soon a token stops to count; 0: plain cross-entropy.
    """

    gamma: float = 2.0

    position_by_position = True

    def __post_init__(self) -> None:
        check_range("gamma", self.gamma, 0)

    def on(self, batch: Batch) -> Each:
        targets = batch.targets.flatten()

        def each(logits: Tensor, part: slice) -> Tensor:
            log_p = logits.log_softmax(dim=-1).gather(-1, targets[part, None]).squeeze(-1)  # (rows,)
            # At p = 1 the slope of a root is infinite; times log p, which is 0 there, it would be NaN.
            wrong = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
            return -wrong.pow(self.gamma) * log_p

        return each
