"""How a defect gets into a clean data set, and what a checkup must name there: file, row, words of the finding."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from data import text_defects as texts
from data.clean_sets import FORMS, Row, as_chunks, draw_files

WHOLE_FILE, ANYWHERE = -1, -2
"""Places that are no row: the file as a whole, and any row or the whole."""


@dataclass(frozen=True)
class Case:
    """A data set in a folder, and what a checkup must name in it."""

    paths: list[str]
    valid: list[str]
    places: Mapping[str, frozenset[int] | None]
    """Files, as 'train/one.txt', and in each the rows of which one must be named; None means that any row will do."""
    finding: re.Pattern[str]
    """What kind and words of the finding, 'kind: what', must hold."""
    settings: Mapping[str, Any]
    form: str
    """The data set that it is in."""

    def is_named(self, kind: str, what: str, file: str, row: int) -> bool:
        """Whether this finding names the defect at its place."""
        if not self.finding.search(f"{kind}: {what}"):
            return False
        rows = [rows for name, rows in self.places.items() if name == "/".join(Path(file).parts[-2:])]
        return bool(rows) and (rows[0] is None or row in rows[0])


class Draft:
    """A clean data set and the place in it where the defect goes."""

    def __init__(self, name: str, forms: tuple[str, ...], seed: int) -> None:
        self.random = Random(f"{name} {seed}")
        self.form_name = self.random.choice(forms)
        self.form = FORMS[self.form_name]
        self.files = draw_files(self.form, seed)  # the same for every defect of this seed
        self.file = self.random.choice([name for name in self.files if name.startswith("train")])
        self.place = self.random.randrange(3, len(self.rows) - 3)
        self.places: dict[str, list[int]] = {}
        """Files and the places of rows where the defect counts as named; empty means `file` and `place`."""
        self.in_row: Callable[[bytes], bytes] = bytes
        self.in_file: Callable[[bytes], bytes] = bytes
        self.in_packed: Callable[[bytes], bytes] = bytes

    @property
    def rows(self) -> list[Row]:
        return self.files[self.file]

    @property
    def row(self) -> Row:
        return self.rows[self.place]

    @row.setter
    def row(self, row: Row) -> None:
        self.rows[self.place] = row

    @property
    def text(self) -> str:
        """The text that defects go into: of a chat that of its last message."""
        if isinstance(self.row, str):
            return self.row
        return self.row[self.form.field] if self.form.field else self.row["messages"][-1]["content"]

    @text.setter
    def text(self, text: str) -> None:
        if isinstance(self.row, str):
            self.row = text
        elif self.form.field:
            self.row = {**self.row, self.form.field: text}
        else:
            *before, last = self.row["messages"]
            self.row = {"messages": [*before, {**last, "content": text}]}

    def other_file(self) -> str:
        return next(name for name in self.files if name.startswith("train") and name != self.file)

    def copy_row(self, change: Callable[[str], str] = str, to: str = "") -> None:
        """Put a copy of the row, its text changed, further down in the file or somewhere in another one."""
        row, name = self.row, self.form.field
        copy = change(row) if isinstance(row, str) else {**row, name: change(row[name])} if name else row
        rows = self.files[to or self.file]
        place = self.random.randrange(0 if to else self.place + 1, len(rows))
        rows.insert(place, copy)
        self.places = {to or self.file: [place]}

    def write(self, folder: Path) -> dict[str, frozenset[int] | None]:
        """Write the files; the rows of the places in them."""
        found: dict[str, frozenset[int] | None] = {}
        for name, rows in self.files.items():
            chunks = as_chunks(name, rows)
            if name == self.file:
                chunks[self.place + 1] = self.in_row(chunks[self.place + 1])
            data = b"".join(chunks)
            data = self.in_file(data) if name == self.file else data
            data = gzip.compress(data, mtime=0) if name.endswith(".gz") else data
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.in_packed(data) if name == self.file else data)
            places = self.places.get(name, [self.place] if name == self.file and not self.places else [])
            if places:
                found[name] = _rows_of(chunks, places)
        return found


def _rows_of(chunks: list[bytes], places: list[int]) -> frozenset[int] | None:
    """The lines, from 1, of the rows at these places; a row of several lines has them all."""
    if ANYWHERE in places:
        return None
    lines = [0] if WHOLE_FILE in places else []
    for place in (place for place in places if place >= 0):
        first = 1 + sum(chunk.count(b"\n") for chunk in chunks[: place + 1])
        lines += range(first, first + max(1, chunks[place + 1].rstrip(b"\n").count(b"\n") + 1))
    return frozenset(lines)


@dataclass(frozen=True)
class Defect:
    """One kind of defect."""

    forms: tuple[str, ...]
    """The data sets that it can be in; the seed chooses."""
    damage: Callable[[Draft], None]
    finding: str
    """A pattern; upper and lower case are the same."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def __call__(self, seed: int, folder: Path, damaged: bool = True) -> Case:
        """Write the data set for this seed into the folder; without its defect for the control."""
        draft = Draft(self.name, self.forms, seed)
        if damaged:
            self.damage(draft)
        places = draft.write(folder)
        pattern = re.compile(self.finding, re.IGNORECASE)
        return Case([str(folder / "train")], [str(folder / "valid")], places, pattern, self.settings, draft.form_name)


