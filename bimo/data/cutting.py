"""Where a document ends in plain text: at blank lines, at each line, or at the end of the file.

The text comes as a stream of blocks and no more than a document and a block are held, so a document has a longest
length: 64 Ki characters, or 1 Mi where the file is the document. A longer one is cut at a blank line, else at a line
end, else (one endless line) at a space, else between two characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from bimo.data.documents import UnreadableError

Rule = Literal["file", "blank_line", "line"]

LONGEST: dict[Rule, int] = {"file": 1 << 20, "blank_line": 1 << 16, "line": 1 << 16}
"""Characters of the longest document under each rule."""
LONGEST_LINE = 1 << 24
"""Characters of the longest row of a table."""

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_LINE_END = re.compile(r"\n")
_LEADING_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")


def cut(blocks: Iterable[str], rule: Rule) -> Iterator[tuple[int, str]]:
    """Yield each document, without blank lines around it, and the 1-based line where it begins."""
    longest = LONGEST[rule]
    row, rest = 1, ""
    for block in blocks:
        rest += block
        start = 0
        for border in _borders(rule, rest):
            for piece in _pieces(row, rest[start:border], longest):
                yield from _trimmed(*piece)
            row += rest.count("\n", start, border)
            start = border
        *complete, (row, rest) = _pieces(row, rest[start:], longest)
        for piece in complete:
            yield from _trimmed(*piece)
    yield from _trimmed(row, rest)


def lines(blocks: Iterable[str]) -> Iterator[str]:
    """Yield each line with its line end. Raises `UnreadableError` for a line that is too long to be a row."""
    held: list[str] = []
    size = row = 0
    for block in blocks:
        *whole, tail = block.split("\n")
        if whole:
            whole[0] = "".join([*held, whole[0]])
            held, size = [], 0
        for line in whole:
            row += 1
            yield line + "\n"
        held.append(tail)
        size += len(tail)
        if size > LONGEST_LINE:
            what = f"a line is longer than {LONGEST_LINE:,} characters; the rest is left out"
            raise UnreadableError(what, "Check that this is a table with one record per line.", row=row + 1)
    if size:
        yield "".join(held)


def _borders(rule: Rule, text: str) -> Iterator[int]:
    if rule != "file":
        pattern = _BLANK_LINES if rule == "blank_line" else _LINE_END
        yield from (match.end() for match in pattern.finditer(text))


def _pieces(row: int, text: str, longest: int) -> Iterator[tuple[int, str]]:
    """The text in pieces that are not too long; at least one."""
    while len(text) > longest:
        end = _cutting_place(text, longest)
        yield row, text[:end]
        row += text.count("\n", 0, end)
        text = text[end:]
    yield row, text


def _cutting_place(text: str, longest: int) -> int:
    """Where to cut a text that is too long; a blank line or a space counts in its second half only."""
    for border, earliest in (("\n\n", longest // 2), ("\n", 1), (" ", longest // 2)):
        place = text.rfind(border, earliest, longest)
        if place >= 0:
            return place + len(border)
    return longest


def _trimmed(row: int, text: str) -> Iterator[tuple[int, str]]:
    blank = _LEADING_BLANK_LINES.match(text)
    if blank:
        row += text.count("\n", 0, blank.end())
        text = text[blank.end() :]
    text = text.rstrip()
    if text:
        yield row, text
