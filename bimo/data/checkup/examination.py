"""The checkup: what is wrong with this data, in plain words with file, row and mend. Changes nothing, loads no torch.

Every row is read once, in a stream. Checks of single texts run over blocks of some hundred kilobytes; what needs all
rows (duplicates, leaks, languages) keeps some forty bytes of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from bimo.core.config import CheckSettings, DataSettings
from bimo.data.checkup.broken import report_broken, report_file
from bimo.data.checkup.fields import RecordChecker, recognise_task
from bimo.data.checkup.figures import figures_of
from bimo.data.checkup.findings import Finding, Findings, Report
from bimo.data.checkup.rows import Content, FileRows
from bimo.data.checkup.sides import Side, doubtful_texts, same_texts
from bimo.data.checkup.token_checks import Encoder, TokenCheck
from bimo.data.checkup.whole_checks import whole_findings
from bimo.data.files import ACCEPTED, ReadProgress, empty_files, find_files, other_files, size_of
from bimo.data.readers import document_rule
from bimo.data.tables import Broken

__all__ = ["Examination", "Finding", "Report", "check", "examine", "quick_check"]

LEARNED_ROWS = 100  # the first records of a file, from which its fields are learned
_TICK_ROWS = 1000


@dataclass
class Examination:
    """A checkup with all that it learned, for the cleaning.

    Attributes:
        settings: What to look for.
        train, valid: The two sides.
        checkers: What the records of each file should be.
        stopped: Why not everything was read; '' when it was.
    """

    settings: CheckSettings
    findings: Findings = field(default_factory=Findings)
    checkers: dict[str, RecordChecker] = field(default_factory=dict)
    stopped: str = ""

    def __post_init__(self) -> None:
        choices = {"personal_data": self.settings.personal_data, "similar": self.settings.near_duplicates}
        self.train, self.valid = Side(self.findings, **choices), Side(self.findings, **choices)
        self.tokens: TokenCheck | None = None
        self.progress = ReadProgress()
        self.started = time.monotonic()


def check(
    paths: str | Sequence[str],
    *,
    valid: str | Sequence[str] = (),
    settings: CheckSettings | None = None,
    tokenizer: Encoder | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Report:
    """Say what is wrong with the data in files, folders and globs.

    Args:
        paths: Training text or records, of any task.
        valid: The same to measure on: what stands on both sides is a leak.
        settings: What to look for.
        tokenizer: Tells how many tokens a text has, and whether it suits the scripts.
        on_progress: Is called now and then with the share that has been read.

    Raises:
        UserError: A path gives no file.
    """
    return examine(paths, valid, settings or CheckSettings(), tokenizer, on_progress)[0]


def quick_check(
    paths: Sequence[str],
    valid: Sequence[str] = (),
    settings: CheckSettings | None = None,
    tokenizer: Encoder | None = None,
) -> Report:
    """The checkup before a run: it stops after 20 seconds or 200 MB, and its figures say so."""
    quick = {**(settings or CheckSettings()).to_dict(), "most_seconds": 20.0, "most_megabytes": 200.0}
    return check(paths, valid=valid, settings=CheckSettings.from_dict(quick), tokenizer=tokenizer)


def examine(
    paths: str | Sequence[str],
    valid: str | Sequence[str],
    settings: CheckSettings,
    tokenizer: Encoder | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> tuple[Report, Examination]:
    """The checkup, with what it learned."""
    seen = Examination(settings)
    if tokenizer or settings.context_length:
        seen.tokens = TokenCheck(tokenizer, settings.context_length)
    sides = [(seen.valid, _listed(valid)), (seen.train, _listed(paths))]  # the smaller side first: it is always whole
    seen.progress.total_bytes = sum(size_of(file) for _, names in sides if names for file in find_files(names))
    for side, names in sides:
        if names:
            _read_side(seen, side, names, on_progress)
    for side in (seen.train, seen.valid):
        side.flush()
        if seen.tokens:
            seen.tokens.finish(side)
    whole_findings(seen.train, seen.valid, settings)
    return seen.findings.report(figures_of(seen)), seen


def _listed(paths: str | Sequence[str]) -> list[str]:
    return [str(paths)] if isinstance(paths, str) else [str(path) for path in paths]


def _read_side(seen: Examination, side: Side, paths: list[str], on_progress: Callable[[float], None]) -> None:
    files = find_files(paths, lambda problem: side.say("unreadable", problem.file, 0, problem.what, problem.mend))
    for file in empty_files(paths):
        side.say("empty file", str(file), 0, "the file is empty")
    others = other_files(paths)
    if others:
        names = ", ".join(file.name for file in others[:5]) + (", …" if len(others) > 5 else "")
        side.say(
            "not read", str(others[0].parent), 0, f"{len(others)} other file(s): {names}", f"Accepted are {ACCEPTED}."
        )
    rule = document_rule(files, DataSettings(documents=seen.settings.documents))[0]
    for file in files:
        if seen.stopped:
            return
        end = seen.progress.read_bytes + size_of(file)
        rows = FileRows(file, rule, seen.settings.text_field, seen.progress)
        _read_file(seen, side, rows, on_progress)
        if not seen.stopped:
            seen.progress.read_bytes = end
        on_progress(seen.progress.share)


def _read_file(seen: Examination, side: Side, rows: FileRows, on_progress: Callable[[float], None]) -> None:
    contents = _with_progress(seen, rows, on_progress)
    first = list(islice(contents, LEARNED_ROWS))
    records = [content for _, content in first if isinstance(content, Mapping)]
    task = recognise_task(records, seen.settings.text_field) if records else None
    if task:
        side.tasks[task.name] = side.tasks.get(task.name, 0) + 1
    side.begin(rows, task)
    if records and task is None:
        there = ", ".join(map(repr, list(records[0])[:8]))
        what = f"no field {seen.settings.text_field!r} and none of a known task; the fields are {there}"
        side.say("wrong field", rows.name, first[0][0], what, "Name the one that holds the text with --text_field.")
        return
    checker = None
    if task:
        checker = seen.checkers[rows.name] = RecordChecker.learn(task, records)
    n_rows, broken = _take_rows(seen, side, rows, checker, chain(first, contents))
    report_broken(side, rows, broken, n_rows)
    report_file(side, rows, n_rows + len(broken))


def _with_progress(
    seen: Examination, rows: FileRows, on_progress: Callable[[float], None]
) -> Iterator[tuple[int, Content]]:
    """The rows; stops where the settings say that it is enough."""
    settings, source = seen.settings, iter(rows)
    while some := list(islice(source, _TICK_ROWS)):
        yield from some
        on_progress(seen.progress.share)
        megabytes = (seen.train.ledger.n_bytes + seen.valid.ledger.n_bytes) / 1e6
        if 0 < settings.most_megabytes < megabytes:
            seen.stopped = f"after {megabytes:,.0f} MB of text"
        if 0 < settings.most_seconds < time.monotonic() - seen.started:
            seen.stopped = f"after {settings.most_seconds:.0f} seconds"
        if seen.stopped:
            return


def _take_rows(
    seen: Examination,
    side: Side,
    rows: FileRows,
    checker: RecordChecker | None,
    contents: Iterator[tuple[int, Content]],
) -> tuple[int, list[tuple[int, Broken]]]:
    """Give every row to the side; how many were whole, and the broken ones."""
    broken: list[tuple[int, Broken]] = []
    n_rows, tokens = 0, seen.tokens
    label_field = checker.task.label if checker else ""
    compared = checker is not None and len(checker.task.texts) == 2
    for row, content in contents:
        if isinstance(content, Broken):
            broken.append((row, content))
            continue
        n_rows += 1
        texts: tuple[str, ...] | None
        if isinstance(content, str):
            texts = (content,)
        else:
            assert checker is not None, "a file with records has a task"
            texts = checker.texts_of(content)
            if texts is None:
                texts, faults = doubtful_texts(checker, content)
                for kind, what, mend in faults:
                    side.say(kind, rows.name, row, what, mend)
            elif compared and texts[0] == texts[1]:
                kind, what = same_texts(checker.task, texts)
                if kind:
                    side.say(kind, rows.name, row, what)
        if texts:
            if tokens:
                tokens.add(side, side.next_number, *texts)
            side.add(row, texts, content[label_field] if label_field else None)  # type: ignore[index]  # a record
    return n_rows, broken
