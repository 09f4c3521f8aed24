"""The contract of an application: records in, messages and targets out; output in, answers and scores out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from bimo.core.errors import UserError, nearest

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TaskExample:
    """What a model is to read, and to say.

    Attributes:
        messages: The conversation so far, as {"role", "content"}; the assistant's turn comes next.
        target: What the assistant shall say.
        source: The text that the answer is made of, as floors and pages show it.
        where: File and row, or place in a list, for errors and pages.
        group: Figures are also given for each value, as {"origin": "manual", "language": "en → de"}.
        rejected: What it shall rather not say, where preferences are learned.
    """

    messages: tuple[Message, ...]
    target: str
    source: str
    where: str = ""
    group: Mapping[str, str] = field(default_factory=dict)
    rejected: str = ""


@runtime_checkable
class Metric(Protocol):
    """A score of many answers together, as sums over answers, so that a resampled set is scored without a second look.

    Attributes:
        name: As tables show it.
        higher_is_better: Which way is up.
    """

    name: str
    higher_is_better: bool

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """What each answer contributes: float64, (answers, sums)."""
        ...

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The score of each line of sums: (…, sums) → (…)."""
        ...


@runtime_checkable
class Task(Protocol):
    """An application. A dataclass does it: its fields are what a recipe writes in parentheses, `mine(size=3)`.

    Attributes:
        name: What it is called.
        fields: Names of the fields that a record needs; `{"theirs": …}` of a user's own columns maps onto these.
        metrics: How answers are scored, by name or as objects; the first one decides.
        floors: Simple ways to answer that a model must beat, by name.
        max_tokens: How long an answer may be.
    """

    name: str
    fields: Sequence[str]
    metrics: Sequence[str | Metric]
    floors: Sequence[str]
    max_tokens: int

    def examples(self, record: Mapping[str, object], where: str) -> Sequence[TaskExample]:
        """What a record teaches: mostly one example, two for a pair that is translated both ways.

        Raises:
            UserError: A field is missing or of a wrong kind; its name is in the sentence.
        """
        ...

    def answer(self, text: str) -> str:
        """The answer in what the model has said."""
        ...

    def settled(self, examples: Sequence[TaskExample]) -> Task:
        """The task with what its training examples settle, such as the labels that there are; mostly itself."""
        ...


def text_of(record: Mapping[str, object], field: str, where: str) -> str:
    """The text in a field of a record.

    Raises:
        UserError: The field is missing, or holds no text, or nothing but spaces.
    """
    if field not in record:
        there = ", ".join(map(repr, record)) or "none"
        raise UserError(
            f"there is no field {field!r}{nearest(field, map(str, record))}; the fields are {there}",
            where=where,
            mend=f"Name the column: --fields '{{{field}: COLUMN}}'.",
        )
    value = record[field]
    if type(value) is int or (isinstance(value, float) and math.isfinite(value)):  # a bool is an int, too
        value = str(value)
    if not isinstance(value, str):
        kind = str(value) if isinstance(value, float) else type(value).__name__
        raise UserError(f"the field {field!r} is {kind}, not text", where=where, mend="Give text.")
    if not value.strip():
        raise UserError(f"the field {field!r} is empty", where=where, mend="Fill it, or drop the row.")
    return value


def asked(instruction: str, text: str) -> tuple[Message, ...]:
    """One user's message: what to do, and with what."""
    return ({"role": "user", "content": f"{instruction}\n{text}" if instruction else text},)


def groups(record: Mapping[str, object], **more: str) -> dict[str, str]:
    """What figures are given for: where a row comes from, its language, and what the task adds."""
    named = {name: record.get(name, record.get(short)) for name, short in (("origin", "origin"), ("language", "lang"))}
    return {name: value for name, value in (named | more).items() if isinstance(value, str) and value}
