"""What of a document is layout and what is said: blank lines, indents, list marks, fences of code, wrapped lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bimo.core.unicode import SCRIPTS

_MARK = re.compile(
    r"[^\S\n]*+(?:(?:[-*+•‣◦·–—]|\d{1,4}[.)]|\(\d{1,4}\)|[a-zA-Z][.)]|#{1,6}|>+)[^\S\n]++(?:\[[ xX]\] ++)?)*+"
)
_LINES = re.compile(r"[^\n]*+\n|[^\n]++")
_INDENT = re.compile(r"[^\S\n]*+")
_FENCE = re.compile(r"[^\S\n]*(```|~~~)")
_RULE = re.compile(r"[^\w]*+\Z")
_WIDE = re.compile(f"[{SCRIPTS['Han']}{SCRIPTS['Kana']}　-〿！-｠]")
_SENTENCE_END = re.compile(r"[.!?…。！？:：][\"'”’»)\]」』）]*\Z")
_SHORTEST_WRAPPED = 40
"""Columns: a paragraph of shorter lines was not wrapped, its lines are meant."""


@dataclass(frozen=True, slots=True)
class LayoutPart:
    """A part of a document.

    Attributes:
        text: As it stands; joined in order, all parts are the document.
        start: Where it begins, in characters.
        spoken: Whether it says something; else it is layout, and stays as it is.
        width: Columns that its lines were wrapped to; 0: it is one line.
        indent: What stands before its second and further lines.
    """

    text: str
    start: int
    spoken: bool
    width: int = 0
    indent: str = ""

    @property
    def said(self) -> str:
        """The text on one line."""
        return unwrapped(self.text) if self.width else self.text


def layout(text: str) -> list[LayoutPart]:
    """The parts of a document, in order."""
    found: list[LayoutPart] = []
    start = 0
    for part, spoken, width, indent in _parts(text):
        if part:
            found.append(LayoutPart(part, start, spoken, width, indent))
            start += len(part)
    return found


def unwrapped(text: str) -> str:
    """Lines of one paragraph as one line; between Chinese or Japanese characters without a space."""
    lines = [line.strip() for line in text.split("\n")]
    joined = lines[0]
    for line in lines[1:]:
        wide = bool(_WIDE.match(joined[-1:]) and _WIDE.match(line))
        joined += line if wide or not joined or not line else f" {line}"
    return joined


def wrapped(text: str, width: int, indent: str) -> str:
    """A line in lines of at most `width` columns, where words allow; text without spaces stays one line."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        room = width - (len(indent) if lines else 0)
        if line and columns(line) + 1 + columns(word) > room:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return f"\n{indent}".join([*lines, line])


def columns(text: str) -> int:
    """How wide a text stands in a terminal."""
    return len(text) + len(_WIDE.findall(text))


Made = tuple[str, bool, int, str]


def _parts(text: str) -> Iterator[Made]:
    fence = ""
    block: list[str] = []
    for line in _LINES.findall(text):
        opened = _FENCE.match(line)
        if fence or opened:
            yield from _block(block)
            block = []
            yield line, False, 0, ""
            if opened and fence in ("", opened[1]):
                fence = "" if fence else opened[1]
        elif not line.strip() or _RULE.match(line.strip()):
            yield from _block(block)
            block = []
            yield line, False, 0, ""
        elif block and _goes_on(block, line):
            block.append(line)
        else:
            yield from _block(block)
            block = [line]
    yield from _block(block)


def _goes_on(block: Sequence[str], line: str) -> bool:
    """Whether a line belongs to the paragraph before it: no list mark of its own, and no deeper or shallower indent."""
    if (_MARK.match(line) or [""])[0].strip():
        return False
    own = _indent_of(line)
    if len(block) > 1:
        return own == _indent_of(block[1])
    return own in (0, _indent_of(block[0])) or own >= 2  # behind a list mark, lines are indented at will


def _indent_of(line: str) -> int:
    return len((_INDENT.match(line) or [""])[0])


def _block(lines: Sequence[str]) -> Iterator[Made]:
    """A paragraph: as one part when it was wrapped, else line by line."""
    if len(lines) > 1 and _is_wrapped(lines):
        whole = "".join(lines)
        mark = (_MARK.match(whole) or [""])[0]
        body = whole[len(mark) :].rstrip()
        yield mark, False, 0, ""
        yield body, True, max(columns(line.rstrip()) for line in lines), (_INDENT.match(lines[1]) or [""])[0]
        yield whole[len(mark) + len(body) :], False, 0, ""
        return
    for line in lines:
        mark = (_MARK.match(line) or [""])[0]
        body = line[len(mark) :].rstrip()
        yield mark, False, 0, ""
        yield body, True, 0, ""
        yield line[len(mark) + len(body) :], False, 0, ""


def _is_wrapped(lines: Sequence[str]) -> bool:
    """Whether the lines were one that got too long: all but the last are about as long, and not all end a sentence."""
    if any(line.endswith("  \n") or "\r" in line for line in lines):  # two spaces: Markdown's line break
        return False
    widths = [columns(line.rstrip()) for line in lines[:-1]]
    widest = max(*widths, columns(lines[-1].rstrip()))
    last = min(widths)
    within = [line for line in lines[:-1] if not _SENTENCE_END.search(line.rstrip()[-8:])]
    return widest >= _SHORTEST_WRAPPED and last >= 0.6 * widest and bool(within)
