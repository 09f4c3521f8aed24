"""Choosing the next token from logits: each rule removes or reweights candidates, then one is drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from bimo.core.errors import UserError
from bimo.engine.request import SamplingParams


def next_token(logits: Tensor, seen: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """Draw one token id.

    Args:
        logits: The model's logits for the next token, float32, (V,), on the generator's device.
        seen: Ids of the text so far, int64, (n,), for the repetition penalty.
        params: The rules.
        generator: Source of randomness; untouched when greedy.

    Raises:
        UserError: The logits are NaN or infinite: of damaged weights, any token would look as good as another.
    """
    if not logits.max().isfinite():
        raise UserError(
            "the model's logits are NaN or infinite", mend="Its weights are damaged: `bimo verify` says where."
        )
    logits = penalize_repetition(logits, seen, params.repetition_penalty)
    if params.temperature == 0:
        return int(logits.argmax())
    probabilities = distribution(logits, params)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def distribution(logits: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities that a token is drawn from, (V,): temperature, then top-k, top-p and min-p on what is left."""
    # Subtracting the largest first keeps a tiny temperature from overflowing; below that, 0 / 0 would come.
    logits = (logits - logits.max()) / max(params.temperature, 1e-30)
    if 0 < params.top_k < logits.numel():
        kth = logits.topk(params.top_k).values[-1]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probabilities = logits.softmax(dim=-1)
    if params.top_p < 1:
        ordered, index = probabilities.sort(descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # probability of all likelier tokens
        probabilities = probabilities.index_fill(0, index[before >= params.top_p], 0.0)
    if params.min_p > 0:
        probabilities = probabilities.masked_fill(probabilities < params.min_p * probabilities.max(), 0.0)
    return probabilities / probabilities.sum()


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of the ids in `seen` by the penalty (CTRL, equation 2)."""
    if penalty == 1 or seen.numel() == 0:
        return logits
    ids = seen.unique()
    scores = logits[ids]
    return logits.index_copy(0, ids, torch.where(scores > 0, scores / penalty, scores * penalty))
