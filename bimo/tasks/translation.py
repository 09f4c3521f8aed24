"""Translation: pairs of source and target, in one direction or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bimo.tasks.languages import LANGUAGES, language_code
from bimo.tasks.task import Message, TaskExample, asked, groups, text_of


@dataclass(frozen=True)
class Translation:
    """Say a text in another language.

    Attributes:
        source: Language of the field `source`.
        target: Language of the field `target`.
        both: Whether each pair also teaches the way back.
        max_tokens: How long an answer may be.
    """

    source: str = "en"
    target: str = "de"
    both: bool = False
    max_tokens: int = 512

    name = "translation"
    fields = ("source", "target")
    metrics = ("chrf", "bleu", "cut", "repetition")
    floors = ("copy", "word_table", "nearest")

    def __post_init__(self) -> None:
        for field in ("source", "target"):
            object.__setattr__(self, field, language_code(getattr(self, field)))  # frozen

    def examples(self, record: Mapping[str, object], where: str) -> Sequence[TaskExample]:
        pair = (text_of(record, "source", where), text_of(record, "target", where))
        there = self._example(*pair, (self.source, self.target), record, where)
        return [there, self._example(*pair[::-1], (self.target, self.source), record, where)] if self.both else [there]

    def _example(
        self, source: str, target: str, way: tuple[str, str], record: Mapping[str, object], where: str
    ) -> TaskExample:
        group = groups(record, language=" → ".join(way))
        return TaskExample(translation_request(source, way[1]), target, source, where, group)

    def answer(self, text: str) -> str:
        return text.strip()

    def settled(self, examples: Sequence[TaskExample]) -> Translation:
        return self


def translation_request(text: str, target: str, notes: Sequence[str] = ()) -> tuple[Message, ...]:
    """What a model is asked.

    Args:
        text: What to translate.
        target: Code of the language.
        notes: What else it shall know, such as the terms of a glossary; a line each.
    """
    return asked("\n".join([f"Translate into {LANGUAGES[target]}:", *notes]), text)
