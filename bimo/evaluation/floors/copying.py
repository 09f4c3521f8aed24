"""Answers that stand in the source already: all of it, or its first sentence."""

from __future__ import annotations

from collections.abc import Sequence

from bimo.evaluation.answer import Answer
from bimo.evaluation.words import first_sentence, shortened, words
from bimo.tasks.task import TaskExample


class Copy:
    """The source itself."""

    name = "copy"
    needs_training = False

    def fit(self, examples: Sequence[TaskExample]) -> None:
        """Nothing is to be learned."""

    def answer(self, examples: Sequence[TaskExample]) -> list[Answer]:
        """The sources."""
        return [Answer(example.source.strip()) for example in examples]


class Lead:
    """The first sentence, cut to as many words as a summary has in the mean; whole where there was no training."""

    name = "lead"
    needs_training = False

    def __init__(self) -> None:
        self.n_words = 0

    def fit(self, examples: Sequence[TaskExample]) -> None:
        """The mean length of a summary."""
        lengths = [len(words(example.target)) for example in examples]
        self.n_words = max(1, round(sum(lengths) / len(lengths))) if lengths else 0

    def answer(self, examples: Sequence[TaskExample]) -> list[Answer]:
        """The beginnings of the sources."""
        sentences = [first_sentence(example.source) for example in examples]
        return [Answer(shortened(sentence, self.n_words) if self.n_words else sentence) for sentence in sentences]
