"""Preference: of two answers to the same prompt, the better one shall be likelier.

Rows of a batch come in pairs, the better answer first. With L the log-likelihood of an answer,

    DPO (Rafailov et al. 2023):    -log σ(beta (L(better) - L(worse) - L_ref(better) + L_ref(worse)))
    SimPO (Meng et al. 2024):      -log σ(beta (L(better) / n - L(worse) / n') - gamma), without a reference

A pair's loss depends on its rows through two numbers. Their slopes are known in closed form, so the gradient is that of
a cross-entropy whose rows are weighed by them: no more logits are held than a chunk of them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training.losses.chunks import ChunkedLoss, Each, check_range, chunk_rows, wide
from bimo.training.losses.likelihood import CrossEntropy

Reference = Callable[[Batch], tuple[Tensor, Tensor]]
"""A batch → last hidden states (B, T, C) and head (V, C) of the model that likelihoods are compared with."""


class Preference(ChunkedLoss):
    """A loss of pairs; rows 2 i and 2 i + 1 of a batch are the better and the worse answer of pair i.

    The weights of a pair's tokens say which are trained; their sum is the weight of the pair.
    """

    rows_together = 2

    @abstractmethod
    def pairs(self, likelihoods: Tensor, counts: Tensor, reference: Tensor) -> Tensor:
        """The loss of each pair, (P,), before weights.

        Args:
            likelihoods: Sum of the log-probabilities of each answer's tokens, (P, 2), better first.
            counts: How many these are, (P, 2).
            reference: The same sums by the reference, (P, 2); zeros where there is none.
        """

    def reference_likelihoods(self, batch: Batch, softcap: float) -> Tensor:
        """(B,); zeros where no reference is needed."""
        return torch.zeros(batch.n_rows, device=batch.ids.device)

    def on(self, batch: Batch) -> Each:
        raise UserError("a preference is of pairs of rows", where="loss", mend="Use `sum`.")

    def margins(self, hidden: Tensor, head: Tensor, batch: Batch, softcap: float = 0.0) -> Tensor:
        """How much likelier the better answer is than the worse one, against the reference, in nats: (P,)."""
        own = answer_likelihoods(hidden, head, batch, softcap) - self.reference_likelihoods(batch, softcap)
        return own.view(-1, 2)[:, 0] - own.view(-1, 2)[:, 1]

    def sum(self, hidden: Tensor, head: Tensor, batch: Batch, softcap: float = 0.0) -> Tensor:
        """Sum over pairs, each with its weight."""
        likelihoods = answer_likelihoods(hidden, head, batch, softcap)
        reference = self.reference_likelihoods(batch, softcap)
        counts, weights = (batch.weights > 0).sum(dim=1), batch.weights.sum(dim=1)
        with torch.enable_grad():
            leaf = likelihoods.detach().requires_grad_()
            losses = self.pairs(leaf.view(-1, 2), counts.view(-1, 2), reference.view(-1, 2))
            value = (losses * weights.view(-1, 2).sum(dim=1)).sum()
            [slopes] = torch.autograd.grad(value, leaf)  # (B,): of the sum by the likelihood of each row
        rows = Batch(batch.ids, batch.targets, (batch.weights > 0) * -slopes[:, None], batch.positions, batch.documents)
        linear = CrossEntropy().sum(hidden, head, rows, softcap)
        return linear + (value.detach() - linear.detach())

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The plain form, with all logits (B, T, V) in memory: the mean over pairs, without a reference."""
        log_p = -F.cross_entropy(wide(logits).flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        trained = weights > 0
        likelihoods = (log_p * trained).sum(dim=1)  # (B,)
        losses = self.pairs(
            likelihoods.view(-1, 2), trained.sum(dim=1).view(-1, 2), torch.zeros_like(likelihoods).view(-1, 2)
        )
        return (losses * weights.sum(dim=1).view(-1, 2).sum(dim=1)).sum() / weights.sum()


@dataclass(frozen=True, eq=False)
class DirectPreference(Preference):
    """DPO: the better answer gains on the worse one, measured against a reference that stays.

    Args:
        beta: How far from the reference the model may go; smaller is further.
        reference: What the answers' likelihoods are compared with. `bimo train` gives the model that it began with.
    """

    beta: float = 0.1
    reference: Reference | None = None

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 1e-6)

    def pairs(self, likelihoods: Tensor, counts: Tensor, reference: Tensor) -> Tensor:
        gain = likelihoods - reference
        return -F.logsigmoid(self.beta * (gain[:, 0] - gain[:, 1]))

    @torch.no_grad()
    def reference_likelihoods(self, batch: Batch, softcap: float) -> Tensor:
        if self.reference is None:
            raise UserError("dpo needs a reference", where="loss", mend="Give one, or use simpo, which does without.")
        return answer_likelihoods(*self.reference(batch), batch, softcap)


@dataclass(frozen=True, eq=False)
class SimplePreference(Preference):
    """SimPO: the better answer shall be likelier per token than the worse one, by a margin; no reference is needed.

    Args:
        beta: Scales the difference per token.
        gamma: The margin.
    """

    beta: float = 2.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_range("beta", self.beta, 1e-6)
        check_range("gamma", self.gamma, 0)

    def pairs(self, likelihoods: Tensor, counts: Tensor, reference: Tensor) -> Tensor:
        each = likelihoods / counts.clamp_min(1)
        return -F.logsigmoid(self.beta * (each[:, 0] - each[:, 1]) - self.gamma)


@torch.no_grad()
def answer_likelihoods(hidden: Tensor, head: Tensor, batch: Batch, softcap: float = 0.0) -> Tensor:
    """Sum of the log-probabilities of each row's trained tokens, float32, (B,), without holding all logits."""
    places = (batch.weights > 0).flatten().nonzero().squeeze(-1)
    rows = places // batch.targets.shape[1]
    states, targets = hidden.flatten(0, -2)[places], batch.targets.flatten()[places]
    found = torch.zeros(batch.n_rows, device=hidden.device)
    step = chunk_rows(hidden.device, head.shape[0])
    for start in range(0, len(places), step):
        part = slice(start, start + step)
        logits = wide(states[part] @ head.T.to(states.dtype))  # (step, V)
        logits = softcap * torch.tanh(logits / softcap) if softcap else logits
        log_p = logits.gather(-1, targets[part, None]).squeeze(-1) - logits.logsumexp(dim=-1)
        found.index_add_(0, rows[part], log_p.to(found.dtype))
    return found
