"""Scores of labels: how many are right, each label for itself, and whether the model knows how sure it may be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bimo.evaluation.answer import circumstances
from bimo.evaluation.scores.ratio import Share, ratio, shares
from bimo.tasks.task import TaskExample


class Accuracy(Share):
    """Share of answers that are the target, in points of a hundred."""

    name = "accuracy"
    higher_is_better = True

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """Right or not, and 1: (n, 2)."""
        return shares(_right(answers, examples))


class MacroF1:
    """Mean over labels of each one's F1, in points of a hundred; the labels are those that some target has.

    A label that is never predicted has F1 0; answers that are no label count as wrong.

    Attributes:
        within_label: False: among the examples of one label it would say something else.
    """

    name = "macro F1"
    higher_is_better = True
    within_label = False

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """For each label whether it is rightly answered, answered, and the target: (n, 3 * labels)."""
        labels = {label: i for i, label in enumerate(sorted({example.target for example in examples}))}
        found = np.zeros((len(answers), 3, len(labels)))
        for row, answer, example in zip(found, answers, examples, strict=True):
            wanted = labels[example.target]
            row[2, wanted] = 1
            if answer in labels:
                row[1, labels[answer]] = 1
                row[0, wanted] = float(answer == example.target)
        return found.reshape(len(answers), -1)

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The score of each line of sums: (…, 3 * labels) → (…)."""
        right, answered, wanted = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)  # each (…, labels)
        f1 = ratio(2 * right, answered + wanted)
        there = wanted > 0
        return 100 * ratio(np.where(there, f1, 0.0).sum(axis=-1), there.sum(axis=-1))


class CalibrationError:
    """Expected calibration error (Guo et al. 2017): mean distance of confidence and accuracy over bins of confidence.

    In points of a hundred. Answers whose probabilities are not known do not count; without any it is NaN.

    Args:
        bins: Of equal width.
    """

    name = "calibration error"
    higher_is_better = False
    within_label = False

    def __init__(self, bins: int = 10) -> None:
        if not 1 <= bins <= 1000:
            raise ValueError(f"bins must lie in 1 … 1000, is {bins}")
        self.bins = bins

    def rows(self, answers: Sequence[str], examples: Sequence[TaskExample]) -> np.ndarray:
        """For each bin 1, the confidence, and whether the answer is right: (n, 3 * bins)."""
        found = np.zeros((len(answers), 3, self.bins))
        right = _right(answers, examples)
        for row, answer, how, is_right in zip(found, answers, circumstances(answers), right, strict=True):
            if how.probabilities:
                confidence = how.probabilities.get(str(answer), 0.0)
                row[:, min(int(confidence * self.bins), self.bins - 1)] = (1, confidence, is_right)
        return found.reshape(len(answers), -1)

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The error of each line of sums: (…, 3 * bins) → (…)."""
        count, confidence, right = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, self.bins), -2, 0)
        return 100 * ratio(np.abs(confidence - right).sum(axis=-1), count.sum(axis=-1), np.nan)


def _right(answers: Sequence[str], examples: Sequence[TaskExample]) -> list[bool]:
    return [str(answer) == example.target for answer, example in zip(answers, examples, strict=True)]
