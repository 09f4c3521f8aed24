"""How well targets were foreseen: perplexity for each token, and bits for each byte, whatever the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bimo.evaluation.answer import circumstances
from bimo.evaluation.scores.ratio import ratio
from bimo.tasks.task import TaskExample


class Perplexity:
    """exp of the mean negative log-likelihood of a target's token; only models with one tokenizer can be compared.

    Examples of which nothing is known do not count; without any it is NaN.
    """

    name = "perplexity"
    higher_is_better = False

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """Nats and tokens: (n, 2)."""
        seen = [how.foresight for how in circumstances(answers)]
        return np.array([(s.nats, s.tokens) if s else (0, 0) for s in seen], float).reshape(-1, 2)

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The perplexity of each line of sums: (…, 2) → (…)."""
        return np.exp(np.minimum(ratio(sums[..., 0], sums[..., 1], np.nan), 700.0))  # e**700 is still finite


class BitsPerByte:
    """Bits that the target needs for each byte of it; models with different tokenizers can be compared.

    Examples of which nothing is known do not count; without any it is NaN.
    """

    name = "bits per byte"
    higher_is_better = False

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """Bits and bytes: (n, 2)."""
        seen = [how.foresight for how in circumstances(answers)]
        return np.array([(s.nats / math.log(2), s.bytes) if s else (0, 0) for s in seen], float).reshape(-1, 2)

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The bits of each line of sums: (…, 2) → (…)."""
        return ratio(sums[..., 0], sums[..., 1], np.nan)
