"""Several records in one row of a batch, none of which sees another: no padding, and every batch of one shape.

Records are put into rows by best-fit decreasing (Johnson 1974) on their exact lengths, once; which record of a length
takes which place, and the order of the rows, is another one in every epoch. A record keeps its targets and weights, its
positions begin at 0, and attention stays within it, so loss and gradient are those of the same records without packing.
Rows of several tasks stand side by side in a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from bimo.core.batch import Batch
from bimo.training.grouping import data_digest, pattern_of
from bimo.training.rows import TokenRows
from bimo.training.streams import BatchStream

_SHAPES = 8  # widths of a batch there may be: a batch of few records is not filled up to the whole context
Packed = tuple[TokenRows, np.ndarray]
"""Records, and which of them stand in a row."""


def packed(parts: Sequence[TokenRows], weights: Sequence[float], n_rows: int, length: int, seed: int) -> BatchStream:
    """Batches of at most `n_rows` full rows; every record of a single part comes once in an epoch.

    Args:
        parts: Records of each task; none has more than `length` tokens.
        weights: Share of each in the rows, in any unit; positive.
        n_rows: Of a batch.
        length: Tokens of a row.
        seed: Of the order.
    """
    sources = [_Packing(part, length, seed) for part in parts]
    pattern = pattern_of(weights, seed) if len(parts) > 1 else np.zeros(1, np.int64)
    before = [np.concatenate(([0], np.cumsum(pattern == source))) for source in range(len(parts))]
    total = sum(map(len, sources))
    count = -(-total // n_rows)

    def row(number: int) -> Packed:
        cycle, place = divmod(number, len(pattern))
        source = int(pattern[place])
        return sources[source].row(cycle * int(before[source][-1]) + int(before[source][place]))

    def batch(number: int) -> Batch:
        epoch, place = divmod(number, count)
        first, end = (epoch * total + n * total // count for n in (place, place + 1))  # sizes differ by one at most
        return packed_batch([row(n) for n in range(first, end)], length)

    digest = hashlib.blake2b("".join(map(data_digest, parts)).encode(), digest_size=16).hexdigest()
    shares = ", ".join(f"{weight:g}" for weight in weights)
    identity = {"seed": seed, "packed rows": n_rows, "tokens of a row": length, "weights": shares, "data": digest}
    return BatchStream(batch, count, identity)


def packed_batch(rows: Sequence[Packed], length: int) -> Batch:
    """Rows of records, one behind the other; what is left of a row is a document of its own with weight 0."""
    widest = max(int(part.lengths[numbers].sum()) for part, numbers in rows)
    step = max(1, length // _SHAPES)
    width = min(length, -(-widest // step) * step)
    ids = np.zeros((len(rows), width), np.int64)
    targets, positions = np.zeros_like(ids), np.zeros_like(ids)
    documents, weights = np.zeros(ids.shape, np.int32), np.zeros(ids.shape, np.float32)
    for place, (part, numbers) in enumerate(rows):
        end = 0
        for document, number in enumerate(numbers.tolist()):
            first, last = part.starts[number], part.starts[number + 1]
            here = slice(end, end := end + int(last - first) - 1)
            ids[place, here], targets[place, here] = part.ids[first : last - 1], part.ids[first + 1 : last]
            weights[place, here] = part.trained[first + 1 : last]
            positions[place, here], documents[place, here] = np.arange(last - first - 1), document
        ids[place, end:] = targets[place, end:] = part.pad
        positions[place, end:], documents[place, end:] = np.arange(width - end), len(numbers)
    return Batch(*map(torch.from_numpy, (ids, targets, weights, positions, documents)))


def packed_size(lengths: np.ndarray, length: int) -> int:
    """How many rows of `length` tokens hold records of these lengths."""
    return len(_fitted(np.sort(lengths), length)[1]) - 1


class _Packing:
    """Which records stand in which row; remembers the order of one epoch."""

    def __init__(self, records: TokenRows, length: int, seed: int) -> None:
        self.records, self.seed = records, seed
        self.lengths = records.lengths
        self.places, self.edges = _fitted(np.sort(self.lengths), length)
        self.epoch: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.edges) - 1

    def row(self, number: int) -> Packed:
        epoch, place = divmod(number, len(self))
        if self.epoch[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            by_length = np.lexsort((rng.random(len(self.records)), self.lengths))
            self.epoch = epoch, by_length, rng.permutation(len(self))
        _, by_length, order = self.epoch
        chosen = int(order[place])
        return self.records, by_length[self.places[self.edges[chosen] : self.edges[chosen + 1]]]


def _fitted(ascending: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit decreasing: each record, the longest first, goes where the least room is left behind it.

    Args:
        ascending: Lengths of the records, sorted.
        length: Of a row.

    Returns:
        Places in `ascending`, row by row, int64, (N,), and where each row begins among them, with the end.
    """
    assert ascending[-1] <= length, f"a record of {ascending[-1]} tokens does not fit into a row of {length}"
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by what is left of them
    rooms = 0  # bit n: there is a row with room n
    for place in range(len(ascending) - 1, -1, -1):
        size = int(ascending[place])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            rooms &= ~(1 << room) if not with_room[room] else -1
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(place)
        with_room[room - size].append(row)
        rooms |= 1 << (room - size)
    edges = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    return np.array([place for row in rows for place in row], np.int64), edges
