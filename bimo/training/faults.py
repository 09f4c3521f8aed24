"""Fault: what goes wrong inside a training step, seen before the weights change.

A fault is an error for people that somebody may mend first: the loop asks every callback (`on_fault`), and only a fault
that nobody mends is raised.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from bimo.core.batch import Batch
from bimo.core.errors import UserError


class Fault(UserError):  # noqa: N818  # the field's word
    """Something is wrong with this step; the weights are those of the step before.

    Args:
        kind: One of a few words, for example "non-finite loss"; what is counted and written to `events.jsonl`.
        what: What is wrong, one clause.
        mend: What a person can do about it.
        facts: Figures that belong to it.
    """

    def __init__(self, kind: str, what: str, *, mend: str = "", **facts: Any) -> None:
        super().__init__(what, mend=mend)
        self.kind, self.facts = kind, facts


def check_batch(batch: Batch, vocab_size: int, step: int, *, shared: bool = False) -> None:
    """Whether a batch can be trained on; a look at it costs less than a thousandth of a step.

    Args:
        batch: What was read.
        vocab_size: Ids that the model knows.
        step: The one that it is for.
        shared: It is a part of a batch, in which another part may be all that counts.

    Raises:
        Fault: It is empty, nothing in it counts, or it holds ids that the model does not have.
    """
    trained = batch.weight_sum()
    if trained == 0 and not (shared and batch.n_tokens):
        raise nothing_to_train_on(batch, step)
    if not math.isfinite(trained) or batch.weights.min() < 0:
        raise Fault(
            "bad weights",
            f"the batch of step {step} has weights that are negative or not finite",
            mend="Give weights of 0 and above.",
        )
    if batch.ids.is_floating_point() or batch.targets.is_floating_point():
        raise Fault(
            "unreadable batch",
            f"the batch of step {step} has ids or targets that are no whole numbers",
            mend="Give int64.",
        )
    bounds = [tensor.aminmax() for tensor in (batch.ids, batch.targets)]
    low, high = min(int(b.min) for b in bounds), max(int(b.max) for b in bounds)
    if low < 0 or high >= vocab_size:
        raise Fault(
            "ids outside the vocabulary",
            f"the batch of step {step} has ids from {low} to {high}, the model knows 0 … {vocab_size - 1}",
            mend="Use the tokenizer that the model was made for.",
        )


def nothing_to_train_on(batch: Batch, step: int) -> Fault:
    """The fault of a batch in which nothing counts."""
    what = "has no rows" if batch.n_tokens == 0 else "has no token to train on: every weight is 0"
    return Fault("nothing to train on", f"the batch of step {step} {what}", mend="Check that the data has targets.")


def check_finite(loss: float, norm: float, step: int) -> None:
    """Stop before a NaN or an infinity reaches the weights.

    Raises:
        Fault: There is one.
    """
    if not math.isfinite(loss + norm):
        raise Fault(
            "non-finite gradient" if math.isfinite(loss) else "non-finite loss",
            f"loss {loss} and gradient norm {norm} at step {step}; the weights are those of the step before",
            mend="Lower the learning rate, look at the batch, or look at your own loss with bimo.testing.check_loss.",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is used up; on CPU torch raises a plain RuntimeError for that."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )
