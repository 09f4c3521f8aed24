"""Preferences: a prompt with a better and a worse answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bimo.core.errors import UserError
from bimo.tasks.dialogue import conversation_of
from bimo.tasks.task import TaskExample, asked, groups, text_of


@dataclass(frozen=True)
class PreferredAnswer:
    """Rather say this than that; trained with the loss `dpo` or `simpo`.

    A record has `prompt` (a text, or `messages` that end with the user's), `chosen` and `rejected`.

    Attributes:
        max_tokens: How long an answer may be.
    """

    max_tokens: int = 256

    name = "preference"
    fields = ("prompt", "chosen", "rejected")
    metrics = ("chrf", "cut", "repetition")
    floors = ("copy", "nearest")

    def examples(self, record: Mapping[str, object], where: str) -> Sequence[TaskExample]:
        better, worse = text_of(record, "chosen", where), text_of(record, "rejected", where)
        if better == worse:
            raise UserError("both answers are the same", where=where, mend="Drop the row.")
        if "messages" in record:
            messages = conversation_of(record, where)
            source = messages[-1]["content"]
        else:
            source = text_of(record, "prompt", where)
            messages = asked("", source)
        return [TaskExample(messages, better, source, where, groups(record), worse)]

    def answer(self, text: str) -> str:
        return text.strip()

    def settled(self, examples: Sequence[TaskExample]) -> PreferredAnswer:
        return self
