"""A text in portions of at most so many tokens, cut where it hurts least: sentences, clauses, words, characters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import regex

from bimo.tasks.sentences import sentences

Cut = Literal["", "clause", "word", "character"]
Count = Callable[[str], int]
"""How many tokens a text takes."""

_CLAUSES = re.compile(r"(?:[^,;:，；：、،؛—–\n]++|[,;:—–](?!\s))*+(?:[,;:—–]\s++|[，；：、،؛\n]++\s*+|\Z)")
_WORDS = re.compile(r"\s*+\S++\s*+|\s++")
_CHARACTERS = regex.compile(r"\X")
_MOST_CHARACTERS = 64  # no user-perceived character is honestly longer; a chain of marks may be


@dataclass(frozen=True, slots=True)
class Portion:
    """A part of a text.

    Attributes:
        text: The part; joined in order, all of them are the text.
        start: Where it begins, in characters.
        cut: What its end cuts through: "" (nothing: a sentence ends), a sentence at a clause or between words, or a
            word between two characters.
    """

    text: str
    start: int
    cut: Cut = ""


def portions(text: str, most: int, count: Count) -> list[Portion]:
    """Cut a text into portions of at most `most` tokens, as long as sentence borders allow.

    Args:
        text: What is cut.
        most: Tokens of a portion; a single character may have more.
        count: How many tokens a text takes.
    """
    assert most >= 1, "a portion holds something"
    found, start = [], 0
    for part, cut in _gathered(_small_parts(text, most, count), most, count):
        found.append(Portion(part, start, cut))
        start += len(part)
    return found


def _gathered(parts: Iterator[tuple[str, Cut]], most: int, count: Count) -> Iterator[tuple[str, Cut]]:
    """Parts that follow each other, together as far as they fit."""
    held, size, last = "", 0, ""
    for part, cut in parts:
        own = count(part)
        # Tokens of parts are nearly those of the whole, so the whole is counted only where it decides.
        if held and (size + own > most + 2 or count(held + part) > most):
            yield held, last  # type: ignore[misc]  # of parts
            held, size = "", 0
        held, size, last = held + part, size + own, cut
    if held:
        yield held, last  # type: ignore[misc]  # of parts


def _small_parts(text: str, most: int, count: Count) -> Iterator[tuple[str, Cut]]:
    """Sentences, and what is left of those that are too long."""
    for sentence in sentences(text):
        if count(sentence) <= most:
            yield sentence, ""
            continue
        yield from _ended(_finer(sentence, most, count, "clause"), "")


_LEVELS: dict[str, tuple[re.Pattern[str], Cut]] = {"clause": (_CLAUSES, "word"), "word": (_WORDS, "character")}


def _finer(text: str, most: int, count: Count, level: Cut) -> Iterator[tuple[str, Cut]]:
    if level == "character":
        yield from ((part, "character") for part in _by_characters(text, most, count))
        return
    pattern, below = _LEVELS[level]
    for part in pattern.findall(text):
        if part and count(part) <= most:
            yield part, level
        elif part:
            yield from _ended(_finer(part, most, count, below), level)


def _ended(parts: Iterator[tuple[str, Cut]], cut: Cut) -> Iterator[tuple[str, Cut]]:
    """The parts; the last one ends where the whole does."""
    held: tuple[str, Cut] | None = None
    for part in parts:
        if held is not None:
            yield held
        held = part
    if held is not None:
        yield held[0], cut


def _by_characters(text: str, most: int, count: Count) -> Iterator[str]:
    start = 0
    characters = [
        piece[n : n + _MOST_CHARACTERS]
        for piece in _CHARACTERS.findall(text)
        for n in range(0, len(piece), _MOST_CHARACTERS)
    ]
    while start < len(characters):
        n = _fitting(characters, start, most, count)
        whole = "".join(characters[start : start + n])
        start += n
        if n == 1 and len(whole) > 1 and count(whole) > most:  # a long cluster: its code points
            points, place = list(whole), 0
            while place < len(points):
                n = _fitting(points, place, most, count)
                yield "".join(points[place : place + n])
                place += n
        else:
            yield whole


def _fitting(characters: Sequence[str], start: int, most: int, count: Count) -> int:
    """How many of the characters from `start` on fit, at least one: by doubling a step, and then halving it."""

    def fits(n: int) -> bool:
        return start + n <= len(characters) and count("".join(characters[start : start + n])) <= most

    n, step = 1, 1
    while fits(n + step):
        n, step = n + step, step * 2
    while step > 1:
        step //= 2
        if fits(n + step):
            n += step
    return n
