"""Near duplicates by MinHash (Broder 1997): rows that share most of their phrases, found without comparing all pairs.

A row's sketch is the least of 64 hashes over its phrases of three words (or Chinese characters). Two rows agree in as
large a share of their sketches as they share phrases. Rows are compared that agree in one of 16 bands of four.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from zlib import crc32

import numpy as np

HASHES, BANDS = 64, 16
SHORTEST = 12  # phrases; below it a word more or less is too much
_LARGE_GROUP = 40  # rows of one bucket that are compared with each other; beyond, with the first alone
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_WORD = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")
_FACTORS = np.random.default_rng(0).integers(1, 2**63, HASHES, np.uint64) * np.uint64(2) + np.uint64(1)
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Numbers of rows, of a row that each is like, and the share of phrases in common."""


class Sketches:
    """The sketches of the rows of one side, 256 bytes each."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, texts: Iterable[str]) -> None:
        """The next rows, in the order of the ledger."""
        self._parts.append(np.stack([sketch(text) for text in texts]))

    def add_made(self, sketches: np.ndarray) -> None:
        """The next rows, as `sketch` gave them, (rows, HASHES)."""
        self._parts.append(sketches)

    def all(self) -> np.ndarray:
        """(rows, HASHES) uint32; all zero for rows that are too short."""
        return np.concatenate(self._parts) if self._parts else np.zeros((0, HASHES), np.uint32)

    def pairs(self, similarity: float, others: Sketches | None = None) -> Pairs:
        """Each row once that is like an earlier one, or like one of the others."""
        own = self.all()
        base = own if others is None else others.all()
        best: dict[int, tuple[float, int]] = {}
        for number, other in _candidates(own, base, within=others is None):
            share = float((own[number] == base[other]).mean())
            if share >= similarity and share > best.get(number, (0.0, 0))[0]:
                best[number] = (share, other)
        numbers = sorted(best)
        return (
            np.array(numbers, np.int64),
            np.array([best[n][1] for n in numbers], np.int64),
            np.array([best[n][0] for n in numbers]),
        )


def sketch(text: str) -> np.ndarray:
    """The least of each hash over all phrases, (HASHES,) uint32; zeros when there are too few of them."""
    words = _WORD.findall(text.lower())
    if len(words) < SHORTEST + 2:
        return np.zeros(HASHES, np.uint32)
    # Not Python's own hash: it is another one in each process, and so would be what is just similar enough.
    hashes = np.fromiter((crc32(word.encode()) for word in words), np.uint64, len(words))
    with np.errstate(over="ignore"):
        phrases = (hashes[:-2] * _MIX[0] ^ hashes[1:-1] * _MIX[1]) * _MIX[1] ^ hashes[2:] * _MIX[2]
        phrases ^= phrases >> np.uint64(29)
        spread = phrases[:, None] * _FACTORS  # (phrases, HASHES)
    return (spread >> np.uint64(32)).min(0).astype(np.uint32)


def _candidates(own: np.ndarray, base: np.ndarray, *, within: bool) -> set[tuple[int, int]]:
    """Pairs of rows that agree in a whole band: (row, an earlier row), or (row, row of the others)."""
    found: set[tuple[int, int]] = set()
    width = HASHES // BANDS
    for band in range(BANDS):
        columns = slice(band * width, (band + 1) * width)
        buckets: dict[bytes, list[int]] = {}
        for number in np.flatnonzero(base[:, columns].any(1)).tolist():
            bucket = buckets.setdefault(base[number, columns].tobytes(), [])
            if within:
                found.update((number, other) for other in bucket)
            if len(bucket) < (_LARGE_GROUP if within else 1):
                bucket.append(number)
        if not within:
            for number in np.flatnonzero(own[:, columns].any(1)).tolist():
                found.update((number, other) for other in buckets.get(own[number, columns].tobytes(), ()))
    return found
