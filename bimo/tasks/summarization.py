"""Summarisation: a document and its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bimo.tasks.task import Message, TaskExample, asked, groups, text_of


@dataclass(frozen=True)
class Summarization:
    """Say in few words what a document says.

    Attributes:
        max_tokens: How long an answer may be.
    """

    max_tokens: int = 256

    name = "summarization"
    fields = ("document", "summary")
    metrics = ("rouge_l", "rouge_1", "rouge_2", "cut", "repetition")
    floors = ("lead", "copy", "nearest")

    def examples(self, record: Mapping[str, object], where: str) -> Sequence[TaskExample]:
        document, summary = text_of(record, "document", where), text_of(record, "summary", where)
        return [TaskExample(summary_request(document), summary, document, where, groups(record))]

    def answer(self, text: str) -> str:
        return text.strip()

    def settled(self, examples: Sequence[TaskExample]) -> Summarization:
        return self


def summary_request(document: str) -> tuple[Message, ...]:
    """What a model is asked."""
    return asked("Summarize:", document)
