"""Classification: a text and its label, which the model says as a word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bimo.core.errors import UserError
from bimo.tasks.task import Message, TaskExample, asked, groups, text_of


@dataclass(frozen=True)
class Classification:
    """Say which of some labels a text has.

    Attributes:
        labels: Those that there are; empty until the training rows have settled them.
        max_tokens: How long an answer may be.
    """

    labels: Sequence[str] = ()
    max_tokens: int = 32

    name = "classification"
    fields = ("text", "label")
    metrics = ("macro_f1", "accuracy")
    floors = ("majority", "nearest", "bag_of_words")

    def __post_init__(self) -> None:
        if isinstance(self.labels, str) or not all(isinstance(label, str) for label in self.labels):
            raise ValueError(f"labels are a list of texts, not {self.labels!r}")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a label stands in the list twice")
        object.__setattr__(self, "labels", tuple(self.labels))  # frozen

    def examples(self, record: Mapping[str, object], where: str) -> Sequence[TaskExample]:
        text, label = text_of(record, "text", where), text_of(record, "label", where).strip()
        if self.labels and label not in self.labels:
            known = ", ".join(map(repr, self.labels))
            raise UserError(f"the label {label!r} is not one of {known}", where=where, mend="Mend or drop the row.")
        return [TaskExample(label_request(text), label, text, where, groups(record, label=label))]

    def answer(self, text: str) -> str:
        return text.strip()

    def settled(self, examples: Sequence[TaskExample]) -> Classification:
        labels = sorted({example.target for example in examples})
        if len(labels) < 2:
            raise UserError(
                f"all rows have the label {labels[0]!r}" if labels else "there is no row with a label",
                where="classification",
                mend="Give rows of at least two labels.",
            )
        return self if self.labels else replace(self, labels=labels)


def labels_of(tasks: Iterable[object]) -> Sequence[str]:
    """The labels of the first classification among some tasks; none where there is none."""
    return next((task.labels for task in tasks if isinstance(task, Classification)), ())


def label_request(text: str) -> tuple[Message, ...]:
    """What a model is asked."""
    return asked("Classify:", text)
