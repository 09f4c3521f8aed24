"""Floors for labels: the one that is most frequent, and a linear model of words and pieces of words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bimo.core.errors import require
from bimo.evaluation.answer import Answer, Circumstances
from bimo.evaluation.floors.nearest import terms
from bimo.tasks.task import TaskExample

_FEATURES = 50_000  # of each kind, the most frequent ones
_CHARACTERS = 4_000  # of a text that are looked at
_STEPS = 200


class Majority:
    """The label that most training examples have, as sure as its share."""

    name = "majority"
    needs_training = True

    def __init__(self) -> None:
        self.probabilities: dict[str, float] = {}

    def fit(self, examples: Sequence[TaskExample]) -> None:
        """Count the labels."""
        counts = Counter(example.target for example in examples)
        ordered = sorted(counts, key=lambda label: (-counts[label], label))
        self.probabilities = {label: counts[label] / len(examples) for label in ordered}

    def answer(self, examples: Sequence[TaskExample]) -> list[Answer]:
        """The same for all."""
        label = next(iter(self.probabilities))
        return [Answer(label, Circumstances(probabilities=self.probabilities)) for _ in examples]


class BagOfWords:
    """Logistic regression on TF-IDF of words and of one to four characters.

    Args:
        strength: Inverse of the regularisation, scikit-learn's C.
    """

    name = "bag of words"
    needs_training = True

    def __init__(self, strength: float = 10.0) -> None:
        if not strength > 0:
            raise ValueError(f"strength must be above 0, is {strength}")
        self.strength = strength
        self._majority = Majority()
        self._pipeline: Any = None

    def fit(self, examples: Sequence[TaskExample]) -> None:
        """Fit the weights; where all examples have one label, there is nothing to weigh."""
        self._majority.fit(examples)
        if len(self._majority.probabilities) < 2:
            return
        text = require("sklearn.feature_extraction.text", "eval")
        kinds = [
            text.TfidfVectorizer(analyzer=terms, sublinear_tf=True, max_features=_FEATURES),
            text.TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True, max_features=_FEATURES),
        ]
        pipeline = require("sklearn.pipeline", "eval")
        linear = require("sklearn.linear_model", "eval")
        model = linear.LogisticRegression(C=self.strength, max_iter=_STEPS, tol=1e-3)
        self._pipeline = pipeline.make_pipeline(pipeline.make_union(*kinds), model)
        self._pipeline.fit(_beginnings(examples), [example.target for example in examples])

    def answer(self, examples: Sequence[TaskExample]) -> list[Answer]:
        """The likeliest label, with the probabilities of all."""
        if self._pipeline is None or not examples:
            return self._majority.answer(examples)
        labels = [str(label) for label in self._pipeline.classes_]
        found = []
        for row in np.asarray(self._pipeline.predict_proba(_beginnings(examples))):
            how = Circumstances(probabilities=dict(zip(labels, row.tolist(), strict=True)))
            found.append(Answer(labels[int(row.argmax())], how))
        return found


def _beginnings(examples: Sequence[TaskExample]) -> list[str]:
    return [example.source[:_CHARACTERS] for example in examples]
