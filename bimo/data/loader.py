"""Loader: an endless, shuffled stream of Batch that is a pure function of its seed and the batch's number.

Nothing has to be remembered but that number: batch n can be had at once, so a resumed run reads on exactly where it
stopped. The order of an epoch is a pseudo-random permutation that is computed row by row, not stored; sources are mixed
in exact proportions; the ranks of a distributed run share out each batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.data.packing import PackedRows, Row

_BLOCK = 1024  # rows over which the proportions of the sources are exact
_MASK = 2**64 - 1


class Loader:
    """Batches of rows, shuffled and mixed.

    Args:
        sources: Rows to draw from.
        batch_size: Rows per batch, over all ranks.
        seed: Settles the order.
        weights: Share of each source, in any unit; None: in proportion to its rows.
        rank: Which part of each batch this process gets, of `world_size`.
    """

    def __init__(
        self,
        sources: Sequence[PackedRows],
        *,
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        lengths = [len(source) for source in sources]
        if not all(lengths):
            raise UserError("a source has no tokens to train on", mend="Give more text, or leave the source out.")
        self.sources, self.batch_size, self.seed = sources, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.quotas = _quotas(weights or lengths)
        self.block = (-1, np.empty(0, np.int64), np.empty(0, np.int64))  # the newest of `_shuffled_block`, to reuse
        self.data = "-".join(f"{source.context_length}:{source.shards.fingerprint}" for source in sources)
        self.next_batch = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.next_batch += 1
            yield self.batch(self.next_batch - 1)

    def batch(self, number: int) -> Batch:
        """Batch `number` of the stream, from 0: this rank's rows of it."""
        first = number * self.batch_size
        mine = range(first + self.rank, first + self.batch_size, self.world_size)
        if not mine:  # more processes than rows: this one takes part, and changes nothing
            return collate([self.row(first)]).without_weight()
        return collate([self.row(n) for n in mine])

    def row(self, number: int) -> Row:
        """Row `number` of the shuffled, mixed stream."""
        source, drawn = self.place(number)
        rows = self.sources[source]
        epoch, index = divmod(drawn, len(rows))
        return rows.row(permute(index, len(rows), key=_hash(self.seed, source, epoch)))

    def place(self, number: int) -> tuple[int, int]:
        """Which source row `number` of the stream comes from, and how many were drawn from that source before."""
        block, index = divmod(number, _BLOCK)
        if self.block[0] != block:
            self.block = block, *self._shuffled_block(block)
        source = int(self.block[1][index])
        return source, block * self.quotas[source] + int(self.block[2][index])

    def _shuffled_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row of a block, in random order and exact proportion, and its rank within that source."""
        random = np.random.Generator(np.random.Philox(_hash(self.seed, block)))
        sources = random.permutation(np.repeat(np.arange(len(self.quotas)), self.quotas))
        ranks = np.empty(_BLOCK, np.int64)
        for source, quota in enumerate(self.quotas):
            ranks[sources == source] = np.arange(quota)
        return sources, ranks

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {"next_batch": self.next_batch, "seed": self.seed, "batch_size": self.batch_size, "data": self.data}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch that was read last.

        Raises:
            UserError: The state is that of other data or of another order.
        """
        mine = self.state_dict()
        for name in ("seed", "batch_size"):
            if state[name] != mine[name]:
                raise UserError(
                    f"the checkpoint was made with {name} {state[name]}, this run has {mine[name]}",
                    mend="Resume with the settings of that run.",
                )
        if state["data"] != self.data:
            raise UserError(
                "the checkpoint was made with other data: these token shards are not the ones that it was reading",
                mend="Resume with the text of that run, or start a new run from its weights.",
            )
        self.next_batch = state["next_batch"]


def evaluation_batches(rows: PackedRows, batch_size: int, max_rows: int | None = None) -> Iterator[Batch]:
    """Every row once and in order, or `max_rows` of them spread evenly."""
    count = len(rows) if max_rows is None else min(max_rows, len(rows))
    chosen = [i * len(rows) // count for i in range(count)]
    for start in range(0, count, batch_size):
        yield collate([rows.row(i) for i in chosen[start : start + batch_size]])


def collate(rows: Sequence[Row]) -> Batch:
    """Rows to a Batch. Where no row holds a border, plain causal attention will do, and it is faster."""
    borders = any(row.documents[-1] > 0 for row in rows)

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(row, name) for row in rows]))  # (B, T)

    return Batch(
        ids=stack("ids"),
        targets=stack("targets"),
        weights=stack("weights"),
        positions=stack("positions") if borders else None,
        documents=stack("documents") if borders else None,
    )


def permute(index: int, size: int, key: int) -> int:
    """Where `index` goes in a pseudo-random permutation of 0 … size-1.

    A Feistel network of four rounds permutes the next power of four (Luby & Rackoff 1988); what falls outside is sent
    through again until it falls inside (cycle walking, Black & Rogaway 2002). Constant memory, a few steps per call.
    """
    assert 0 <= index < size, f"{index} is not within 0 … {size - 1}"
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << bits) - 1
    while True:
        left, right = index >> bits, index & low
        for step in range(4):
            left, right = right, left ^ (_hash(key, step, right) & low)
        index = left << bits | right
        if index < size:
            return index


def _hash(*numbers: int) -> int:
    """64 well-mixed bits of some numbers (the finalizer of SplitMix64, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def _quotas(weights: Sequence[float]) -> list[int]:
    """Rows of each source per block: proportional, at least one, the largest remainders rounded up."""
    exact = [weight / sum(weights) * _BLOCK for weight in weights]
    quotas = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: quotas[i] - exact[i])
    for i in range(_BLOCK - sum(quotas)):
        quotas[by_remainder[i % len(quotas)]] += 1
    while sum(quotas) > _BLOCK:  # many tiny sources were rounded up to one row
        quotas[quotas.index(max(quotas))] -= 1
    return quotas
