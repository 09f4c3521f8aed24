"""Pairs of rows for preferences: the better answer, then the worse one, always in the same batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bimo.core.batch import Batch
from bimo.training.rows import TokenRows


@dataclass(frozen=True)
class PairRows:
    """Rows 2 i and 2 i + 1 are a pair; the weights of its trained tokens sum to 1, so that a mean is over pairs.

    Attributes:
        rows: All of them.
    """

    rows: TokenRows

    def __len__(self) -> int:
        return len(self.rows) // 2

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair in a batch: twice the longer row, int64, (pairs,)."""
        return 2 * (np.diff(self.rows.starts) - 1).reshape(-1, 2).max(axis=1)

    def batch(self, numbers: Sequence[int] | np.ndarray) -> Batch:
        """Some pairs, one below the other."""
        numbers = np.asarray(numbers)
        batch = self.rows.batch(np.stack([2 * numbers, 2 * numbers + 1], axis=1).ravel())
        counts = batch.weights.reshape(len(numbers), -1).sum(dim=1)  # (pairs,)
        return replace(batch, weights=batch.weights / torch.repeat_interleave(counts, 2)[:, None])

    def in_order(self, most_rows: int) -> Iterator[Batch]:
        """Every pair once."""
        step = max(1, most_rows // 2)
        order = np.argsort(self.lengths, kind="stable")
        for n in range(math.ceil(len(self) / step)):
            yield self.batch(order[n * step : (n + 1) * step])

    def chosen(self, keep: np.ndarray) -> PairRows:
        """The pairs for which `keep`, bool (pairs,), is true."""
        return PairRows(self.rows.chosen(np.repeat(keep, 2)))
