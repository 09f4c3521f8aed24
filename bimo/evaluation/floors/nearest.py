"""The answer of the training example whose source is most alike: TF-IDF of words, cosine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bimo.core.errors import require
from bimo.evaluation.answer import Answer
from bimo.evaluation.words import pieces, words
from bimo.tasks.task import TaskExample

_AT_ONCE = 2**22  # similarities that are held


class Nearest:
    """What was right for the nearest training example; of equally near ones the first."""

    name = "nearest"
    needs_training = True

    def __init__(self) -> None:
        self.targets: list[str] = []
        self._vectors: Any = None
        self._vectorizer: Any = None

    def fit(self, examples: Sequence[TaskExample]) -> None:
        """Keep the training examples as vectors."""
        text = require("sklearn.feature_extraction.text", "eval")
        self._vectorizer = text.TfidfVectorizer(analyzer=terms, sublinear_tf=True, dtype=np.float32)
        self._vectors = self._vectorizer.fit_transform([example.source for example in examples]).T.tocsr()
        self.targets = [example.target for example in examples]

    def answer(self, examples: Sequence[TaskExample]) -> list[Answer]:
        """The targets of the nearest ones."""
        if not examples:
            return []
        rows = self._vectorizer.transform([example.source for example in examples])
        step = max(1, _AT_ONCE // max(1, len(self.targets)))
        found: list[Answer] = []
        for start in range(0, rows.shape[0], step):
            alike = (rows[start : start + step] @ self._vectors).toarray()  # (step, training examples)
            found += [Answer(self.targets[int(place)]) for place in alike.argmax(axis=1)]
        return found


def terms(text: str) -> list[str]:
    """What is counted of a text: its words; where it has none, its signs."""
    return words(text) or pieces(text) or [""]
