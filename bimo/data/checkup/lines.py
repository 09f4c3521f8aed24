"""Lines that come again in many documents: headers, cookie notes, navigation. In bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MOST_LINES = 400_000  # distinct lines that are kept; then those that came once are forgotten
LONGEST_KEPT = 300  # characters; boilerplate is shorter
SHORTEST = 12  # a third of it where characters are words
NAMED = 20


@dataclass(frozen=True)
class RepeatedLine:
    """A line that stands in many places.

    Attributes:
        text: The line.
        times: How often it stands there.
        numbers: The rows, by their number in the ledger, of its first places after the first one.
    """

    text: str
    times: int
    numbers: tuple[int, ...]


class LineCounter:
    """Counts the lines of documents that have several."""

    def __init__(self) -> None:
        self.n_documents = 0
        self._counts: dict[str, int] = {}
        self._later: dict[str, list[int]] = {}

    def add(self, number: int, text: str) -> None:
        """The lines of one document, by its number in the ledger."""
        counts, get = self._counts, self._counts.get
        self.n_documents += 1
        for line in text.split("\n"):
            if (SHORTEST if line.isascii() else SHORTEST // 3) <= len(line) <= LONGEST_KEPT:
                times = get(line, 0)
                counts[line] = times + 1
                if 0 < times < NAMED:
                    self._later.setdefault(line, []).append(number)
        if len(counts) > MOST_LINES:
            self._counts = {line: times for line, times in counts.items() if times > 1}

    def repeated(self) -> Iterator[RepeatedLine]:
        """Lines in so many documents that they are no text of any one, the most frequent first.

        Of the documents with several lines: one of twenty (and 20 times) or one of seven (and 8 times). A hundred times
        is enough in any case.
        """
        least = min(100, max(20, self.n_documents // 20), max(8, self.n_documents // 7))
        for line, times in sorted(self._counts.items(), key=lambda pair: -pair[1]):
            if times < least:
                return
            numbers = self._later.get(line, [])
            wide = len(set(numbers)) >= min(5, times - 1) or times >= 100
            if wide and sum(map(str.isalpha, line)) >= 0.4 * len(line):
                yield RepeatedLine(line, times, tuple(numbers))
