"""Scores of a text for itself: equal to the target, varied, without loops, whole."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from bimo.evaluation.answer import CUT, circumstances
from bimo.evaluation.scores.ratio import Share, shares
from bimo.evaluation.words import n_grams, pieces, words
from bimo.tasks.task import TaskExample

_LONGEST_LOOP = 64  # pieces that repeat
_ROUNDS = 3  # times in a row that make a loop
_WORDS_IN_LOOP, _SIGNS_IN_LOOP = 8, 32  # pieces in all rounds together; people draw lines of dashes


class ExactMatch(Share):
    """Share of answers that are the target but for white space and Unicode's ways to write one character."""

    name = "exact match"
    higher_is_better = True

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """Equal or not, and 1: (n, 2)."""
        pairs = zip(answers, examples, strict=True)
        return shares([_plain(answer) == _plain(example.target) for answer, example in pairs])


class _Distinct(Share):
    """Different n-grams over all n-grams within answers (after Li et al. 2016), in points of a hundred."""

    higher_is_better = True

    def __init__(self, n: int) -> None:
        self.name, self.n = f"distinct-{n}", n

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """Different ones and all: (n, 2)."""
        grams = [n_grams(words(answer), self.n) for answer in answers]
        return shares([float(len(set(found))) for found in grams], [len(found) for found in grams])


class Distinct1(_Distinct):
    """Of words."""

    def __init__(self) -> None:
        super().__init__(1)


class Distinct2(_Distinct):
    """Of pairs of words."""

    def __init__(self) -> None:
        super().__init__(2)


class Repetition(Share):
    """Share of answers that are caught in a loop, in points of a hundred."""

    name = "repetition"
    higher_is_better = False

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """In a loop or not, and 1: (n, 2)."""
        return shares([loops(answer) for answer in answers])


class Cut(Share):
    """Share of answers that were cut off by `max_tokens` or the context, in points of a hundred."""

    name = "cut"
    higher_is_better = False

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """Cut or not, and 1: (n, 2)."""
        return shares([how.finish_reason in CUT for how in circumstances(answers)])


def loops(text: str) -> bool:
    """Whether some piece of up to 64 words stands at least 3 times in a row, 8 words in all (32 without letters)."""
    found = pieces(text)
    ids = np.unique(np.array(found, dtype=object), return_inverse=True)[1] if found else np.empty(0, int)
    for period in range(1, min(_LONGEST_LOOP, len(ids) // _ROUNDS) + 1):
        least = max(_ROUNDS * period, _WORDS_IN_LOOP) - period  # pieces that equal the one a period later
        for start, length in _runs(ids[:-period] == ids[period:], least):
            signs = not any(piece[0].isalnum() for piece in found[start : start + period])
            if not signs or length + period >= _SIGNS_IN_LOOP:
                return True
    return False


def _runs(flags: np.ndarray, least: int) -> list[tuple[int, int]]:
    """Start and length of each run of true values that is long enough."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    return [(int(s), int(e - s)) for s, e in zip(starts, ends, strict=True) if e - s >= least]


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
