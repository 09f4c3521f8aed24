"""Packing: the stream of documents cut into rows of equal length, without one document seeing another.

Row i reads ids i T … i T + T-1 and predicts the ids one further on, so every id of the stream is a target exactly once,
except the first of a document, which nothing announces: its weight is 0. Documents are numbered within their row, and
attention stays within a number; positions count from 0 in each document. Borders come from the index, not from the ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bimo.data.shards import TokenShards


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch; all arrays are (T,). See `core.batch.Batch`."""

    ids: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    positions: np.ndarray
    documents: np.ndarray


class PackedRows:
    """Rows of T = context_length tokens over some shards; a short last row is filled up with weight 0."""

    def __init__(self, shards: TokenShards, context_length: int) -> None:
        self.shards, self.context_length = shards, context_length

    def __len__(self) -> int:
        return max(0, -(-(self.shards.n_tokens - 1) // self.context_length))

    def row(self, number: int) -> Row:
        """Row `number` of the stream, from 0."""
        T = self.context_length
        start = number * T
        stop = min(start + T + 1, self.shards.n_tokens)
        stream = self.shards.read(start, stop)
        borders = self.shards.document_starts(start, stop) - start
        n = len(stream) - 1  # predictions in this row; T but in the last
        weights = np.zeros(T, np.float32)
        weights[:n] = 1.0
        weights[borders[borders > 0] - 1] = 0.0
        inner = borders[(borders > 0) & (borders < n)]
        if n < T:
            inner = np.append(inner, n)  # the filling is a document of its own
        begins = np.zeros(T, np.int64)
        begins[inner] = inner
        documents = np.zeros(T, np.int32)
        documents[inner] = 1
        filled = np.zeros(T + 1, np.int64)
        filled[: n + 1] = stream
        return Row(
            ids=filled[:-1],
            targets=filled[1:],
            weights=weights,
            positions=np.arange(T) - np.maximum.accumulate(begins),
            documents=np.cumsum(documents, dtype=np.int32),
        )
