"""The contract of a guard's rule, and what its verdicts do to a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

Action = Literal["note", "mask", "refuse"]
Side = Literal["input", "output"]
_MARK = "█"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says about a place of a text.

    Attributes:
        rule: Its name, with what it found where it knows several kinds: `personal_data/e-mail address`.
        score: How sure it is, 0 … 1.
        action: note (told, nothing else), mask (the place is not passed on), refuse (the text is not passed on).
        start: Where the place begins, in characters.
        end: Where it ends.
    """

    rule: str
    score: float
    action: Action
    start: int
    end: int


class Guard(Protocol):
    """A rule, or several. It must not keep the text, and must take time in proportion to it."""

    def check(self, text: str, side: Side) -> list[Verdict]:
        """What there is to say about a text that goes into a model, or came out of it."""
        ...


def masked(text: str, verdicts: Iterable[Verdict]) -> str:
    """The text without the places that are to be masked; a bar stands in each one's place."""
    places = sorted((verdict.start, verdict.end) for verdict in verdicts if verdict.action == "mask")
    parts, done = [], 0
    for start, end in places:
        if end <= done:
            continue
        parts += [text[done : max(start, done)], _MARK * 3]
        done = end
    return "".join([*parts, text[done:]]) if parts else text
