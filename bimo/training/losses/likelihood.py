"""Cross-entropy, the default, with two additions whose gradients have a closed form: label smoothing and z-loss.

With log Z = log Σ exp(z), smoothing ε and coefficient c, a position costs

    log Z - (1 - ε) z[target] - ε mean(z) + c (log Z)²

and its gradient is softmax(z) (1 + 2 c log Z) - (1 - ε) onehot(target) - ε / V, computed in place of the logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bimo.core.batch import Batch
from bimo.training.losses.chunks import COMPILED, ChunkedLoss, ChunkFunction, Each, check_range, wide


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The plain form of the default loss, with all logits in memory: mean negative log-likelihood in nats."""
    nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (nats * weights.flatten()).sum() / weights.sum()


def chunked_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, softcap: float = 0.0
) -> Tensor:
    """Weighted sum of the negative log-likelihood in nats, from hidden states (B, T, C) and the head (V, C)."""
    return CrossEntropy().sum(hidden, head, Batch(targets, targets, weights), softcap)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(ChunkedLoss):
    """Negative log-likelihood of the target, in nats; both additions by name, so that none is taken for the other.

    Args:
        epsilon: Share of the probability that is asked for all ids alike, instead of for the target.
        coefficient: How much the square of log Z counts.
    """

    epsilon: float = 0.0
    coefficient: float = 0.0

    position_by_position = True

    def __post_init__(self) -> None:
        check_range("epsilon", self.epsilon, 0, 1)
        check_range("coefficient", self.coefficient, 0)

    def on(self, batch: Batch) -> Each:
        targets = batch.targets.flatten()

        def each(logits: Tensor, part: slice) -> Tensor:
            return self._nats(logits, targets[part, None], logits.logsumexp(dim=-1, keepdim=True)).squeeze(-1)

        return each

    def chunk_function(self, batch: Batch) -> ChunkFunction:
        targets, weights = batch.targets.flatten(), batch.weights.flatten()

        def fused(logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
            target = targets[part, None]  # (rows, 1)
            if wanted and COMPILED.get():
                return _compiled()(self, logits, target, weights[part, None])
            logits = wide(logits)
            weight = weights[part, None].to(logits.dtype)
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            total = (self._nats(logits, target, log_sum) * weight).sum()
            if not wanted:
                return total, None
            pull = weight * (1 + 2 * self.coefficient * log_sum) if self.coefficient else weight
            grad = logits.sub_(log_sum).exp_().mul_(pull)  # softmax x weight, in place of the logits
            if self.epsilon:
                grad.sub_(weight * (self.epsilon / logits.shape[-1]))
            return total, grad.scatter_add_(-1, target, weight * (self.epsilon - 1))

        return fused

    def _nats(self, logits: Tensor, target: Tensor, log_sum: Tensor) -> Tensor:
        """The loss of each position, (rows, 1)."""
        right = logits.gather(-1, target)
        if self.epsilon:
            right = (1 - self.epsilon) * right + self.epsilon * logits.mean(dim=-1, keepdim=True)
        nats = log_sum - right
        return nats + self.coefficient * log_sum.square() if self.coefficient else nats


@functools.cache
def _compiled() -> Callable[[CrossEntropy, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The compiler makes one pass over the logits of this, where single operations make ten."""
    compiled: Callable[[CrossEntropy, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    compiled = torch.compile(_sum_and_gradient, dynamic=False)
    return compiled


def _sum_and_gradient(loss: CrossEntropy, logits: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What `CrossEntropy.chunk_function` gives, changing nothing in place; the gradient in the dtype of the logits."""
    dtype, logits = logits.dtype, wide(logits)
    weight = weight.to(logits.dtype)  # (rows, 1)
    log_sum = logits.logsumexp(dim=-1, keepdim=True)
    total = (loss._nats(logits, target, log_sum) * weight).sum()
    pull = weight * (1 + 2 * loss.coefficient * log_sum) if loss.coefficient else weight
    grad = (logits - log_sum).exp() * pull - weight * (loss.epsilon / logits.shape[-1])
    right = torch.arange(logits.shape[-1], device=logits.device) == target  # (rows, V)
    return total, (grad - torch.where(right, weight * (1 - loss.epsilon), 0.0)).to(dtype)


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(CrossEntropy):
    """Cross-entropy that asks for a share `epsilon` of the probability for all ids alike (Szegedy et al. 2016)."""

    epsilon: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ZLoss(CrossEntropy):
    """Cross-entropy that keeps log Z near 0, so that logits do not drift away (PaLM, Chowdhery et al. 2022)."""

    coefficient: float = 1e-4
