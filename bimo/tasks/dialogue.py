"""Dialogue: conversations, of which the assistant's turns are learned and the last one is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bimo.core.errors import UserError
from bimo.tasks.task import Message, TaskExample, groups

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Dialogue:
    """Say what comes next in a conversation.

    Attributes:
        max_tokens: How long an answer may be.
    """

    max_tokens: int = 256

    name = "dialogue"
    fields = ("messages",)
    metrics = ("chrf", "distinct_2", "cut", "repetition")
    floors = ("copy", "nearest")

    def examples(self, record: Mapping[str, object], where: str) -> Sequence[TaskExample]:
        messages = conversation_of(record, where)
        last = max((n for n, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        if last < 1:
            raise UserError(
                "no message of the assistant follows another one", where=where, mend="Add an answer, or drop the row."
            )
        source = next((m["content"] for m in reversed(messages[:last]) if m["role"] == "user"), "")
        return [TaskExample(messages[:last], messages[last]["content"], source, where, groups(record))]

    def answer(self, text: str) -> str:
        return text.strip()

    def settled(self, examples: Sequence[TaskExample]) -> Dialogue:
        return self


def conversation_of(record: Mapping[str, object], where: str) -> tuple[Message, ...]:
    """The messages of a record.

    Raises:
        UserError: There are none, or one of them has no role or no text.
    """
    value = record.get("messages")
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        there = ", ".join(map(repr, record)) or "none"
        raise UserError(
            f"'messages' is no list of messages; the fields are {there}",
            where=where,
            mend='Give [{"role": "user", "content": "Hello"}, …].',
        )
    for number, message in enumerate(value, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        text = message.get("content") if isinstance(message, Mapping) else None
        if role not in _ROLES or not isinstance(text, str) or (role == "assistant" and not text.strip()):
            raise UserError(
                f"message {number} must have a role (one of {', '.join(_ROLES)}) and content that is text",
                where=where,
                mend="Mend or drop the row.",
            )
    return tuple({"role": message["role"], "content": message["content"]} for message in value)
