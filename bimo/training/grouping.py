"""Batches of rows of like length, and batches of several sources in turn: little padding, and to each its share."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from bimo.core.batch import Batch
from bimo.training.pairs import PairRows
from bimo.training.rows import TokenRows
from bimo.training.streams import BatchStream

_STEP = 8  # rows are padded to a multiple of it
_CYCLE = 1000  # batches after which the order of the sources begins anew


def grouped(rows: TokenRows | PairRows, tokens: int, seed: int) -> BatchStream:
    """Shuffled batches of about `tokens` tokens each, whose rows are of like length.

    Which rows of a length are together, and the order of the batches, is another one in every epoch; batch n is a pure
    function of the seed and n.

    Args:
        rows: What to read.
        tokens: Of a batch, padding included; at least one row is in each.
        seed: Of the order.
    """
    order = _Grouped(rows, tokens, seed)
    plain = rows.rows if isinstance(rows, PairRows) else rows
    identity = {"seed": seed, "tokens_per_batch": tokens, "data": data_digest(plain)}
    return BatchStream(order.batch, len(order.edges) - 1, identity)


def data_digest(rows: TokenRows) -> str:
    """A hash of all rows, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (rows.ids, rows.trained, rows.starts):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def grouped_sizes(lengths: np.ndarray, tokens: int) -> list[tuple[int, int]]:
    """Rows and width, padding included, of each batch that `grouped` makes of rows of these lengths."""
    steps = np.sort(-(-lengths // _STEP))
    return [(end - start, int(steps[end - 1]) * _STEP) for start, end in pairwise(_edges(steps, tokens))]


def mixed(streams: Sequence[BatchStream], weights: Sequence[float], seed: int) -> BatchStream:
    """Batches out of several streams, each with its share of them, whatever their lengths.

    Args:
        streams: Each goes on with its own next epoch when it has been read.
        weights: Share of each, in any unit; positive.
        seed: Of the order.
    """
    if len(streams) == 1:
        return streams[0]
    pattern = pattern_of(weights, seed)
    before = [np.concatenate(([0], np.cumsum(pattern == source))) for source in range(len(streams))]

    def batch(number: int) -> Batch:
        cycle, place = divmod(number, len(pattern))
        source = int(pattern[place])
        return streams[source].make(cycle * int(before[source][-1]) + int(before[source][place]))

    identity = {f"source {n} {k}": v for n, stream in enumerate(streams) for k, v in stream.identity.items()}
    shares = ", ".join(f"{weight:g}" for weight in weights)
    return BatchStream(batch, sum(map(len, streams)), {**identity, "weights": shares, "seed": seed})


class _Grouped:
    """Remembers the order of one epoch."""

    def __init__(self, rows: TokenRows | PairRows, tokens: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.lengths = -(-rows.lengths // _STEP)  # in steps of padding
        self.edges = _edges(np.sort(self.lengths), tokens)
        self.epoch: tuple[int, np.ndarray, np.ndarray] = (-1, np.empty(0, np.int64), np.empty(0, np.int64))

    def batch(self, number: int) -> Batch:
        epoch, place = divmod(number, len(self.edges) - 1)
        if self.epoch[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            by_length = np.lexsort((rng.random(len(self.rows)), self.lengths))
            self.epoch = epoch, by_length, rng.permutation(len(self.edges) - 1)
        _, by_length, batches = self.epoch
        chosen = int(batches[place])
        return self.rows.batch(by_length[self.edges[chosen] : self.edges[chosen + 1]])


def _edges(ascending: np.ndarray, tokens: int) -> list[int]:
    """Where batches of about `tokens` tokens begin among rows of these lengths, in steps of padding; and the end."""
    edges, first = [0], 0
    for place, length in enumerate(ascending.tolist()):
        if place > first and (place + 1 - first) * length * _STEP > tokens:
            edges.append(place)
            first = place
    return [*edges, len(ascending)]


def pattern_of(weights: Sequence[float], seed: int) -> np.ndarray:
    """Which source each batch, or row, of a cycle comes from: every source at least once, the others by weight."""
    shares = np.array(weights, np.float64) / sum(weights)
    counts = np.maximum(1, np.round(shares * _CYCLE)).astype(np.int64)
    pattern = np.repeat(np.arange(len(weights)), counts)
    return np.random.default_rng(seed).permutation(pattern)
