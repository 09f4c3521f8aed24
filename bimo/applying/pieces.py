"""A document as the pieces that are translated one by one, and the document again out of their translations."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bimo.applying.checking import needs_words
from bimo.applying.results import Notice
from bimo.tasks.layout import LayoutPart, layout, wrapped
from bimo.tasks.portions import portions
from bimo.tasks.sentences import sentences

WITHOUT_SPACES = frozenset({"zh", "ja", "th"})
"""Languages that set no spaces between sentences."""
_CUT_THROUGH = {"clause": "at a clause", "word": "between two words", "character": "inside a word"}


@dataclass(frozen=True, slots=True)
class Piece:
    """What is translated in one go.

    Attributes:
        text: Without the white space around it.
        line: 1-based line where its paragraph begins.
        part: Number of its part of the layout.
        before: White space before it.
        after: White space behind it.
        spoken: Whether there is anything to translate.
        notices: What is to be said about how it was cut.
    """

    text: str
    line: int
    part: int
    before: str
    after: str
    spoken: bool
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """A document, cut.

    Attributes:
        parts: Its layout.
        pieces: What is translated, in order.
    """

    parts: tuple[LayoutPart, ...]
    pieces: tuple[Piece, ...] = field(default=())

    def whole(self, texts: Sequence[str], target: str) -> str:
        """The document with a text in place of each piece.

        Args:
            texts: One for each piece.
            target: Code of their language, which settles whether spaces stand between sentences.
        """
        said: dict[int, list[tuple[Piece, str]]] = {}
        for piece, text in zip(self.pieces, texts, strict=True):
            said.setdefault(piece.part, []).append((piece, text))
        return "".join(
            _part(part, said.get(number, []), target) if part.spoken else part.text
            for number, part in enumerate(self.parts)
        )


def planned(text: str, most: int, per_piece: int, count: Callable[[str], int]) -> Plan:
    """Cut a document along its layout and its sentences.

    Args:
        text: The document.
        most: Tokens that a piece may have.
        per_piece: Tokens up to which sentences go together; 0: each goes alone.
        count: How many tokens a text takes.
    """
    parts = tuple(layout(text))
    ends = [match.start() for match in re.finditer("\n", text)]
    pieces: list[Piece] = []
    for number, part in enumerate(parts):
        if not part.spoken:
            continue
        line = bisect_right(ends, part.start - 1) + 1
        limit = min(most, per_piece) if per_piece else most
        for sentence in [part.said] if per_piece else sentences(part.said):
            for portion in portions(sentence, limit, count):
                body = portion.text.strip()
                before, _, after = portion.text.partition(body) if body else (portion.text, "", "")
                notices: tuple[Notice, ...] = ()
                if portion.cut:
                    what = f"a sentence of more than {limit} tokens was cut {_CUT_THROUGH[portion.cut]}"
                    notices = (Notice(what, line, body),)
                pieces.append(Piece(body, line, number, before, after, needs_words(body), notices))
    return Plan(parts, tuple(pieces))


def _part(part: LayoutPart, said: Sequence[tuple[Piece, str]], target: str) -> str:
    whole = ""
    for number, (piece, text) in enumerate(said):
        last = number == len(said) - 1
        after = piece.after
        if not last and target in WITHOUT_SPACES:
            after = "" if after == " " and piece.spoken and not text[-1:].isascii() else after
        elif not last and not after and not said[number + 1][0].before and piece.spoken:
            after = " " if text[-1:] in ".!?…:;,\"'”’»)" else after
        whole += piece.before + text + after
    return wrapped(whole, part.width, part.indent) if part.width else whole
