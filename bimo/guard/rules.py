"""The first rules: length, characters that cannot be seen, words with letters of two scripts, personal data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import get_args

from bimo.core.pii import personal_data, secrets
from bimo.core.unicode import CONTROLS, forged_words, hidden_places
from bimo.guard.contract import Action, Side, Verdict

_CONTROL = re.compile(f"[{CONTROLS}]")
_PORTION = 50_000  # characters that are searched in one go
_BEFORE, _BEHIND = 100, 10_000  # what a pattern may look at around its beginning: a private key has some thousands
_MOST = 100  # places that one rule tells of; a text that is full of them is known by then


def _checked(action: str) -> Action:
    for known in get_args(Action):
        if action == known:
            return known  # type: ignore[no-any-return]  # out of the literal
    raise ValueError(f"action must be one of {', '.join(get_args(Action))}, is {action!r}")


class Length:
    """Texts that are too long to go in; what comes out has a limit of its own, in tokens.

    Args:
        most: Characters that a text may have.
        action: What becomes of a longer one.
    """

    sides = "input"
    reads = False

    def __init__(self, most: int = 1_000_000, action: str = "refuse") -> None:
        if most < 1:
            raise ValueError(f"most must be at least 1, is {most}")
        self.most, self.action = most, _checked(action)

    def check(self, text: str, side: Side) -> list[Verdict]:
        """See `Guard`."""
        long = side == "input" and len(text) > self.most
        return [Verdict("length", 1.0, self.action, self.most, len(text))] if long else []


class HiddenCharacters:
    """Control characters, and invisible ones that have no business where they stand: they hide instructions.

    Args:
        action: What becomes of them.
    """

    def __init__(self, action: str = "note") -> None:
        self.action = _checked(action)

    def check(self, text: str, side: Side) -> list[Verdict]:
        """See `Guard`."""
        places = [match.start() for match in _CONTROL.finditer(text)]
        if not text.isascii():
            places += [place for place, _ in hidden_places(text)]
        return [Verdict("hidden_characters", 1.0, self.action, p, p + 1) for p in sorted(places)[:_MOST]]


class ForgedWords:
    """Words in which letters of another script stand for the Latin ones that they look like.

    Args:
        action: What becomes of them.
    """

    def __init__(self, action: str = "note") -> None:
        self.action = _checked(action)

    def check(self, text: str, side: Side) -> list[Verdict]:
        """See `Guard`."""
        if text.isascii():
            return []
        found = ((place, place + len(word)) for place, word in forged_words(text))
        return [
            Verdict("forged_words", 0.8, self.action, *place) for _, place in zip(range(_MOST), found, strict=False)
        ]


class PersonalData:
    """Addresses, numbers, keys and passwords, as `core/pii.py` knows them.

    Args:
        action: What becomes of them.
        sides: input, output, or both.
    """

    def __init__(self, action: str = "note", sides: str = "both") -> None:
        if sides not in ("input", "output", "both"):
            raise ValueError(f"sides must be input, output or both, is {sides!r}")
        self.action, self.sides = _checked(action), sides

    def check(self, text: str, side: Side) -> list[Verdict]:
        """See `Guard`."""
        if self.sides not in (side, "both"):
            return []
        found: list[Verdict] = []
        for start, end in _portions(text):
            if len(found) > 10 * _MOST:  # the rest is not looked at, and treated as if it were full of them, too
                found.append(Verdict("personal_data/too many", 0.5, self.action, start, len(text)))
                break
            before = max(0, start - _BEFORE)
            part = text[before : end + _BEHIND]
            for hit in (*personal_data(part), *secrets(part)):
                if start <= before + hit.start < end:
                    place = before + hit.start, before + hit.end
                    found.append(Verdict(f"personal_data/{hit.kind}", 0.9, self.action, *place))
        return found


def _portions(text: str) -> Iterator[tuple[int, int]]:
    """Where the portions of a text begin and end that are searched one after the other.

    A search is one call into C, during which no other thread runs; so it must not be a long one.
    """
    for start in range(0, len(text), _PORTION):
        yield start, min(start + _PORTION, len(text))
