"""Batch: what the data hands to the training, and nothing else crosses that seam.

All fields are aligned: column t holds what the model reads at t and what it must say next. Weights therefore belong to
targets, never to inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens with their targets; every tensor is (B, T).

    Attributes:
        ids: int64, the tokens that the model reads.
        targets: int64, the token that follows each of them.
        weights: float32, how much each target counts in the loss; 0 means not trained.
        positions: int64, place of each token within its own document, from 0. None: 0 … T-1 in every row.
        documents: int32, a number per document within the row; a token attends only to its own. None: one per row.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor | None = None
    documents: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            tensor = getattr(self, field.name)
            assert tensor is None or tensor.shape == self.ids.shape, (
                f"Batch.{field.name} has shape {tuple(tensor.shape)}, ids have {tuple(self.ids.shape)}"
            )

    @property
    def n_rows(self) -> int:
        return self.ids.shape[0]

    @property
    def n_tokens(self) -> int:
        return self.ids.numel()

    def weight_sum(self) -> float:
        """Sum of the target weights: the number of trained tokens when all weights are 0 or 1."""
        return float(self.weights.sum(dtype=_float64()))

    def split(self, rows: int) -> Iterator[Batch]:
        """Cut into micro-batches of at most `rows` rows, in order, without copying."""
        for start in range(0, self.n_rows, rows):
            yield self.part(slice(start, start + rows))

    def part(self, rows: slice | list[int]) -> Batch:
        """Some of the rows; a slice of them is not copied."""
        return self._map(operator.itemgetter(rows))

    def cut(self, length: int) -> Batch:
        """The rows in pieces of `length` tokens, one below the other, (B * T / length, length)."""
        return self._map(lambda tensor: tensor.reshape(-1, length))

    def without_weight(self) -> Batch:
        """The same rows, of which nothing is trained."""
        return replace(self, weights=self.weights * 0)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device; copies overlap with computation where memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in page-locked memory, out of which a GPU copies while it computes."""
        return self._map(lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor)

    def _map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        optional = [None if tensor is None else change(tensor) for tensor in (self.positions, self.documents)]
        return Batch(change(self.ids), change(self.targets), change(self.weights), *optional)


def _float64() -> torch.dtype:
    import torch  # here, because core loads no torch

    return torch.float64
