"""Stand-ins of contents for a chat template, and what is noted of them: see `frames.py`."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

_QUESTIONS: dict[str, Callable[..., Any]] = {
    "startswith": str.startswith,
    "endswith": str.endswith,
    "contains": operator.contains,
    "equals": operator.eq,
    "bool": bool,
}
_CHANGES = ("strip", "lstrip", "rstrip")
_VIEWS: tuple[type[Any], ...] = (type({}.values()), type({}.items()))


class UnframedError(Exception):
    """The template does something with a content that no frame can say."""


@dataclass(frozen=True)
class Hole:
    """Where a content stands, and what is trimmed from it."""

    message: int
    changes: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def fill(self, contents: Sequence[str]) -> str:
        text = contents[self.message]
        for method, arguments in self.changes:
            text = getattr(text, method)(*arguments)
        return text


@dataclass(frozen=True)
class Condition:
    """A question about a content, and the answer for which the frame holds."""

    hole: Hole
    question: str
    arguments: tuple[Any, ...]
    answer: Any

    def holds(self, contents: Sequence[str]) -> bool:
        answer: Any = _QUESTIONS[self.question](self.hole.fill(contents), *self.arguments)
        return bool(answer == self.answer)


@dataclass(frozen=True)
class Frame:
    """Texts and holes in turn, for conversations of which the conditions hold; `dates` likewise."""

    parts: tuple[str | Hole, ...]
    conditions: tuple[Condition, ...]
    dates: tuple[tuple[str, str], ...]

    def text(self, contents: Sequence[str], now: Callable[[str], str]) -> str | None:
        """What the template writes; None where the frame does not hold."""
        if self.conditions and not all(condition.holds(contents) for condition in self.conditions):
            return None
        if self.dates and any(now(form) != date for form, date in self.dates):
            return None
        return "".join([part if isinstance(part, str) else part.fill(contents) for part in self.parts])


class Traced(str):
    """The stand-in of a content, or (without a hole) a text that holds some."""

    trace: Trace
    hole: Hole | None

    def asked(self, question: str, *arguments: Any) -> Any:
        if self.hole is None or any(touched(argument, self.trace) for argument in arguments):
            self.trace.fail()
        answer = _QUESTIONS[question](self.hole.fill(self.trace.contents), *arguments)
        self.trace.conditions.append(Condition(self.hole, question, arguments, answer))
        return answer

    def changed(self, method: str, *arguments: Any) -> Traced:
        if self.hole is None or any(touched(argument, self.trace) for argument in arguments):
            self.trace.fail()
        return self.trace.place(Hole(self.hole.message, (*self.hole.changes, (method, arguments))))

    def refused(self, *arguments: Any, **options: Any) -> NoReturn:
        self.trace.fail()

    def __bool__(self) -> bool:
        return bool(self.asked("bool"))

    def __contains__(self, part: Any) -> bool:
        return bool(self.asked("contains", part))

    def __eq__(self, other: object) -> bool:
        return bool(self.asked("equals", other))

    def __ne__(self, other: object) -> bool:
        return not self.asked("equals", other)

    def startswith(self, *arguments: Any) -> bool:
        return bool(self.asked("startswith", *arguments))

    def endswith(self, *arguments: Any) -> bool:
        return bool(self.asked("endswith", *arguments))

    def strip(self, *arguments: Any) -> Traced:
        return self.changed("strip", *arguments)

    def lstrip(self, *arguments: Any) -> Traced:
        return self.changed("lstrip", *arguments)

    def rstrip(self, *arguments: Any) -> Traced:
        return self.changed("rstrip", *arguments)

    __hash__ = __iter__ = __getitem__ = __repr__ = __format__ = __mod__ = __rmod__ = __mul__ = __rmul__ = refused
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = refused


_KEPT = {"startswith", "endswith", *_CHANGES, "isascii"}
for _name in set(dir(str)) - _KEPT:  # isascii is for the budget; templates do not have it
    if not _name.startswith("_"):
        setattr(Traced, _name, Traced.refused)


@dataclass
class Trace:
    """What one attempt notes."""

    contents: Sequence[str]
    secret: str = field(default_factory=lambda: f"\ue0f2{secrets.token_hex(8)}:")
    holes: list[Hole] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    dates: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def fail(self) -> NoReturn:
        self.failed = True  # whatever becomes of the exception
        raise UnframedError

    def place(self, hole: Hole) -> Traced:
        self.holes.append(hole)
        return self.traced(f"{self.secret}{len(self.holes) - 1}\ue0f3", hole)

    def traced(self, text: str, hole: Hole | None = None) -> Traced:
        made = Traced(text)
        made.trace, made.hole = self, hole
        return made

    def parts(self, text: str) -> tuple[str | Hole, ...]:
        """A text with stand-ins as texts and holes."""
        first, *rest = text.split(self.secret)
        found: list[str | Hole] = [first]
        for part in rest:
            number, _, after = part.partition("\ue0f3")
            found += [self.holes[int(number)], after]
        return tuple(part for part in found if part)


def touched(value: Any, trace: Trace) -> bool:
    """Whether a value is a stand-in, or holds one."""
    if isinstance(value, str):
        return isinstance(value, Traced) or trace.secret in value
    if isinstance(value, Mapping):
        return any(touched(part, trace) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(touched(part, trace) for part in value)
    return isinstance(value, _VIEWS) and any(touched(part, trace) for part in value)
