"""One side of the data, training or validation, while it is read: its ledger, its columns, lines and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bimo.data.checkup.character_checks import character_spots
from bimo.data.checkup.characters import Block
from bimo.data.checkup.columns import Column
from bimo.data.checkup.content_checks import content_spots
from bimo.data.checkup.fields import MESSAGES, Fault, RecordChecker, Task
from bimo.data.checkup.findings import NAMED_SINGLY, Finding, Findings
from bimo.data.checkup.kinds import KINDS, excerpt
from bimo.data.checkup.ledger import Ledger, repeats
from bimo.data.checkup.lines import LineCounter
from bimo.data.checkup.near import Sketches
from bimo.data.checkup.privacy_checks import personal_spots, secret_spots
from bimo.data.checkup.rows import FileRows
from bimo.data.files import kind_of

GATHERED_ROWS, GATHERED_CHARACTERS = 1000, 1 << 17
MOST_SAID = 10_000


@dataclass
class LabelCount:
    """How often a label stands, and the first rows that have it."""

    times: int = 0
    numbers: list[int] = field(default_factory=list)


class Side:
    """Takes rows, one after the other, and reports what is wrong with each.

    Args:
        findings: Where everything goes.
        personal_data: Look for personal data, too.
        similar: Keep what near duplicates are found by.
    """

    def __init__(self, findings: Findings, *, personal_data: bool, similar: bool) -> None:
        self.findings, self.personal_data = findings, personal_data
        self.ledger = Ledger()
        self.columns: dict[str, Column] = {}
        self.lines = LineCounter()
        self.sketches = Sketches() if similar else None
        self.labels: dict[object, LabelCount] = {}
        self.tasks: dict[str, int] = {}
        self._plain: dict[str, bool] = {}
        self._task: Task | None = None
        self._waiting: list[tuple[str, ...]] = []
        self._rows: list[int] = []
        self._labels: list[object] = []
        self._size = 0
        self._said: set[tuple[str, str]] = set()

    def begin(self, rows: FileRows, task: Task | None) -> None:
        """The rows that follow come from this file."""
        self.spread()
        self.ledger.begin(rows.name)
        self._plain[rows.name] = kind_of(rows.file) == "text"
        self._task = task

    def add(self, row: int, texts: tuple[str, ...], label: object = None) -> None:
        """A row that can be used, with one text for each field of the task."""
        self._waiting.append(texts)
        self._rows.append(row)
        if label is not None:
            self._labels.append(label)
        self._size += len(texts[0])
        if self._size > GATHERED_CHARACTERS or len(self._rows) >= GATHERED_ROWS:
            self.spread()

    @property
    def next_number(self) -> int:
        """The number in the ledger that the next row will have."""
        return len(self.ledger) + len(self._rows)

    def spread(self) -> None:
        """Give the rows that wait to the ledger and their columns."""
        waiting, rows, labels = self._waiting, self._rows, self._labels
        self._waiting, self._rows, self._labels, self._size = [], [], [], 0
        if not waiting:
            return
        first = self.ledger.extend(rows, waiting, labels)
        for number, label in enumerate(labels, first):
            count = self.labels.setdefault(label, LabelCount())
            count.times += 1
            if count.times <= NAMED_SINGLY:
                count.numbers.append(number)
        if self.sketches is not None:
            self.sketches.add("\n".join(texts) for texts in waiting)
        names = self._task.texts if self._task else ("",)
        for name, texts in zip(names, zip(*waiting, strict=True), strict=True):
            column = self.columns.get(name)
            if column is None:
                column = self.columns[name] = Column(
                    name, _BlockChecker(self, f"in {name!r}: " if len(names) > 1 else "")
                )
            column.add(first, texts)
            if self._task is not MESSAGES:
                for number, text in enumerate(texts, first):
                    if "\n" in text:
                        self.lines.add(number, text)

    def say(self, kind: str, file: str, row: int, what: str, mend: str = "") -> None:
        """Report something about a row of a file."""
        severity, usual = KINDS[kind]
        self.findings.add(Finding(kind, severity, file, row, what, mend or usual))

    def is_new(self, file: str, what: str) -> bool:
        """Whether this is said of the file for the first time: a loop of megabytes comes as many documents."""
        new = (file, what) not in self._said
        if len(self._said) < MOST_SAID:
            self._said.add((file, what))
        return new

    @cached_property
    def duplicates(self) -> tuple[np.ndarray, np.ndarray]:
        """When all is read: rows that are the same as an earlier one, label and all, and that earlier one."""
        labels = self.ledger.labels.astype(np.int64)
        return repeats(self.ledger.exact ^ ((labels + 1) * 0x9E3779B97F4A7))

    def flush(self) -> None:
        """Check what is still gathered."""
        self.spread()
        for column in self.columns.values():
            column.flush()

    def place(self, number: int, text: str, place: int) -> tuple[str, int]:
        """File and row of a position in a text: in plain text the very line."""
        file, row = self.ledger.place(number)
        return file, row + (text.count("\n", 0, place) if self._plain[file] else 0)


@dataclass(frozen=True)
class _BlockChecker:
    """All checks of single texts, for one column of a side."""

    side: Side
    prefix: str

    def __call__(self, block: Block) -> None:
        finders = [character_spots, content_spots, secret_spots]
        for find in [*finders, personal_spots] if self.side.personal_data else finders:
            for kind, document, place, what in find(block):
                file, row = self.side.place(block.rows[document], block.texts[document], place)
                if kind != "repetition" or self.side.is_new(file, what):
                    self.side.say(kind, file, row, self.prefix + what)


def doubtful_texts(checker: RecordChecker, record: Mapping[str, object]) -> tuple[tuple[str, ...] | None, list[Fault]]:
    """The texts of a record that `RecordChecker.texts_of` does not take, if they can be used, and what is wrong."""
    faults = list(checker.faults(record))
    if any(kind in ("wrong field", "empty") for kind, _, _ in faults):
        return None, faults
    return _loose_texts(checker.task, record), faults


def _loose_texts(task: Task, record: Mapping[str, object]) -> tuple[str, ...] | None:
    if task is not MESSAGES:
        return tuple(str(record[name]) for name in task.texts)
    messages = record["messages"]
    assert isinstance(messages, list), "its type was checked"
    contents = [message.get("content") for message in messages]
    return ("\n".join(content for content in contents if isinstance(content, str)),)


def same_texts(task: Task, texts: tuple[str, ...]) -> tuple[str, str]:
    """Kind and words of the finding that two texts of a record are the same; '' where they may be."""
    first, second = task.texts[:2]
    if task.name == "preferences" or not (task.name != "translation" or _is_sentence(texts[0])):
        return "", ""
    kind = "untranslated" if task.name == "translation" else "copied"
    return kind, f"{first!r} and {second!r} are the same: {excerpt(texts[0], 0, min(40, len(texts[0])), 0)}"


def _is_sentence(text: str) -> bool:
    """Whether a text is long enough that its translation cannot be the same: five words, or ten Chinese characters."""
    words = [word for word in text.split() if word.isalpha() and word.islower()]
    return len(words) >= 4 or sum("\u4e00" <= c <= "\u9fff" for c in text) >= 10
