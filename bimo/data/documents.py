"""Document: one text with the place it came from, the contract between the readers and everything after them.

Problem is what a reader says about text that it cannot give: where it lies, what is wrong, how to mend it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b


@dataclass(frozen=True, slots=True)
class Document:
    """A text and its place.

    Lines of `text` end in a plain line feed, whatever the file had; it holds no lone surrogates, so it always encodes.
    """

    text: str
    file: str
    """The file as it was found, or 'standard input'."""
    row: int
    """1-based line (in a parquet file: row) where the document begins."""
    fields: Mapping[str, object] = field(default_factory=dict, hash=False)
    """The whole record of a table row; empty for plain text."""

    @property
    def fingerprint(self) -> int:
        """64 bits of BLAKE2b over the UTF-8 text: the same for the same text, on every machine."""
        return int.from_bytes(blake2b(self.text.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Problem:
    """Text that could not be read. `str()` gives the sentence for people."""

    file: str
    row: int
    """1-based line or row; 0 means the whole file."""
    what: str
    """What is wrong, one clause without a full stop."""
    mend: str = ""
    """What to do about it, as an instruction."""

    @property
    def where(self) -> str:
        """'notes.txt, line 812', or only the file."""
        rows = ".parquet" in self.file.lower()
        return f"{self.file}, {'row' if rows else 'line'} {self.row}" if self.row else self.file

    def __str__(self) -> str:
        sentence = f"{self.where}: {self.what}"
        return f"{sentence}. {self.mend}" if self.mend else sentence


ProblemHandler = Callable[[Problem], None]


class UnreadableError(Exception):
    """Raised inside the readers when the rest of a file cannot be read; `read_documents` turns it into a Problem."""

    def __init__(self, what: str, mend: str = "", row: int = 0) -> None:
        self.what, self.mend, self.row = what, mend, row
        super().__init__(what)
