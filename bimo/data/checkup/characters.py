"""Blocks of documents, and which kinds of characters stand where in them: one look-up per character, in NumPy.

A check of a megabyte costs a millisecond or two where nothing is to be found: it counts, and goes into documents only
where a count says so.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

from bimo.core import unicode


class Kind(IntEnum):
    """What a character is for the checks; each is one of these. The scripts follow, see `SCRIPT_KINDS`."""

    OTHER = 0
    SPACE = 1
    DIGIT = 2
    CONTROL = 3
    HIDDEN = 4
    JOINER = 5
    DIRECTION = 6
    PRIVATE = 7
    REPLACEMENT = 8
    COMBINING = 9
    PICTORIAL = 10


SCRIPT_NAMES = (*unicode.SCRIPTS, "simplified Han", "traditional Han")
FIRST_SCRIPT = 16
"""Kind of the first of `SCRIPT_NAMES`; the others follow."""
LATIN = FIRST_SCRIPT
GREEK, CYRILLIC, HAN, KANA = (FIRST_SCRIPT + SCRIPT_NAMES.index(n) for n in ("Greek", "Cyrillic", "Han", "Kana"))
_HAN_FORMS = {  # of the most frequent characters, those that only one of the two ways to write has
    "simplified": "这来国个们为时会过学对里发后开现实与进点种声话问机给说经头长见车门东马鱼鸟龙书电气让认识请谢谁该还",
    "traditional": "這來國個們為時會過學對裡發後開現實與進點種聲話問機給說經頭長見車門東馬魚鳥龍書電氣讓認識請謝誰該還",
}


@functools.cache
def kinds_table() -> np.ndarray:
    """The kind of every code point, (0x110000,) uint8."""
    table = np.zeros(0x110000, np.uint8)
    for place, ranges in enumerate(unicode.SCRIPTS.values()):
        _paint(table, ranges, FIRST_SCRIPT + place)
    for name in ("simplified", "traditional"):
        _paint(table, _HAN_FORMS[name], FIRST_SCRIPT + SCRIPT_NAMES.index(f"{name} Han"))
    _paint(table, " \t\n\r\x0b\x0c\xa0\u2000-\u200a\u202f\u205f\u3000", Kind.SPACE)
    _paint(table, "0-9", Kind.DIGIT)
    _paint(table, unicode.CONTROLS, Kind.CONTROL)
    _paint(table, unicode.ALWAYS_INVISIBLE, Kind.HIDDEN)
    _paint(table, unicode.JOINERS + unicode.SELECTORS + unicode.TAGS, Kind.JOINER)
    _paint(table, unicode.DIRECTIONS, Kind.DIRECTION)
    _paint(table, unicode.PRIVATE, Kind.PRIVATE)
    _paint(table, unicode.REPLACEMENT, Kind.REPLACEMENT)
    _paint(table, "\u0300-\u034e\u0350-\u036f\u3099\u309a", Kind.COMBINING)
    return table


def _paint(table: np.ndarray, ranges: str, kind: int) -> None:
    for first, last in re.findall(r"(.)(?:-(.))?", ranges, flags=re.DOTALL):
        table[ord(first) : ord(last or first) + 1] = kind


@dataclass(frozen=True)
class Block:
    """Some documents of one file as one text, with line feeds between them.

    Attributes:
        texts: The documents.
        rows: Their rows.
        joined: All of them.
        starts: Where each begins in it, (documents,).
        codes: Its code points, (characters,).
        kinds: Their kinds, (characters,); None where all is ASCII without control characters.
    """

    texts: Sequence[str]
    rows: Sequence[int]
    joined: str
    starts: np.ndarray
    codes: np.ndarray
    kinds: np.ndarray | None

    @classmethod
    def of(cls, texts: Sequence[str], rows: Sequence[int]) -> Block:
        joined = "\n".join(texts)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        starts = np.concatenate(([0], np.cumsum(lengths + 1)[:-1])) if len(texts) else np.zeros(0, np.int64)
        if joined.isascii():
            data = joined.encode()
            codes = np.frombuffer(data, np.uint8)
            clean = len(data.translate(None, _PLAIN_ASCII)) == 0
            return cls(texts, rows, joined, starts, codes, None if clean else kinds_table()[codes])
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        return cls(texts, rows, joined, starts, codes, kinds_table()[codes])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Characters of each document, and one, (documents,)."""
        return np.diff(np.append(self.starts, len(self.codes) + 1))

    @cached_property
    def breaks(self) -> np.ndarray:
        """Positions of white space and of what is not ASCII, with one before the start and one at the end."""
        between = self.codes <= 32
        if self.kinds is not None:
            between |= self.codes > 126
        return np.concatenate(([-1], np.flatnonzero(between), [len(self.codes)]))

    @cached_property
    def word_lengths(self) -> np.ndarray:
        """Characters between each break and the next."""
        return np.diff(self.breaks) - 1

    def document_at(self, place: int) -> int:
        """The document that a position lies in."""
        return int(np.searchsorted(self.starts, place, side="right")) - 1

    def documents_at(self, places: np.ndarray) -> list[int]:
        """The documents that some positions lie in, in order, each once."""
        if not len(places):
            return []
        return np.unique(np.searchsorted(self.starts, places, side="right") - 1).tolist()

    def row_at(self, place: int) -> int:
        """The row of a position: in plain text its line, in a table its record."""
        return self.rows[self.document_at(place)]


_PLAIN_ASCII = bytes([9, 10, 11, 12, 13, *range(32, 127)])


def script_counts(block: Block) -> np.ndarray:
    """Letters of each script in each document, (documents, scripts); in a block of ASCII, its characters as Latin."""
    n = len(block.texts)
    counts = np.zeros((n, len(SCRIPT_NAMES)), np.int64)
    if block.kinds is None:
        counts[:, 0] = block.lengths
        return counts
    for kind in np.flatnonzero(np.bincount(block.kinds, minlength=256)[FIRST_SCRIPT:]).tolist():
        counts[:, kind] = np.add.reduceat(block.kinds == FIRST_SCRIPT + kind, block.starts, dtype=np.int32)
    return counts


def marked(text: str, markers: Sequence[str]) -> list[int]:
    """Where one of the markers stands, in order."""
    places = []
    for marker in markers:
        place = text.find(marker)
        while place >= 0:
            places.append(place)
            place = text.find(marker, place + 1)
    return sorted(places)
