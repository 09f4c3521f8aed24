"""How good a model is on text, in figures that do not depend on its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from bimo.core.batch import Batch
from bimo.model.gpt import GPT

_CHUNK_LOGITS = 2**22  # held at once, 16 MB in float32 as in training; 64 MB made the peak of runs of small models


@torch.no_grad()  # no inference mode: weights that FSDP2 gathers in it could not be trained with afterwards
def bits_per_byte(
    model: GPT, batches: Iterable[Batch], token_bytes: Tensor, total: Callable[..., list[float]] | None = None
) -> dict[str, float]:
    """Bits that the model needs per byte of text: the compression rate it would reach with an arithmetic coder.

    Every trained target counts with its full cost, also the end of a document, whose bytes are 0.

    Args:
        model: In evaluation mode.
        batches: Held-out text.
        token_bytes: Bytes of text per id, int64, (V,).
        total: Adds up each of some numbers over the processes that share out the batches; None: there is one.

    Returns:
        `bits_per_byte`, and `valid_loss` in nats per token.
    """
    device = model.lm_head.weight.device
    token_bytes = token_bytes.to(device)
    nats, n_bytes, n_tokens = 0.0, 0.0, 0.0
    for batch in batches:
        batch = batch.to(device)
        hidden = model.hidden(batch.ids, positions=batch.positions, documents=batch.documents)  # (B, T, C)
        nats += nll(model, hidden, batch.targets, batch.weights)
        counted = batch.targets[batch.weights > 0]
        n_bytes += int(token_bytes[counted].sum())
        n_tokens += counted.numel()
    if total is not None:
        nats, n_bytes, n_tokens = total(nats, n_bytes, n_tokens)
    if n_bytes == 0:
        return {"bits_per_byte": math.nan, "valid_loss": math.nan}
    return {"bits_per_byte": nats / math.log(2) / n_bytes, "valid_loss": nats / n_tokens}


def nll(model: GPT, hidden: Tensor, targets: Tensor, weights: Tensor) -> float:
    """Negative log-likelihood in nats, summed over the targets of non-zero weight, without holding all logits."""
    hidden, targets, counted = hidden.flatten(0, 1), targets.flatten(), weights.flatten() > 0
    rows = max(1, _CHUNK_LOGITS // model.spec.vocab_size)
    total = 0.0
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        losses = F.cross_entropy(model.logits(hidden[part]).float(), targets[part], reduction="none")
        total += float(losses[counted[part]].sum())
    return total


@torch.no_grad()
def end_probability(model: GPT, batches: Iterable[Batch], end_ids: Iterable[int]) -> float:
    """Mean probability of the right token where an answer ends: a model that has not learned to end never stops.

    Args:
        model: In evaluation mode.
        batches: Held-out answers.
        end_ids: Ids that end one.

    Returns:
        NaN where no answer ends.
    """
    device = model.lm_head.weight.device
    ends = torch.tensor(sorted(end_ids), dtype=torch.int64, device=device)
    total, count = 0.0, 0
    for batch in batches:
        batch = batch.to(device)
        hidden = model.hidden(batch.ids, positions=batch.positions, documents=batch.documents)  # (B, T, C)
        here = torch.isin(batch.targets, ends) & (batch.weights > 0)
        rows = max(1, _CHUNK_LOGITS // model.spec.vocab_size)
        for states, targets in zip(hidden[here].split(rows), batch.targets[here].split(rows), strict=True):
            probabilities = model.logits(states).float().softmax(dim=-1)  # (rows, V)
            total += float(probabilities.gather(-1, targets[:, None]).sum())
            count += len(targets)
    return total / count if count else math.nan
