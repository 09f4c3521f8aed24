"""A cleaned copy of data, with what was done to which row; the data itself is never touched.

Everything that has one right answer is done: UTF-8 with line feeds, no broken rows, no copies, no leaks, no invisible
characters. What needs a judgement (other languages, long texts, wrong translations) stays as it is and in the report.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from bimo.core import pii, unicode
from bimo.core.artifacts import write_folder, write_text
from bimo.core.config import CheckSettings, DataSettings
from bimo.core.errors import UserError
from bimo.data.checkup.examination import Examination, examine
from bimo.data.checkup.fields import MESSAGES, RecordChecker, Task
from bimo.data.checkup.findings import MOST_ROWS, Report
from bimo.data.checkup.kinds import KINDS
from bimo.data.checkup.ledger import folded
from bimo.data.checkup.mojibake import repaired
from bimo.data.checkup.report_lines import lines_of
from bimo.data.checkup.rows import FileRows
from bimo.data.checkup.sides import doubtful_texts
from bimo.data.checkup.whole_checks import is_strange, slip_for
from bimo.data.checkup.writers import open_writer
from bimo.data.documents import Problem
from bimo.data.encodings import CONTROL
from bimo.data.files import STANDARD_INPUT, empty_files, find_files
from bimo.data.readers import document_rule
from bimo.data.tables import Broken

LOOP_LINES = 5  # the same line so many times in a row is a fault, fewer may be a refrain


@dataclass
class Cleaning:
    """What was done.

    Attributes:
        before: The checkup of the data as it was.
        after: The checkup of the copy.
        deeds: By file and by what was done, the rows.
        paths, valid: Where the copies of the two sides lie.
    """

    before: Report
    after: Report | None = None
    deeds: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    valid: list[str] = field(default_factory=list)

    def note(self, file: str, deed: str, row: int) -> None:
        """Remember that something was done to a row."""
        rows = self.deeds.setdefault(file, {}).setdefault(deed, [])
        self.counts[deed] = self.counts.get(deed, 0) + 1
        if len(rows) < MOST_ROWS:
            rows.append(row)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"done": self.counts, "rows": self.deeds, "before": self.before.to_dict()}


def clean(
    paths: Sequence[str],
    folder: Path,
    *,
    valid: Sequence[str] = (),
    settings: CheckSettings | None = None,
    mask_personal_data: bool = False,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Cleaning:
    """Write a cleaned copy of the files, under the same names, into a folder of its own.

    Args:
        paths: Training text or records.
        folder: Where the copy goes, beside a `report.json`; it must not hold anything else.
        valid: Validation text: it is cleaned, too, and what stands in it is left out of the training text.
        settings: As for the checkup.
        mask_personal_data: Put <EMAIL>, <PHONE>, <PASSWORD>, … in the place of personal data and secrets.
        on_progress: Is called now and then with the share of the first reading.

    Raises:
        UserError: The folder holds other things, the data lie in it, or nothing is left.
    """
    settings = settings or CheckSettings()
    sides = [list(valid), list(paths)]
    files = [find_files(side) if side else [] for side in sides]
    _check_place(folder, [*paths, *valid], [file for side in files for file in side])
    report, seen = examine(paths, valid, settings, None, on_progress)
    done = Cleaning(report)
    root = _common_folder([file for side in files for file in side])
    with write_folder(folder) as aside:
        cleaner = _Cleaner(seen, done, mask_personal_data)
        for side, side_files in zip(("valid", "train"), files, strict=True):
            rule = document_rule(side_files, DataSettings(documents=settings.documents))[0]
            for file in side_files:
                name = _name_of(file, root)
                rows = FileRows(file, rule, settings.text_field)
                if cleaner.copy(rows, aside / name, is_valid=side == "valid"):
                    (done.valid if side == "valid" else done.paths).append(str(folder / name))
        for file in empty_files([*paths, *valid]):
            done.note(str(file), "left out file without text", 0)
        if not done.paths:
            raise UserError("nothing is left after the cleaning", where=", ".join(paths), mend="See bimo check.")
        write_text(aside / "report.json", json.dumps(done.to_dict(), ensure_ascii=False, indent=1) + "\n")
    done.after = examine(done.paths, done.valid, settings)[0]
    return done


def _check_place(folder: Path, paths: Sequence[str], files: Sequence[Path]) -> None:
    inside = [file for file in files if folder.resolve() in file.resolve().parents]
    around = [path for path in paths if Path(path).resolve() in folder.resolve().parents]
    if around:
        what = "this folder lies in the data, and would be read as data the next time"
        raise UserError(what, where=str(folder), mend="Name one outside of them.")
    if STANDARD_INPUT in files:
        raise UserError("standard input can be read only once", mend="Save it to a file, and clean that.")
    if inside:
        raise UserError(
            "the data lie in this folder themselves", where=str(folder), mend="Name a new one for the copy."
        )


def _common_folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.resolve().parent for file in files]))


def _name_of(file: Path, root: Path) -> Path:
    return file.resolve().relative_to(root)


class _Cleaner:
    """Cleans rows and remembers, over all files, which texts have been written."""

    def __init__(self, seen: Examination, done: Cleaning, mask: bool) -> None:
        self.seen, self.done, self.mask = seen, done, mask
        self.written: set[int] = set()
        self.labels: dict[int, object] = {}
        self.held_out: set[int] = set()
        self.frequent = {line.text for side in (seen.train, seen.valid) for line in side.lines.repeated()}
        self.met: set[str] = set()

    def copy(self, rows: FileRows, target: Path, *, is_valid: bool) -> bool:
        """Write the clean rows of one file; whether anything was left of it."""
        writer = None
        for content in self._clean_rows(rows, self.seen.checkers.get(rows.name), is_valid=is_valid):
            if writer is None:
                writer = open_writer(target, rows.rule)
            writer.write(content)
        problem: Problem | None = rows.ended_early
        if problem:
            self.done.note(rows.name, f"left out the rest of the file: {problem.what}", problem.row)
        if rows.encoding and rows.encoding.label != "UTF-8":
            self.done.note(rows.name, f"converted from {rows.encoding.label} to UTF-8", 0)
        if rows.line_ends.windows:
            self.done.note(rows.name, "line ends are line feeds", 0)
        if writer is not None:
            writer.close()
        elif not problem:
            self.done.note(rows.name, "left out file without text", 0)
        return writer is not None

    def _clean_rows(
        self, rows: FileRows, checker: RecordChecker | None, *, is_valid: bool
    ) -> Iterator[str | dict[str, Any]]:
        for row, content in rows:
            if isinstance(content, Broken):
                self.done.note(rows.name, "left out broken row", row)
                continue
            deeds: list[str] = []
            result = self._text(content, deeds) if isinstance(content, str) else self._record(content, checker, deeds)
            if result is not None:
                reason = self._copy_of(result, checker.task if checker else None, is_valid=is_valid)
                if reason:
                    deeds, result = [reason], None
            for deed in deeds:
                self.done.note(rows.name, deed, row)
            if result is not None:
                yield result

    def _record(
        self, record: Mapping[str, object], checker: RecordChecker | None, deeds: list[str]
    ) -> dict[str, Any] | None:
        """The record with clean texts; None, with the reason among the deeds, when it is left out."""
        if checker is None:
            deeds.append("left out row without known fields")
            return None
        if checker.texts_of(record) is None:
            _, faults = doubtful_texts(checker, record)
            bad = next((kind for kind, _, _ in faults if kind == "empty" or KINDS[kind][0] == "error"), None)
            if bad:
                deeds.append(f"left out row: {bad}")
                return None
        task, result = checker.task, dict(record)
        if task is MESSAGES:
            messages = record["messages"]
            assert isinstance(messages, list), "its type was checked"
            result["messages"] = [self._message(message, deeds) for message in messages]
            return result
        for name in task.texts:
            text = self._text(str(record[name]), deeds)
            if text is None:
                return None
            result[name] = text
        if task.label and is_strange(self.seen.train.labels, result[task.label]):
            deeds.append("left out row: label")
            return None
        if task.label and (right := slip_for(self.seen.train.labels, result[task.label])) is not None:
            deeds.append(f"label {result[task.label]!r} corrected to {right!r}")
            result[task.label] = right
        return result

    def _message(self, message: Mapping[str, Any], deeds: list[str]) -> dict[str, Any]:
        content = message.get("content")
        return (
            {**message, "content": self._text(content, deeds) or content} if isinstance(content, str) else dict(message)
        )

    def _text(self, text: str, deeds: list[str]) -> str | None:
        """The text without what has no place in it; None when nothing is left."""
        for deed, mend in _MENDS:
            mended = mend(text)
            if mended != text:
                deeds.append(deed)
                text = mended
        if "\n" in text:
            text = self._without_repeats(text, deeds)
        if self.mask and (masked := pii.mask(text)) != text:
            deeds.append("masked personal data")
            text = masked
        if text and not text.isspace():
            return text
        deeds.append("left out empty row")
        return None

    def _without_repeats(self, text: str, deeds: list[str]) -> str:
        """The text with lines that come again in many documents only where they stand first, and without loops."""
        lines: list[str] = []
        for line, group in groupby(text.split("\n")):
            times = sum(1 for _ in group)
            if line in self.frequent:
                if line not in self.met:
                    self.met.add(line)
                    lines.append(line)
            else:
                looped = times >= LOOP_LINES and any(map(str.isalpha, line))
                lines += [line] if looped else [line] * times
        result = "\n".join(lines)
        if result != text:
            deeds.append("removed repeated lines")
        return result.strip("\n") if result != text else text

    def _copy_of(self, content: str | dict[str, Any], task: Task | None, *, is_valid: bool) -> str:
        """Why a row is left out because of one that was written; '' when it is kept."""
        key = _key(content, task)
        label = content[task.label] if task and task.label and isinstance(content, dict) else None
        exact, loose = hash(key), hash(folded(key))
        if not is_valid and loose in self.held_out:
            return "left out leak: it stands in the validation text"
        if exact in self.written:
            return "left out duplicate" if self.labels.get(exact) == label else "left out row with another label"
        self.written.add(exact)
        if label is not None:
            self.labels[exact] = label
        if is_valid and folded(key):
            self.held_out.add(loose)
        return ""


def _key(content: str | dict[str, Any], task: Task | None) -> str:
    """The text that a row is compared by."""
    if isinstance(content, str):
        return content
    assert task is not None, "a record has a task"
    if task is MESSAGES:
        return "\n".join(m["content"] for m in content["messages"] if isinstance(m.get("content"), str))
    return "\x1f".join(str(content[name]) for name in task.texts)


_C1 = re.compile("[\x7f-\x9f]")
_WINDOWS = {chr(b): bytes([b]).decode("cp1252") for b in range(0x80, 0xA0) if b not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)}
_AFTER_LATIN = re.compile("(?<=[A-Za-z0-9,. ])[\x80-\x9f]")


def _without_controls(text: str) -> str:
    """Without control characters; those of Latin-1 in Latin text are what Windows-1252 has in their place."""
    if not text.isascii() and _C1.search(text):
        text = _AFTER_LATIN.sub(lambda match: _WINDOWS.get(match[0], ""), text)
        text = _C1.sub("", text)
    return CONTROL.sub("", text).replace("\x7f", "") if CONTROL.search(text) or "\x7f" in text else text


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


_MENDS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("repaired wrongly decoded text", repaired),
    ("line ends in the text are line feeds", _with_line_feeds),
    ("removed control characters", _without_controls),
    ("removed invisible characters", unicode.without_hidden),
    ("normalised to NFC", _composed),
)


def lines_of_cleaning(done: Cleaning, folder: str) -> Iterator[str]:
    """What was done, for people."""
    yield "done:"
    for deed, times in sorted(done.counts.items(), key=lambda pair: -pair[1]):
        yield f"  {deed}: {times:,} time{'s' if times > 1 else ''}"
    if not done.counts:
        yield "  nothing had to be done"
    yield ""
    yield "the copy:"
    assert done.after is not None, "the copy was checked"
    yield from (f"  {line}" if line else "" for line in lines_of(done.after, hint=False))
    yield f"The copy is in {folder}; what was done to which row is in {Path(folder) / 'report.json'}."
    yield f"To train on it: {_flags(done, folder)}"


def _flags(done: Cleaning, folder: str) -> str:
    """How a run is told of the copy; its two sides lie in one folder, and must not be trained on together."""
    if not done.valid:
        return f"--data.paths '[{folder}]'"
    tops = [sorted({Path(path).relative_to(folder).parts[0] for path in side}) for side in (done.paths, done.valid)]
    if set(tops[0]) & set(tops[1]):
        return f"give its two sides apart, --data.paths and --data.validation_paths; not all of {folder}"
    train, valid = (", ".join(str(Path(folder) / name) for name in side) for side in tops)
    return f"--data.paths '[{train}]' --data.validation_paths '[{valid}]'"