TABLES = tuple(name for name, form in FORMS.items() if form.suffix == ".csv")
JSON_ROWS = tuple(name for name, form in FORMS.items() if form.suffix == ".jsonl")
TASKS = ("chinese pairs", "german pairs", "summaries", "answers", "labels")
LABELS = ("labels", "table of labels")
PAIRS = ("chinese pairs", "german pairs", "table of pairs")
PLAIN = ("english", "german", "chinese", "markdown", "english rows", "german rows", "chinese rows", "english table")
CHINESE = ("chinese", "chinese rows", "chinese pairs")
GERMAN = ("german", "german rows", "german pairs", "table of pairs")
ENGLISH = ("english", "letters", "markdown", "english rows", "english table", "summaries", "answers", "labels", "chats")
ALL = tuple(FORMS)


def snippet(make: Callable[[Random], str], finding: str, forms: tuple[str, ...] = ALL, **settings: Any) -> Defect:
    """Something between two words that does not belong there."""

    def damage(draft: Draft) -> None:
        draft.text = texts.insert(draft.random, draft.text, make(draft.random))

    return Defect(forms, damage, finding, settings)


def inside(characters: str, finding: str, forms: tuple[str, ...] = ALL) -> Defect:
    """A character in the middle of a word, of which the seed chooses one."""

    def damage(draft: Draft) -> None:
        draft.text = texts.insert_inside(draft.random, draft.text, draft.random.choice(characters))

    return Defect(forms, damage, finding)


def changed_text(change: Callable[[Random, str], str], finding: str, forms: tuple[str, ...] = ALL) -> Defect:
    """A text damaged as a whole."""

    def damage(draft: Draft) -> None:
        draft.text = change(draft.random, draft.text)

    return Defect(forms, damage, finding)


def changed_row(change: Callable[[Draft, Any], Row], finding: str, forms: tuple[str, ...]) -> Defect:
    """A record damaged as a whole."""

    def damage(draft: Draft) -> None:
        draft.row = change(draft, draft.row)

    return Defect(forms, damage, finding)


def changed_bytes(change: Callable[[Random, bytes], bytes], finding: str, forms: tuple[str, ...] = ALL) -> Defect:
    """The bytes of one row damaged."""

    def damage(draft: Draft) -> None:
        draft.in_row = lambda data: change(draft.random, data)

    return Defect(forms, damage, finding)


def changed_file(
    change: Callable[[bytes], bytes], finding: str, forms: tuple[str, ...] = ALL, place: int = WHOLE_FILE
) -> Defect:
    """A file damaged before it is compressed."""

    def damage(draft: Draft) -> None:
        draft.in_file = change
        draft.places = {draft.file: [place]}

    return Defect(forms, damage, finding)


def changed_gzip(change: Callable[[Random, bytes], bytes], finding: str) -> Defect:
    """A compressed file damaged."""

    def damage(draft: Draft) -> None:
        draft.file, draft.place = next(name for name in draft.files if name.endswith(".gz")), 0
        draft.in_packed = lambda data: change(draft.random, data)
        draft.places = {draft.file: [ANYWHERE]}

    return Defect(ALL, damage, finding)
