"""From files to documents, in a stream: memory stays at a few megabytes however large a file is.

What cannot be read is told, with its place, and left out; it is never replaced, and never ends the reading of the rest
(unless `on_broken: stop` asks for that). `find_files` and `document_rule` say beforehand what will be read and how.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from bimo.core.config import DataSettings
from bimo.core.errors import UserError
from bimo.data.addresses import name_of
from bimo.data.cutting import Rule, cut
from bimo.data.decoding import BAD, TextStream
from bimo.data.documents import Document, Problem, ProblemHandler, UnreadableError
from bimo.data.encodings import recognise
from bimo.data.files import ACCEPTED, STANDARD_INPUT, ReadProgress, byte_chunks, find_files, kind_of, size_of
from bimo.data.tables import Broken, Row, csv_rows, jsonl_rows, parquet_rows, texts

__all__ = ["ReadProgress", "document_rule", "find_files", "read_documents"]

MANY_FILES = 20  # from this many text files on, each is a document
HOPELESS_ROWS = 1000  # a table whose first rows are all broken is given up after this many


def read_documents(
    paths: Sequence[str],
    settings: DataSettings,
    on_problem: ProblemHandler,
    progress: ReadProgress | None = None,
) -> Iterator[Document]:
    """Read every document that the paths hold, in a fixed order.

    Args:
        paths: Files, folders, globs, or '-' for standard input.
        settings: How documents end, which field holds the text, what to do with broken text. Not its paths.
        on_problem: Is called with each piece of text that had to be left out.
        progress: Is kept up to date while documents are taken.

    Raises `UserError` at once for a path without files, and at the end when nothing at all could be read; with
    `on_broken: stop`, at the first problem.
    """
    report = _stop if settings.on_broken == "stop" else on_problem
    files = find_files(paths, report)
    progress = progress or ReadProgress()
    progress.total_bytes += sum(map(size_of, files))
    return _documents_of(files, _Reading(settings, document_rule(files, settings)[0], report, progress), paths)


def document_rule(files: Sequence[Path], settings: DataSettings) -> tuple[Rule, str]:
    """Where documents end in plain text files: the rule, and its reason as a sentence."""
    names = {"file": "Each text file is one document", "blank_line": "Documents end at blank lines"}
    names["line"] = "Each line is a document"
    if settings.documents != "auto":
        return settings.documents, f"{names[settings.documents]}, because data.documents says so."
    count = sum(kind_of(file) == "text" for file in files)
    rule: Rule = "file" if count >= MANY_FILES else "blank_line"
    counted = "is 1 text file" if count == 1 else f"are {count} text files"
    compared = f"at least {MANY_FILES}" if rule == "file" else f"fewer than {MANY_FILES}"
    return rule, f"{names[rule]}, because there {counted}, {compared}; change it with data.documents."


@dataclass(frozen=True)
class _Reading:
    """What all files of one call share."""

    settings: DataSettings
    rule: Rule
    report: ProblemHandler
    progress: ReadProgress


def _stop(problem: Problem) -> None:
    raise UserError(problem.what, where=problem.where, mend=problem.mend)


def _documents_of(files: Sequence[Path], reading: _Reading, paths: Sequence[str]) -> Iterator[Document]:
    nothing = True
    for file in files:
        end = reading.progress.read_bytes + size_of(file)
        for document in _documents_in(file, reading):
            nothing = False
            yield document
        reading.progress.read_bytes = end
    if nothing:
        raise UserError("no text could be read", where=", ".join(paths), mend=f"Accepted are {ACCEPTED}.")


def _documents_in(file: Path, reading: _Reading) -> Iterator[Document]:
    """The documents of one file; whatever ends it early is reported."""
    name = "standard input" if file == STANDARD_INPUT else name_of(file)
    kind, text_field = kind_of(file), reading.settings.text_field
    stream: TextStream | None = None
    try:
        if kind == "parquet":
            yield from _table(parquet_rows(file, text_field, reading.progress), name, reading)
            return
        stream = _text_stream(file, reading.progress)
        if kind == "text":
            yield from _plain(stream, name, reading)
        else:
            rows = jsonl_rows(stream, text_field) if kind == "jsonl" else csv_rows(stream, text_field)
            yield from _table(rows, name, reading)
    except UnreadableError as failure:
        reached = stream.line if stream and stream.line > 1 else 0
        reading.report(Problem(name, failure.row or reached, failure.what, failure.mend))


def _text_stream(file: Path, progress: ReadProgress) -> TextStream:
    chunks = byte_chunks(file, progress)
    first = next(chunks, b"")
    if not first:
        raise UnreadableError("the file is empty")
    return TextStream(chain([first], chunks), recognise(first))


def _plain(stream: TextStream, name: str, reading: _Reading) -> Iterator[Document]:
    for row, text in cut(stream, reading.rule):
        if BAD not in text:
            yield Document(text, name, row)
            continue
        line = row + text.count("\n", 0, text.index(BAD))
        what = stream.take_bad(row + text.count("\n"))
        reading.report(Problem(name, line, f"{what}; the document around it is left out", "Repair these bytes."))


def _table(rows: Iterator[Row], name: str, reading: _Reading) -> Iterator[Document]:
    broken, good = 0, False
    for row, text, record in texts(rows, reading.settings.text_field):
        if isinstance(text, Broken):
            reading.report(Problem(name, row, text.what, text.mend))
            broken += 1
            if broken == HOPELESS_ROWS and not good:
                raise UnreadableError(f"the first {HOPELESS_ROWS} rows are all broken; the rest is left out", row=row)
            continue
        good = True
        if text and not text.isspace():
            yield Document(text, name, row, record)
