"""Streams of batches that know where they are: rows of tokens, and lists of ready batches.

Batch n of a stream is a pure function of its seed and n, so a run that is resumed, or set back by a few steps, reads on
exactly where it stood. An iteration ends with the epoch; the next one goes on with the next epoch, in another order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from bimo.core.batch import Batch
from bimo.core.errors import UserError


@runtime_checkable
class Resumable(Protocol):
    """A stream of batches that knows where it is."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One text as ids, or a piece of one.

    Attributes:
        ids: int64, (N,); the model reads all but the last.
        weights: float32, (N,): how much each id counts as a target. The first is never one: nothing precedes it.
    """

    ids: np.ndarray
    weights: np.ndarray


class BatchStream:
    """Batches by number, with a position.

    Args:
        make: Gives batch n of the stream, from 0; the first epoch holds 0 … length - 1.
        length: Batches per epoch.
        identity: What must be the same on resume, name → value.
    """

    def __init__(self, make: Callable[[int], Batch], length: int, identity: dict[str, Any]) -> None:
        self.make, self.length, self.identity = make, length, identity
        self.next_batch = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < self.length:
            raise IndexError(f"there are {self.length} batches in an epoch, {number} is not one of them")
        return self.make(number)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.next_batch += 1
            yield self.make(self.next_batch - 1)
            if self.next_batch % self.length == 0:
                return

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {"next_batch": self.next_batch, **self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch that was read last.

        Raises:
            UserError: The state is that of other data, or of another order.
        """
        check_identity(state, self.identity)
        self.next_batch = state["next_batch"]


class _ShuffledRows:
    """Rows side by side, shuffled anew in every epoch."""

    def __init__(self, rows: Sequence[TokenRow], batch_size: int, seed: int, pad: int, longest: int) -> None:
        self.rows, self.batch_size, self.seed, self.pad, self.longest = rows, batch_size, seed, pad, longest
        self.length = math.ceil(len(rows) / batch_size)
        self.order: tuple[int, list[int]] = (-1, [])  # of one epoch

    def batch(self, number: int) -> Batch:
        epoch, place = divmod(number, self.length)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self.order = epoch, torch.randperm(len(self.rows), generator=generator).tolist()
        chosen = self.order[1][place * self.batch_size : (place + 1) * self.batch_size]
        return padded([self.rows[i] for i in chosen], self.pad, self.longest)


def stream_rows(rows: Sequence[TokenRow], *, batch_size: int, seed: int, pad: int, longest: int) -> BatchStream:
    """Rows as shuffled batches, padded at the end to the longest row of each.

    Args:
        rows: What to read; each has at least two ids.
        batch_size: Rows per batch.
        seed: Settles the order.
        pad: Id that fills short rows; it has weight 0.
        longest: Most ids that the model reads at once.

    Raises:
        UserError: There is no row.
    """
    if not rows:
        raise UserError("there is no text to train on", mend="Give at least one text that is not empty.")
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(row.ids.tobytes() + row.weights.tobytes())
    shuffled = _ShuffledRows(rows, batch_size, seed, pad, longest)
    identity = {"seed": seed, "batch_size": batch_size, "data": digest.hexdigest()}
    return BatchStream(shuffled.batch, shuffled.length, identity)


def stream_batches(batches: Sequence[Batch]) -> BatchStream:
    """Ready batches, again and again in their order."""
    digest = hashlib.blake2b("".join(map(fingerprint, batches)).encode(), digest_size=16)
    return BatchStream(lambda number: batches[number % len(batches)], len(batches), {"data": digest.hexdigest()})


def padded(rows: Sequence[TokenRow], pad: int, longest: int) -> Batch:
    """Rows side by side; padding has weight 0."""
    width = max(len(row.ids) for row in rows) - 1
    width = 1 + min(longest, 8 * math.ceil(width / 8))  # few distinct shapes let the allocator reuse its memory
    table = np.full((len(rows), width), pad, np.int64)  # (B, T + 1)
    weights = np.zeros((len(rows), width), np.float32)
    for place, row in enumerate(rows):
        table[place, : len(row.ids)] = row.ids
        weights[place, : len(row.ids)] = row.weights
    ids, counts = torch.from_numpy(table), torch.from_numpy(weights)
    return Batch(ids=ids[:, :-1], targets=ids[:, 1:], weights=counts[:, 1:])


def fingerprint(batch: Batch) -> str:
    """A short hash of what a batch reads, says and weighs: the same batch has the same, on every device."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (batch.ids, batch.targets, batch.weights):
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()


def check_identity(state: dict[str, Any], mine: dict[str, Any]) -> None:
    """The saved position must belong to this stream.

    Raises:
        UserError: It does not; it says what differs.
    """
    words = {"data": "the data", "tokens": "the prepared tokens"}
    for name, value in mine.items():
        if state.get(name) != value:
            shown = words.get(name) or f"{name} (now {value}, then {state.get(name)})"
            raise UserError(
                f"the checkpoint was made with other data: {shown} differs",
                mend="Resume with the data and settings of that run, or start a new run from its weights.",
            )


def repeated(data: Iterable[Batch]) -> Iterator[Batch]:
    """The batches again and again; an iterator that ends cannot be repeated and says so."""
    while True:
        empty = True
        for batch in data:
            if not isinstance(batch, Batch):
                raise UserError(
                    f"the data gives {type(batch).__name__} and not Batch", mend="Text needs a tokenizer: use LM.fit."
                )
            empty = False
            yield batch
        if empty:
            raise UserError("the data has no (further) batches", mend="Give a list or an endless iterator of Batch.")
