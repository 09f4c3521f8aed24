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
