"""Checks of single characters: what cannot be seen, what was lost, what was decoded wrongly, what only looks right."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bimo.core import unicode
from bimo.data.checkup.characters import CYRILLIC, GREEK, HAN, LATIN, Block, Kind
from bimo.data.checkup.kinds import excerpt
from bimo.data.checkup.mojibake import LEADS, mojibake
from bimo.data.encodings import CONTROL

Spot = tuple[str, int, int, str]
"""Kind of finding, document of the block, position in the document, and what is wrong there, one clause."""


def character_spots(block: Block) -> Iterator[Spot]:
    """Everything that is wrong with single characters in a block; each kind once in a document."""
    if block.kinds is None:
        return
    counts = np.bincount(block.kinds, minlength=256)
    for kind, find in _SIMPLE.items():
        if counts[kind]:
            yield from _in_documents(block, np.flatnonzero(block.kinds == kind), find)
    if counts[Kind.HIDDEN] or counts[Kind.JOINER] or counts[Kind.DIRECTION]:
        hidden = np.flatnonzero((block.kinds >= Kind.HIDDEN) & (block.kinds <= Kind.DIRECTION))
        yield from _in_documents(block, hidden, _hidden)
    if counts[LATIN] and (counts[CYRILLIC] or counts[GREEK]):
        yield from _in_documents(block, _mixed_places(block), _forged)
    yield from _in_documents(block, _mojibake_places(block, counts), _mojibake)


def _in_documents(
    block: Block, places: np.ndarray, find: Callable[[str], Iterator[tuple[str, int, str]]]
) -> Iterator[Spot]:
    for document in block.documents_at(places):
        for kind, place, what in find(block.texts[document]):
            yield kind, document, place, what


def _control(text: str) -> Iterator[tuple[str, int, str]]:
    places = [i for i, c in enumerate(text) if unicodedata.category(c) == "Cc" and c not in "\t\n\r\x0b\x0c"]
    strict = next((i for i in places if CONTROL.match(text[i])), places[0])
    yield "control character", strict, f"{_named(text, strict)} in {excerpt(text, strict)}{_more(places)}"


def _private(text: str) -> Iterator[tuple[str, int, str]]:
    places = [i for i, c in enumerate(text) if unicodedata.category(c) == "Co"]
    yield "private use character", places[0], f"{_named(text, places[0])} in {excerpt(text, places[0])}{_more(places)}"


def _replacement(text: str) -> Iterator[tuple[str, int, str]]:
    if "U+FFFD" in text:  # the text is about it
        return
    place = text.index("\ufffd")
    n = text.count("\ufffd")
    what = f"U+FFFD, the mark of a lost character, in {excerpt(text, place)}{_more(range(n))}"
    yield "replacement character", place, what


def _combining(text: str) -> Iterator[tuple[str, int, str]]:
    if not unicodedata.is_normalized("NFC", text):
        composed = unicodedata.normalize("NFC", text)
        place = next((i for i, (a, b) in enumerate(zip(text, composed, strict=False)) if a != b), 0)
        yield "not normalised", place, f"letter and accent are two characters in {excerpt(text, place)} (not NFC)"


_SIMPLE: dict[Kind, Callable[[str], Iterator[tuple[str, int, str]]]] = {
    Kind.CONTROL: _control,
    Kind.PRIVATE: _private,
    Kind.REPLACEMENT: _replacement,
    Kind.COMBINING: _combining,
}


def _hidden(text: str) -> Iterator[tuple[str, int, str]]:
    found: dict[str, list[int]] = {}
    for place, character in unicode.hidden_places(text):
        kind = "bidirectional control" if unicode.is_direction(character) else "invisible character"
        found.setdefault("byte order mark" if character == "\ufeff" else kind, []).append(place)
    for kind, places in found.items():
        yield kind, places[0], f"{_named(text, places[0])} in {excerpt(text, places[0])}{_more(places)}"


def _mixed_places(block: Block) -> np.ndarray:
    """Where a Latin letter and one of another alphabet touch."""
    assert block.kinds is not None, "only blocks with kinds are looked at"
    latin = block.kinds == LATIN
    other = (block.kinds == CYRILLIC) | (block.kinds == GREEK)
    return np.flatnonzero((latin[:-1] & other[1:]) | (other[:-1] & latin[1:]))


def _forged(text: str) -> Iterator[tuple[str, int, str]]:
    words = list(unicode.forged_words(text))
    if words:
        place, word = words[0]
        foreign = next(c for c in word if not c.isascii())
        what = f"{word!r} mixes alphabets: {unicode.character_name(foreign)} among Latin letters{_more(words)}"
        yield "look-alike letters", place, what


def _mojibake_places(block: Block, counts: np.ndarray) -> np.ndarray:
    """Where wrongly decoded text may begin: two neighbours that UTF-8 makes of one, or rare Chinese characters."""
    codes = block.codes
    leads = np.flatnonzero((codes[:-1] >= 0xA1) & (codes[:-1] <= 0xFE))
    following = codes[leads + 1]
    places = [leads[((following >= 0x80) & (following <= 0xFF)) | np.isin(following, _CP1252_CODES)]]
    if counts[HAN]:
        suspects = np.isin(codes, _HAN_SUSPECTS)
        places.append(np.flatnonzero(suspects))
    return np.concatenate(places)


_CP1252_CODES = np.array(
    [ord(bytes([b]).decode("cp1252")) for b in range(0x80, 0xA0) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)]
)
_HAN_SUSPECTS = np.array([ord(c) for c in sorted(LEADS | set("锟烫屯"))])


def _mojibake(text: str) -> Iterator[tuple[str, int, str]]:
    found = list(mojibake(text))
    if found:
        start, end, right = found[0]
        was = f", which was {excerpt(right, 0, min(30, len(right)), 0)}" if right else ""
        what = f"{excerpt(text, start, min(end, start + 30), 0)} is text that was decoded wrongly{was}{_more(found)}"
        yield "mojibake", start, what


def _named(text: str, place: int) -> str:
    return unicode.character_name(text[place])


def _more(found: Sequence[object]) -> str:
    return f", and {len(found) - 1} more in it" if len(found) > 1 else ""
