"""Two honest floors for held-out text, in bits per byte: what simple methods reach that learn from the same text.

A language model that does not beat them has learned nothing that counting or copying would not give.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BOUNDARY = 256  # stands before the first byte of a document
_SYMBOLS = 257
_LONGEST = 7  # bytes whose number in base 257 fits into 64 bits
_FALLBACK = (0.5, 1.0, 1.5)  # KenLM's discounts for counts whose own estimate is no discount (--discount_fallback)
_AT_ONCE = 2**20  # bytes that are looked up together: a bound on memory


@dataclass(frozen=True)
class _Order:
    """Counts of one order of the n-gram model; arrays are sorted by code.

    Attributes:
        grams: Code of each gram that was seen, uint64; `discounted` is its count less the discount.
        contexts: Code of each context, uint64, with `totals`, the sum of its counts, and `left_over`, the discounts
            that were taken from it.
    """

    grams: np.ndarray
    discounted: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    left_over: np.ndarray


class NGramModel:
    """Byte n-grams with interpolated modified Kneser-Ney smoothing (Chen & Goodman 1998, section 3).

    Args:
        documents: Text to count; without any, every byte is equally likely.
        order: Bytes in a gram, the predicted one included; at most 7.
    """

    def __init__(self, documents: Sequence[bytes], order: int = 5) -> None:
        assert 1 <= order <= _LONGEST, f"order must lie in 1 … {_LONGEST}, is {order}"
        self.order = order
        self.orders: list[_Order] = []
        coded = [gram_codes(document, order) for document in documents if document]
        if not coded:
            return
        codes = np.concatenate(coded)
        grams, counts = np.unique(codes, return_counts=True)
        self.orders.append(_discount(grams, counts))
        for length in range(order - 1, 0, -1):
            # Below the highest order a gram counts by how many different bytes it follows.
            grams, counts = np.unique(grams % np.uint64(_SYMBOLS**length), return_counts=True)
            self.orders.insert(0, _discount(grams, counts))

    def probabilities(self, grams: np.ndarray) -> np.ndarray:
        """Probability of the last byte of each gram given the bytes before it, float64 (n,)."""
        probability = np.full(len(grams), 1 / 256)
        for length, counts in enumerate(self.orders, start=1):
            code = grams % np.uint64(_SYMBOLS**length)
            place, known = _find(counts.contexts, code // np.uint64(_SYMBOLS))
            gram, seen = _find(counts.grams, code)
            total = counts.totals[place]
            direct = np.where(seen, counts.discounted[gram], 0.0)
            probability = np.where(known, (direct + counts.left_over[place] * probability) / total, probability)
        return probability

    def bits_per_byte(self, documents: Sequence[bytes]) -> float:
        """Mean of -log2 of the probability of every byte; NaN without any."""
        coded = [gram_codes(document, self.order) for document in documents if document]
        if not coded:
            return float("nan")
        codes = np.concatenate(coded)
        pieces = (codes[start : start + _AT_ONCE] for start in range(0, len(codes), _AT_ONCE))
        return -sum(float(np.log2(self.probabilities(piece)).sum()) for piece in pieces) / len(codes)


def xz_bits_per_byte(train: Sequence[bytes], valid: Sequence[bytes]) -> float:
    """Bits that xz needs per byte of `valid` when it has `train` to refer to: the growth of the compressed whole.

    Preset 6 with a dictionary of 64 MiB, some 0.7 MB/s: text further back than that cannot be referred to. NaN without
    any text in `valid`.
    """
    before, after = b"\n\n".join(train), b"\n\n".join(valid)
    if not after:
        return float("nan")
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**26}]

    def size(text: bytes) -> int:
        return len(lzma.compress(text, format=lzma.FORMAT_RAW, filters=filters))

    return 8 * (size(before + after) - size(before)) / len(after)


def gram_codes(document: bytes, order: int) -> np.ndarray:
    """The gram that ends at each byte, as a number in base 257; boundaries stand before the first byte."""
    padded = np.concatenate((np.full(order - 1, _BOUNDARY), np.frombuffer(document, np.uint8))).astype(np.uint64)
    n = len(document)
    code = np.zeros(n, np.uint64)
    for i in range(order):
        code = code * np.uint64(_SYMBOLS) + padded[i : i + n]
    return code


def _discount(grams: np.ndarray, counts: np.ndarray) -> _Order:
    """Take the discounts D1, D2, D3+ from the counts of one order."""
    n = [max(1, int((counts == i).sum())) for i in range(1, 5)]
    y = n[0] / (n[0] + 2 * n[1])
    estimates = [i - (i + 1) * y * n[i] / n[i - 1] for i in (1, 2, 3)]
    # Text that repeats can give an estimate of 0 or less. Nothing would then be left over for the unseen, and one
    # surprising byte would cost infinitely many bits.
    usable = [own if own > 0 else other for own, other in zip(estimates, _FALLBACK, strict=True)]
    discounts = np.array([0.0, *usable])
    taken = discounts[np.minimum(counts, 3)]
    contexts, start = np.unique(grams // np.uint64(_SYMBOLS), return_index=True)
    totals = np.add.reduceat(counts, start).astype(np.float64)
    return _Order(grams, counts - taken, contexts, totals, np.add.reduceat(taken, start))


def _find(table: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of each value in a sorted table, and whether it is there."""
    place = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return place, table[place] == values
