"""Completion: plain text, judged by how well each token is foreseen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bimo.tasks.task import Message, TaskExample, groups, text_of


@dataclass(frozen=True)
class Completion:
    """Go on with a text; a record may split it into `prompt` and `completion`.

    Attributes:
        max_tokens: How long an answer may be.
    """

    max_tokens: int = 256

    name = "completion"
    fields = ("text",)
    metrics = ("bits_per_byte", "chrf", "distinct_2", "repetition")
    floors = ("n_gram", "nearest")

    def examples(self, record: Mapping[str, object], where: str) -> Sequence[TaskExample]:
        if "completion" in record:
            prompt, rest = text_of(record, "prompt", where), text_of(record, "completion", where)
        else:
            prompt, rest = "", text_of(record, "text", where)
        messages: tuple[Message, ...] = ({"role": "user", "content": prompt},) if prompt else ()
        return [TaskExample(messages, rest, prompt, where, groups(record))]

    def answer(self, text: str) -> str:
        return text

    def settled(self, examples: Sequence[TaskExample]) -> Completion:
        return self
