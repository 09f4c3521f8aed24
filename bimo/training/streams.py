"""Streams of batches that know where they are.

Batch n of a stream is a pure function of its seed and n, so a run that is resumed, or set back by a few steps, reads on
exactly where it stood. An iteration ends with the epoch; the next one goes on with the next epoch, in another order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training.team import Team


@runtime_checkable
class Resumable(Protocol):
    """A stream of batches that knows where it is."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


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


def stream_batches(batches: Sequence[Batch]) -> BatchStream:
    """Ready batches, again and again in their order.

    Raises:
        UserError: Something among them is no batch.
    """
    for number, batch in enumerate(batches):
        if not isinstance(batch, Batch):
            raise UserError(f"{type(batch).__name__} is no Batch", where=f"inputs[{number}]", mend="Leave it out.")
    digest = hashlib.blake2b("".join(map(fingerprint, batches)).encode(), digest_size=16)
    return BatchStream(lambda number: batches[number % len(batches)], len(batches), {"data": digest.hexdigest()})


def fingerprint(batch: Batch) -> str:
    """A short hash of what a batch reads, says and weighs: the same rows have the same, on every device."""
    return f"{_hash_of_rows(batch):032x}"


def shared_fingerprint(batch: Batch, team: Team) -> str:
    """That of the whole batch, of which this process has some rows; however many processes share it out."""
    own = _hash_of_rows(batch) if batch.weight_sum() else 0
    rows = team.gathered([float(own >> shift & 0xFFFFFFFF) for shift in (0, 32, 64, 96)])[:: team.tensor]
    total = sum(int(word) << shift for row in rows for word, shift in zip(row, (0, 32, 64, 96), strict=True))
    return f"{total % 2**128:032x}"


def _hash_of_rows(batch: Batch) -> int:
    """The sum of the hashes of the rows that count, so that parts of a batch add up to it."""
    tensors = [np.ascontiguousarray(t.cpu().numpy()) for t in (batch.ids, batch.targets, batch.weights)]
    rows = (hashlib.blake2b(b"".join(t[n].tobytes() for t in tensors), digest_size=16) for n in range(batch.n_rows))
    return sum(int.from_bytes(row.digest(), "big") for row in rows) % 2**128


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
