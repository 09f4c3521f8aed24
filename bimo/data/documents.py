"""Document: what readers hand on. Problem: what they could not read, in words for people."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Document:
    """One text, and where it came from.

    Attributes:
        text: The text.
        file: The file it was read from.
        row: The line or table row where it begins, from 1.
        fields: The whole record, where it came from a table.
    """

    text: str
    file: str
    row: int
    fields: Mapping[str, object] = field(default_factory=dict, compare=False)

    @property
    def fingerprint(self) -> int:
        """64 bits of a hash of the text alone: equal texts have equal fingerprints, wherever they stand."""
        return int.from_bytes(hashlib.blake2b(self.text.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that could not be read.

    Attributes:
        file: Where it is.
        row: Line or table row, from 1; 0 for the file as a whole.
        what: What is wrong, in one clause.
        mend: What to do about it.
    """

    file: str
    row: int
    what: str
    mend: str

    def __str__(self) -> str:
        place = f"{self.file}, line {self.row}" if self.row else self.file
        return f"{place}: {self.what}. {self.mend}"


OnProblem = Callable[[Problem], None]


def is_validation(document: Document, share: float) -> bool:
    """Whether a document is held out: decided by its text alone, so copies of one text never stand on both sides."""
    return document.fingerprint < share * 2**64
