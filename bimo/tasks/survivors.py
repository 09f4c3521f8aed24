"""What must stand in a translation as it stands in the source: links, addresses, placeholders, tags, code, numbers."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from bimo.tasks.numbers import missing_numbers

Kind = Literal["link", "e-mail address", "placeholder", "tag", "entity", "code", "number"]

_PATTERNS: dict[Kind, str] = {
    "link": r"(?<![A-Za-z])(?:https?|ftp|file)://[^\s<>\"'“”，。；：！？（）【】《》]++|(?<![\w.])www\.[^\s<>\"'，。]++",
    "e-mail address": r"(?<![\w.+-])[A-Za-z0-9_.+-]++@[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]++)++",
    "placeholder": (
        r"\$\([A-Za-z]\w{0,63}\)|\$?\{\{[^{}\n]{1,64}\}\}|\$?\{[^{}\s]{0,64}\}|\$[A-Z_][A-Z0-9_]{1,63}\b"
        r"|%\(\w{1,64}\)[-#0+ ]{0,4}\d{0,3}(?:\.\d{1,3})?[diouxXeEfFgGcrsa]"
        r"|(?<![\d%])%(?:\d{1,2}\$)?[-#0+]{0,4}\d{0,3}(?:\.\d{1,3})?(?:hh?|ll?|z)?[diuxXeEfgGcs@](?![a-z]{2})"
        r"|(?<![\d%])%L?\d{1,2}(?![\d.,]*%)|%[A-Z][A-Z0-9_]{2,63}%?"
    ),
    "tag": r"</?[A-Za-z][^<>\n]{0,256}>",
    "entity": r"&(?:amp;)?(?:[A-Za-z][A-Za-z0-9]{1,15}|#\d{1,7}|#x[0-9A-Fa-f]{1,6});",
    "code": r"`[^`\n]{1,128}`|\\[nrt](?![a-z])",
}
_ANY = re.compile("|".join(f"(?P<k{n}>{pattern})" for n, pattern in enumerate(_PATTERNS.values())))
_KINDS = tuple(_PATTERNS)
_AFTER_LINKS = ".,;:!?)]}*_"


@dataclass(frozen=True, slots=True)
class Survivor:
    """A part of a source that its translation must have.

    Attributes:
        kind: What it is.
        text: Its characters.
        start: Where it begins in the source.
    """

    kind: Kind
    text: str
    start: int


def survivors(text: str) -> list[Survivor]:
    """What of a text must stand in its translation character for character, in order; numbers may change and are not
    among it."""
    found = []
    for match in _ANY.finditer(text):
        kind = _KINDS[int((match.lastgroup or "k0")[1:])]
        whole = match[0]
        if kind == "link":
            whole = whole.rstrip(_AFTER_LINKS) if whole.count("(") < whole.count(")") or whole[-1] != ")" else whole
        if whole:
            found.append(Survivor(kind, whole, match.start()))
    return found


def missing(source: str, answer: str) -> list[Survivor]:
    """What an answer lacks of what must have survived, each as often as it is missing, in the order of the source."""
    kept = survivors(source)
    there = Counter(survivor.text for survivor in survivors(answer))
    lost = []
    for survivor in kept:
        if there[survivor.text] > 0:
            there[survivor.text] -= 1
        elif answer.count(survivor.text) < sum(survivor.text in other.text for other in kept):
            lost.append(survivor)
    bare = (_without(source, kept), _without(answer, survivors(answer)))
    lost += [Survivor("number", number.text, number.start) for number in missing_numbers(*bare)]
    return sorted(lost, key=lambda survivor: survivor.start)


def _without(text: str, found: list[Survivor]) -> str:
    """The text with spaces in place of what was found: its digits are no numbers."""
    parts, done = [], 0
    for survivor in found:
        end = survivor.start + len(survivor.text)
        parts += [text[done : survivor.start], " " * len(survivor.text)]
        done = end
    return "".join([*parts, text[done:]])
