"""Rows of ids in flat arrays: what a text, a pair or a conversation has become when training reads it.

A million short rows are a few arrays (five bytes for each id) and not a million objects. An example is what the user
gave as one thing; one that is longer than the context is cut into several rows, and is hashed, held out and compared as
a whole. A single example, one long text, is taken row by row.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training.streams import BatchStream

_SHOWN = 3  # of the examples that give no row


@dataclass(frozen=True, slots=True, eq=False)
class TokenRows:
    """Rows side by side; row n is ids[starts[n] : starts[n + 1]].

    Attributes:
        ids: int32, (n,): of all rows; the model reads all but the last of each.
        trained: bool, (n,): whether each id counts as a target. The first of a row never does: nothing precedes it.
        starts: int64, (N + 1,): where each row begins, and the end.
        examples: int64, (N,): which example each row is a part of, ascending.
        pad: Id that fills short rows of a batch; it has weight 0.
        context_length: Most ids that the model reads at once.
    """

    ids: np.ndarray
    trained: np.ndarray
    starts: np.ndarray
    examples: np.ndarray
    pad: int
    context_length: int

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens that each row reads, int64, (N,)."""
        return np.diff(self.starts) - 1

    @property
    def is_single(self) -> bool:
        """Whether all rows come from one example."""
        return bool(self.examples[0] == self.examples[-1])

    def beginning(self, number: int, most: int = 24) -> list[int]:
        """The first ids of a row, to show."""
        return self.ids[self.starts[number] : self.starts[number + 1]][:most].tolist()  # type: ignore[no-any-return]

    def keys(self, *, by_row: bool) -> np.ndarray:
        """A hash of each row, or of the example that it is a part of: uint64, (N,). Equal content has equal keys."""
        firsts = np.arange(len(self)) if by_row else np.flatnonzero(np.diff(self.examples, prepend=-1))
        edges = self.starts[np.append(firsts, len(self))].tolist()
        keys = array("Q")
        for begin, end in pairwise(edges):
            content = self.ids[begin:end].tobytes() + self.trained[begin:end].tobytes()
            keys.frombytes(hashlib.blake2b(content, digest_size=8).digest())
        return np.repeat(np.frombuffer(keys, np.uint64), np.diff(np.append(firsts, len(self))))

    def chosen(self, keep: np.ndarray) -> TokenRows:
        """The rows for which `keep`, bool (N,), is true."""
        lengths = np.diff(self.starts)
        of_ids = np.repeat(keep, lengths)
        starts = np.append(0, np.cumsum(lengths[keep]))
        return TokenRows(
            self.ids[of_ids], self.trained[of_ids], starts, self.examples[keep], self.pad, self.context_length
        )

    def split(self, share: float) -> tuple[TokenRows, TokenRows]:
        """Rows to train on, and a share of them held out by their hash: equal examples are on one side.

        An example does not change sides when others are added, unless there are so few that a side would be empty.

        Raises:
            UserError: There is only one distinct row.
        """
        keys = self.keys(by_row=self.is_single)
        held = keys < np.uint64(share * 2.0**64)
        if not held.any():
            held = keys == keys.min()
        if held.all():
            held = keys != keys.max()
        if not held.any():
            raise UserError(
                "there is only one row, so none can be held out",
                where="validation",
                mend="Give more text, or no share.",
            )
        return self.chosen(~held), self.chosen(held)

    def batch(self, numbers: Sequence[int] | np.ndarray) -> Batch:
        """Some rows side by side, padded at the end to the longest of them."""
        begins, ends = self.starts[:-1][numbers], self.starts[1:][numbers]
        width = 8 * math.ceil((int((ends - begins).max()) - 1) / 8)  # few distinct shapes: memory is used again
        width = 1 + min(self.context_length, width)
        table = np.full((len(numbers), width), self.pad, np.int64)  # (B, T + 1)
        weights = np.zeros((len(numbers), width), np.float32)
        for place, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
            table[place, : end - begin] = self.ids[begin:end]
            weights[place, : end - begin] = self.trained[begin:end]
        ids, counts = torch.from_numpy(table), torch.from_numpy(weights)
        return Batch(ids=ids[:, :-1], targets=ids[:, 1:], weights=counts[:, 1:])

    def stream(self, batch_size: int, seed: int) -> BatchStream:
        """All rows in every epoch, each time in another order."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.ids, self.trained, self.starts):
            digest.update(np.ascontiguousarray(part).data)
        identity = {"seed": seed, "batch_size": batch_size, "data": digest.hexdigest()}
        return BatchStream(_Shuffled(self, batch_size, seed).batch, math.ceil(len(self) / batch_size), identity)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, rows of like length together, so that there is little padding."""
        order = np.argsort(np.diff(self.starts), kind="stable")
        for start in range(0, len(order), batch_size):
            yield self.batch(order[start : start + batch_size])


