"""Documents without those that the same source holds already: equal ones by their fingerprint, nearly equal ones by
their sketches. The first one stays, so the result depends on nothing but the documents and their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from bimo.data.checkup.near import Sketches, sketch
from bimo.data.documents import Document

SIMILARITY = 0.8
"""Share of common phrases from which on two documents are nearly the same, as in the checkup."""


class Distinct:
    """Documents that can be read again and again, each text once.

    Args:
        documents: All of them, in an order that is the same each time.
        kind: exact, or near, which reads them once more and keeps 256 bytes of each.

    Attributes:
        left_out: How many the last pass has left out.
    """

    def __init__(self, documents: Iterable[Document], kind: Literal["exact", "near"]) -> None:
        self.documents, self.kind = documents, kind
        self.left_out = 0
        self._near: frozenset[int] | None = None

    def __iter__(self) -> Iterator[Document]:
        if self.kind == "near" and self._near is None:
            self._near = near_duplicates(np.stack([sketch(document.text) for document in self.documents]))
        seen: set[int] = set()
        self.left_out = 0
        for number, document in enumerate(self.documents):
            fingerprint = document.fingerprint
            if fingerprint in seen or number in (self._near or ()):
                self.left_out += 1
                continue
            seen.add(fingerprint)
            yield document


def near_duplicates(sketches: np.ndarray) -> frozenset[int]:
    """Numbers of the documents that are nearly the same as an earlier one, by their sketches, (documents, HASHES)."""
    all_of_them = Sketches()
    all_of_them.add_made(sketches)
    return frozenset(all_of_them.pairs(SIMILARITY)[0].tolist())
