"""Scores that are one sum over another: shares and means."""

from __future__ import annotations

import numpy as np


def ratio(above: np.ndarray, below: np.ndarray, without: float = 0.0) -> np.ndarray:
    """above / below, and `without` where nothing is below; of equal shapes."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    some = below > 0
    return np.where(some, above / np.where(some, below, 1.0), without)


class Share:
    """The score of metrics whose answers contribute (part, whole): the sum of parts over the sum of wholes.

    Attributes:
        scale: What the share is multiplied with, so that tables show points of a hundred.
        without: The score where no answer has a whole.
    """

    scale = 100.0
    without = 0.0

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The score of each line of sums: (…, 2) → (…)."""
        return self.scale * ratio(sums[..., 0], sums[..., 1], self.without / self.scale)


def shares(parts: list[float] | list[bool], wholes: list[float] | list[int] | None = None) -> np.ndarray:
    """Rows of (part, whole), float64 (n, 2); without wholes each is 1."""
    whole = np.ones(len(parts)) if wholes is None else np.array(wholes, float)
    return np.stack((np.array(parts, float), whole), axis=1)
