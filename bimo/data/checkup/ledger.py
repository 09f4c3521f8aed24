"""What the checkup keeps of every row: where it lies, two hashes and its label.

Some forty bytes a row, so that the rows of a hundred gigabytes fit into memory and duplicates are found by sorting
numbers. The folded hash does not see case, white space and punctuation.
"""

from __future__ import annotations

import string
from array import array
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

_LOWER = bytes.maketrans(string.ascii_uppercase.encode(), string.ascii_lowercase.encode())
_LEFT_OUT = (string.whitespace + string.punctuation).encode()
_WIDE_MARKS = tuple(mark.encode() for mark in "，。！？")
_GROUP = 500  # rows that are hashed together
SHORT = 0
"""Folded hash of a row of which nothing is left."""


def folded(text: str) -> bytes:
    """The text as the folded hash sees it."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data) < 2 * len(text) and not text.isascii():  # in Chinese, which has no capitals, it would cost the most
        data = text.lower().encode("utf-8", "surrogatepass")
    data = data.translate(_LOWER, _LEFT_OUT)
    if len(data) > 2 * len(text):
        for mark in _WIDE_MARKS:
            data = data.replace(mark, b"")
    return data


class Ledger:
    """The rows of one side of the data, training or validation.

    Attributes:
        files: Names, in the order of reading.
        n_bytes: Of UTF-8 text.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self.n_bytes = 0
        self._file_starts: list[int] = []
        self._rows = array("q")
        self._exact = array("q")
        self._folded = array("q")
        self._firsts = array("q")
        self._labels = array("i")
        self._keys: list[str] = []
        self._label_codes: dict[tuple[type, object], int] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def begin(self, file: str) -> None:
        """The rows that follow come from this file."""
        self.files.append(file)
        self._file_starts.append(len(self._rows))

    def extend(self, rows: Sequence[int], texts: Sequence[tuple[str, ...]], labels: Sequence[object]) -> int:
        """Note some rows, with the texts of each and, where there are any, their labels; the number of the first."""
        first = len(self._rows)
        self._rows.extend(rows)
        if labels:
            self._labels.extend([-1] * (first - len(self._labels)))
            codes = self._label_codes
            self._labels.extend(codes.setdefault((type(label), label), len(codes)) for label in labels)
        if texts and len(texts[0]) == 1:
            self._keys.extend(row[0] for row in texts)
        else:
            self._keys.extend(map("\x1f".join, texts))
            self._firsts.extend([0] * (first - len(self._firsts)))
            self._firsts.extend(hash(row[0]) for row in texts)
        if len(self._keys) > _GROUP:
            self._hash()
        return first

    def place(self, number: int) -> tuple[str, int]:
        """File and row of a row by its number."""
        return self.files[bisect_right(self._file_starts, number) - 1], self._rows[number]

    def file_numbers(self) -> np.ndarray:
        """For each row the number of its file, (rows,)."""
        lengths = np.diff([*self._file_starts, len(self)])
        return np.repeat(np.arange(len(self.files)), lengths)

    @property
    def rows(self) -> np.ndarray:
        """Row in its file, (rows,)."""
        return np.array(self._rows, np.int64)

    @property
    def exact(self) -> np.ndarray:
        """Hash of the whole text, (rows,)."""
        self._hash()
        return np.array(self._exact, np.int64)

    @property
    def folded(self) -> np.ndarray:
        """Hash of the folded text, (rows,); `SHORT` where nothing is left of it."""
        self._hash()
        return np.array(self._folded, np.int64)

    @property
    def firsts(self) -> np.ndarray:
        """Hash of the first text of rows that have several, 0 for the others, (rows,)."""
        self._firsts.extend([0] * (len(self) - len(self._firsts)))
        return np.array(self._firsts, np.int64)

    @property
    def labels(self) -> np.ndarray:
        """A number for the label of each row, -1 for none, (rows,)."""
        self._labels.extend([-1] * (len(self) - len(self._labels)))
        return np.array(self._labels, np.int32)

    def _hash(self) -> None:
        keys, self._keys = self._keys, []
        if not keys:
            return
        self._exact.extend(map(hash, keys))
        self.n_bytes += sum(len(key) if key.isascii() else len(key.encode("utf-8", "surrogatepass")) for key in keys)
        self._folded.extend(hash(folded(key)) for key in keys)  # the hash of nothing is 0


def repeats(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of all rows whose hash came before, in order, and for each the first row that has it."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    new = np.concatenate(([True], ordered[1:] != ordered[:-1])) if len(order) else np.zeros(0, bool)
    firsts = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))] if len(order) else order
    later = ~new
    numbers, first_of = order[later], firsts[later]
    sequence = np.argsort(numbers, kind="stable")
    return numbers[sequence], first_of[sequence]


def common(hashes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the rows whose hash stands among the others, and for each one of those that have it."""
    if not len(hashes) or not len(others):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = np.argsort(others, kind="stable")
    places = np.minimum(np.searchsorted(others[order], hashes), len(others) - 1)
    there = others[order][places] == hashes
    return np.flatnonzero(there), order[places[there]]
