"""A column: the texts of one field over all rows, in blocks, with what is kept of them for the end of the checkup."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bimo.data.checkup.characters import Block
from bimo.data.checkup.languages import LanguageGuesser

BLOCK_CHARACTERS = 1 << 18  # some hundred kilobytes: what the checks need at a time stays in the cache


class Column:
    """Gathers texts into blocks and hands each full block to the checks.

    Texts of ASCII alone go into blocks of their own: most checks have nothing to do there.

    Args:
        name: The field; '' for plain text.
        check: Is called with each block; its rows are the numbers of the ledger.
    """

    def __init__(self, name: str, check: Callable[[Block], None]) -> None:
        self.name, self.check = name, check
        self.guesser = LanguageGuesser()
        self._texts: dict[bool, list[str]] = {True: [], False: []}
        self._numbers: dict[bool, list[int]] = {True: [], False: []}
        self._sizes = {True: 0, False: 0}
        self._seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, first: int, texts: Sequence[str]) -> None:
        """More texts; `first` is the number of the first one's row in the ledger, the others follow."""
        ascii_only = [text.isascii() for text in texts]
        numbers = range(first, first + len(texts))
        if all(ascii_only):
            self._gather(True, texts, numbers)
            return
        for side in (True, False):
            own = [place for place, plain in enumerate(ascii_only) if plain == side]
            self._gather(side, [texts[place] for place in own], [first + place for place in own])

    def _gather(self, ascii_only: bool, texts: Sequence[str], numbers: Sequence[int]) -> None:
        self._texts[ascii_only].extend(texts)
        self._numbers[ascii_only].extend(numbers)
        self._sizes[ascii_only] += sum(map(len, texts)) + 20 * len(texts)
        if self._sizes[ascii_only] > BLOCK_CHARACTERS:
            self._close(ascii_only)

    def flush(self) -> None:
        """Check what has been gathered."""
        for ascii_only in (True, False):
            self._close(ascii_only)

    def lengths_and_languages(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Numbers of the rows in order, characters, and language of each of their texts, (texts,) each."""
        if not self._seen:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8)
        numbers, lengths, languages = (np.concatenate(parts) for parts in zip(*self._seen, strict=True))
        order = np.argsort(numbers, kind="stable")
        return numbers[order], lengths[order], languages[order]

    def _close(self, ascii_only: bool) -> None:
        texts, numbers = self._texts[ascii_only], self._numbers[ascii_only]
        if not texts:
            return
        self._texts[ascii_only], self._numbers[ascii_only], self._sizes[ascii_only] = [], [], 0
        block = Block.of(texts, numbers)
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        self._seen.append((np.array(numbers, np.int64), lengths, self.guesser.judge(block)))
        self.check(block)
