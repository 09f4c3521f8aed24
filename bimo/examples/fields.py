"""Which fields of a record hold what: usual names, recognised from the first record and then asked of all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bimo.core.errors import UserError, nearest

Message = Mapping[str, str]
Content = str | tuple[str, str] | Sequence[Message]
"""What an example is: a text, a prompt with its answer, or a conversation."""

PAIRS = (
    ("source", "target"),
    ("src", "tgt"),
    ("document", "summary"),
    ("article", "summary"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("input", "output"),
    ("question", "answer"),
    ("text", "label"),
)
"""Names of what is read and of what is said, the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields that count.

    Attributes:
        names: ("text",), ("messages",), or a pair's two; ("instruction", "output") may have an "input" beside them.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, record: Mapping[str, object], where: str) -> Fields:
        """What a record's names say.

        Raises:
            UserError: None of them is known.
        """
        for names in (("messages",), *PAIRS, ("text",)):
            if all(name in record for name in names):
                return cls(names)
        there = ", ".join(map(repr, record)) or "none"
        known = "; ".join(" and ".join(names) for names in (("text",), ("messages",), *PAIRS))
        raise UserError(f"no field says what to learn; the fields are {there}", where=where, mend=f"Known: {known}.")

    def content(self, record: Mapping[str, object], where: str) -> Content:
        """What a record holds.

        Raises:
            UserError: A field is missing, or is of another type.
        """
        if self.names == ("messages",):
            return conversation(self._value(record, "messages", where), where)
        if len(self.names) == 1:
            return as_text(self._value(record, self.names[0], where), where, self.names[0])
        prompt, answer = (self._value(record, name, where) for name in self.names)
        if isinstance(answer, int) and not isinstance(answer, bool):  # a label
            answer = str(answer)
        context = record.get("input") if self.names[0] == "instruction" else None
        read = as_text(prompt, where, self.names[0])
        return f"{read}\n{context}" if context else read, as_text(answer, where, self.names[1])

    def _value(self, record: Mapping[str, object], name: str, where: str) -> object:
        if name not in record:
            there = ", ".join(map(repr, record)) or "none"
            what = f"there is no field {name!r}{nearest(name, map(str, record))}; the fields are {there}"
            raise UserError(what, where=where, mend="Give every record the same fields.")
        return record[name]


def as_text(value: object, where: str, field: str = "") -> str:
    """The value, which is text."""
    if isinstance(value, str):
        return value
    kind = "None" if value is None else type(value).__name__
    what = f"the field {field!r} is {kind}, not text" if field else f"{kind}, neither text nor ids"
    raise UserError(what, where=where, mend="Give text, or leave it out.")


def conversation(value: object, where: str) -> Sequence[Message]:
    """The value, which is a list of messages."""
    if not is_conversation(value):
        raise UserError(
            "not a conversation", where=where, mend='Give a list like [{"role": "user", "content": "Hello"}, …].'
        )
    return value  # type: ignore[return-value]  # just looked at


def is_conversation(value: object) -> bool:
    """Whether a value is a list of messages; whether these are well formed, the chat format says."""
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return listed and all(isinstance(message, Mapping) and "role" in message for message in value)  # type: ignore[attr-defined]
