"""ROUGE (Lin 2004): how many n-grams, or how long a common subsequence, answer and target share.

Equal to `rouge-score` without stemming on ASCII text. It drops all other letters; here words are those of any script,
and characters where a script writes no spaces (`evaluation/words.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from bimo.evaluation.scores.ratio import Share, shares
from bimo.evaluation.words import n_grams, words
from bimo.tasks.task import TaskExample


class _Rouge(Share):
    """The mean over answers of an F1, in points of a hundred."""

    higher_is_better = True

    def __init__(self, name: str, f1: Callable[[Sequence[str], Sequence[str]], float]) -> None:
        self.name, self.f1 = name, f1

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """F1 and 1: (n, 2)."""
        pairs = zip(answers, examples, strict=True)
        return shares([self.f1(words(answer), words(example.target)) for answer, example in pairs])


class Rouge1(_Rouge):
    """F1 of words."""

    def __init__(self) -> None:
        super().__init__("ROUGE-1", lambda ours, theirs: gram_f1(ours, theirs, 1))


class Rouge2(_Rouge):
    """F1 of pairs of words."""

    def __init__(self) -> None:
        super().__init__("ROUGE-2", lambda ours, theirs: gram_f1(ours, theirs, 2))


class RougeL(_Rouge):
    """F1 of the longest common subsequence of words, over the whole text."""

    def __init__(self) -> None:
        super().__init__("ROUGE-L", lambda ours, theirs: _f1(common_subsequence(ours, theirs), len(ours), len(theirs)))


def gram_f1(ours: Sequence[str], theirs: Sequence[str], n: int) -> float:
    """F1 of the n-grams of two texts."""
    own, other = Counter(n_grams(ours, n)), Counter(n_grams(theirs, n))
    return _f1((own & other).total(), own.total(), other.total())


def common_subsequence(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Length of the longest common subsequence, with a row of the table as one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(ours):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(ours)) - 1
    row = whole  # a bit is 0 where the length grows
    for word in theirs:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & whole
    return len(ours) - row.bit_count()


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0