class _Shuffled:
    """Batches of rows by number; remembers the order of one epoch."""

    def __init__(self, rows: TokenRows, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.length = math.ceil(len(rows) / batch_size)
        self.order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def batch(self, number: int) -> Batch:
        epoch, place = divmod(number, self.length)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self.order = epoch, torch.randperm(len(self.rows), generator=generator).numpy()
        return self.rows.batch(self.order[1][place * self.batch_size : (place + 1) * self.batch_size])


class RowWriter:
    """Collects rows.

    Args:
        pad: See `TokenRows`.
        context_length: See `TokenRows`.

    Attributes:
        n_examples: How many were added.
        n_untrained: In how many of them no token is trained; they give no row.
        untrained: The names of the first few of these.
    """

    def __init__(self, pad: int, context_length: int) -> None:
        self.pad, self.context_length = pad, context_length
        self.n_examples = self.n_untrained = 0
        self.untrained: list[str] = []
        self._too_long, self._n_too_long, self._longest = "", 0, 0
        self._ids, self._trained = array("i"), bytearray()
        self._starts, self._examples = array("q", [0]), array("q")

    def add(self, ids: np.ndarray, trained: bytes, name: str, *, whole: bool = False) -> None:
        """Add an example.

        Neighbouring pieces of a long one share an id: it is the last target of one and the first that the next reads.

        Args:
            ids: int, (n,).
            trained: For each of them a byte, 1 where it is a target.
            name: What to call the example.
            whole: It must not be cut: half of an answer would be learned as a whole one.
        """
        before, T = len(self._examples), self.context_length
        if whole and len(ids) > T + 1:
            self._too_long = self._too_long or name
            self._n_too_long, self._longest = self._n_too_long + 1, max(self._longest, len(ids))
        ids = ids.astype(np.int32, copy=False)
        for start in range(0, len(ids) - 1, T):
            marks = b"\0" + trained[start + 1 : start + T + 1]
            if 1 in marks:
                self._ids.frombytes(ids[start : start + T + 1].tobytes())
                self._trained += marks
                self._starts.append(len(self._ids))
                self._examples.append(self.n_examples)
        if len(self._examples) == before:
            self.n_untrained += 1
            self.untrained += [name] * (self.n_untrained <= _SHOWN)
        self.n_examples += 1

    def table(self, ids: np.ndarray) -> TokenRows:
        """Rows of an (N, T) array, each an example that fits into the context, every id of them learned."""
        N, T = ids.shape
        trained = np.ones((N, T), np.bool_)
        trained[:, 0] = False
        starts = np.arange(0, N * T + 1, T)
        return TokenRows(ids.ravel(), trained.ravel(), starts, np.arange(N), self.pad, self.context_length)

    def rows(self) -> TokenRows:
        """All that was added.

        Raises:
            UserError: There is nothing to train on.
        """
        if self._n_too_long:
            raise UserError(
                f"input and target have more tokens together than the {self.context_length} that the model sees, like "
                f"{self._n_too_long} of {self.n_examples} rows; the longest has {self._longest}",
                where=self._too_long,
                mend="Shorten or drop them, or make the model with a larger context_length.",
            )
        if not self._examples:
            what = "no row has a token to train on" if self.n_examples else "there is no text to train on"
            where = self.untrained[0] if self.untrained else ""
            raise UserError(what, where=where, mend="Give at least one text, or one answer, that is not empty.")
        return TokenRows(
            np.frombuffer(self._ids, np.int32),
            np.frombuffer(self._trained, np.bool_),
            np.frombuffer(self._starts, np.int64),
            np.frombuffer(self._examples, np.int64),
            self.pad,
            self.context_length,
        )
