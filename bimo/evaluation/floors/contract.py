"""What a floor is: a way to answer that is fitted in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from bimo.evaluation.answer import Answer
from bimo.tasks.task import TaskExample


@runtime_checkable
class Floor(Protocol):
    """A simple way to answer the examples of a task.

    Attributes:
        name: As tables show it.
        needs_training: Whether it knows nothing without training examples.
    """

    name: str
    needs_training: bool

    def fit(self, examples: Sequence[TaskExample]) -> None:
        """Learn from training examples; called once, with none where there are none and none are needed."""
        ...

    def answer(self, examples: Sequence[TaskExample]) -> Sequence[str | Answer]:
        """An answer to each example; its target must not be looked at, except to say how well it was foreseen."""
        ...
