"""The loss of a head of labels: cross-entropy at the one position of a row whose target is the number of its label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training.losses.chunks import ChunkedLoss, Each


@dataclass(frozen=True, eq=False)
class LabelLoss(ChunkedLoss):
    """Negative log-likelihood of labels, in nats; targets of trained positions are numbers of labels, not ids.

    Args:
        head: Hidden states (…, C) → logits (…, labels).
    """

    head: nn.Linear

    def on(self, batch: Batch) -> Each:
        raise UserError("a head of labels reads hidden states", where="loss", mend="Use `sum`.")

    def logits(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the trained positions, (N, labels), their labels and their weights, (N,)."""
        here = batch.weights > 0
        return self.head(hidden[here].float()), batch.targets[here], batch.weights[here]

    def sum(self, hidden: Tensor, head: Tensor, batch: Batch, softcap: float = 0.0) -> Tensor:
        """Weighted sum over the rows of a batch; the model's own head plays no part."""
        logits, labels, weights = self.logits(hidden, batch)
        return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()

    @torch.no_grad()
    def right(self, hidden: Tensor, batch: Batch) -> int:
        """How many rows of a batch get their label."""
        logits, labels, _ = self.logits(hidden, batch)
        return int((logits.argmax(dim=-1) == labels).sum())
