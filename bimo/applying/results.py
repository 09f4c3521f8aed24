"""What comes of applying a model: the text, what it is made of, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that the user should know.

    Attributes:
        what: One clause without a full stop.
        line: 1-based line of the source; 0: all of it.
        piece: The part of the source that it is about.
    """

    what: str
    line: int = 0
    piece: str = ""

    def __str__(self) -> str:
        words = self.piece.split()
        start = " ".join(words[:6])[:60] + (" …" if len(words) > 6 or len(self.piece) > 60 else "")
        place = f"line {self.line}" if self.line else ""
        place += f" ({start!r})" if start and place else ""
        return f"{place}: {self.what}" if place else self.what


@dataclass(frozen=True, slots=True)
class TranslatedPiece:
    """A sentence, or what was translated in one go.

    Attributes:
        source: What was asked.
        text: What came of it.
        line: 1-based line of the source where its paragraph begins.
        attempts: How often the model was asked; 0: there is nothing to translate in it.
        notices: What is still wrong.
    """

    source: str
    text: str
    line: int
    attempts: int = 0
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Translated:
    """A translation; `str()` gives its text.

    Attributes:
        text: The whole, in the layout of the source.
        pieces: What was translated in one go, in order.
        notices: What is to be said about the whole.
    """

    text: str
    pieces: tuple[TranslatedPiece, ...]
    notices: tuple[Notice, ...] = ()

    @property
    def warnings(self) -> tuple[Notice, ...]:
        """All that is to be said, in the order of the source."""
        return (*self.notices, *(notice for piece in self.pieces for notice in piece.notices))

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class SummarizedPart:
    """A part of a document that has a summary of its own.

    Attributes:
        start: Where it begins, in characters.
        end: Where it ends.
        line: 1-based line where it begins.
        summary: What went on from it.
    """

    start: int
    end: int
    line: int
    summary: str


@dataclass(frozen=True, slots=True)
class Summarized:
    """A summary; `str()` gives its text.

    Attributes:
        text: The summary.
        parts: The parts of the document, in order and without gaps; one when it was read as a whole.
        levels: How often summaries were summarised again; 0: the document was read as a whole.
        warnings: What is to be said.
    """

    text: str
    parts: tuple[SummarizedPart, ...]
    levels: int = 0
    warnings: tuple[Notice, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Classified:
    """A label; `str()` gives it.

    Attributes:
        label: The likeliest one.
        probabilities: Of all labels; 1 together.
        warnings: What is to be said.
    """

    label: str
    probabilities: Mapping[str, float]
    warnings: tuple[Notice, ...] = ()

    def __str__(self) -> str:
        return self.label
