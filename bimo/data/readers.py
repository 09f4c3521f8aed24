"""Readers: from files to documents, streaming, with the file and row of each.

`.txt .md .jsonl .csv .parquet`, each also `.gz`; folders and globs of them; `-` is standard input. What cannot be read is
reported and passed over, or stops the run, as the settings say; nothing is replaced silently.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from bimo.core.config import DataSettings
from bimo.core.errors import UserError, nearest, require
from bimo.data.documents import Document, OnProblem, Problem
from bimo.data.encodings import decode

SUFFIXES = (".txt", ".md", ".jsonl", ".csv", ".parquet")
_LONGEST_DOCUMENT = {"file": 2**20, "blank_line": 2**16, "line": 2**20}  # characters; longer ones are cut at a line
_LONGEST_RECORD = 2**26  # characters of one line of .jsonl or .csv
_MANY_FILES = 20


def find_files(paths: Sequence[str]) -> list[Path]:
    """The files that paths, folders and globs stand for: sorted within each, none twice, hidden and empty ones left out.

    Raises:
        UserError: A path does not exist, or a folder or glob holds nothing that can be read.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        if given == "-" or path.is_file():
            found[path] = None
            continue
        matches = _walk(path) if path.is_dir() else [Path(p) for p in sorted(glob.glob(given, recursive=True))]
        files = [file for match in matches for file in ([match] if match.is_file() else _walk(match))]
        if not files:
            what = "holds no file that can be read" if path.exists() or files else "no such file or folder"
            raise UserError(what, where=given, mend=f"Accepted: {' '.join(SUFFIXES)}, each also .gz, or folders of them.")
        found.update(dict.fromkeys(files))
    return list(found)


def document_rule(files: Sequence[Path], settings: DataSettings) -> tuple[str, str]:
    """Where documents end in .txt and .md (file, blank_line or line), and why, in a sentence."""
    if settings.documents != "auto":
        return settings.documents, "asked for"
    count = sum(_kind(file) in (".txt", ".md") for file in files)
    if count >= _MANY_FILES:
        return "file", f"{count} text files: each is a document"
    return "blank_line", f"{count} text file{'s' * (count != 1)}: documents are separated by blank lines"


class Reader:
    """Documents of some paths, again and again, with the progress of the current pass.

    Args:
        paths: Files, folders, globs, or "-".
        settings: Field names and rules.
        on_problem: Told of everything that could not be read.

    Attributes:
        files: What was found.
        total_bytes: Size of all files on disk.
        rule: Where a document ends in plain text; `reason` says why.
    """

    def __init__(self, paths: Sequence[str], settings: DataSettings, on_problem: OnProblem) -> None:
        self.settings, self.on_problem = settings, on_problem
        self.files = find_files(paths)
        self.rule, self.reason = document_rule(self.files, settings)
        self.total_bytes = sum(file.stat().st_size for file in self.files if str(file) != "-")
        self._finished, self._open = 0, None

    @property
    def bytes_read(self) -> int:
        """How far the current pass is, in bytes on disk."""
        current = self._open.tell() if self._open is not None and not self._open.closed else 0
        return self._finished + current

    def __iter__(self) -> Iterator[Document]:
        self._finished = 0
        for file in self.files:
            try:
                yield from self._read(file)
            except (OSError, EOFError, zlib.error) as error:
                self._report(Problem(str(file), 0, f"cannot be read to its end ({error})", "Copy it again."))
            self._finished += file.stat().st_size if str(file) != "-" else 0

    def _read(self, file: Path) -> Iterator[Document]:
        kind = _kind(file)
        if kind == ".parquet":
            yield from self._parquet(file)
            return
        with open_bytes(file) as (stream, raw):
            self._open = raw
            lines = self._lines(file, stream, 2**20 if kind in (".txt", ".md", "") else _LONGEST_RECORD)
            if kind == ".jsonl":
                yield from self._jsonl(file, lines)
            elif kind == ".csv":
                yield from self._csv(file, lines)
            else:
                yield from self._text(file, lines)

    def _lines(self, file: Path, stream: BinaryIO, longest: int) -> Iterator[tuple[int, str | None]]:
        """Numbered lines without their line break; None for one that cannot be decoded."""

        def broken(line: int, _offset: int, what: str) -> None:
            self._report(Problem(str(file), line, what, "Convert the file to UTF-8, or remove it."))

        number, rest = 1, ""
        for piece in decode(stream, broken):
            if piece is None:
                yield number, None
                number, rest = number + 1, ""
                continue
            *whole, rest = (rest + piece).split("\n")
            for line in whole:
                yield number, line.removesuffix("\r")
                number += 1
            while len(rest) > longest:
                yield number, rest[:longest]
                rest = rest[longest:]
        if rest:
            yield number, rest

    def _text(self, file: Path, lines: Iterable[tuple[int, str | None]]) -> Iterator[Document]:
        """Gather lines to documents by the rule; one that holds an undecodable line is dropped."""
        longest = _LONGEST_DOCUMENT[self.rule]
        gathered: list[str] = []
        start, size, broken = 1, 0, False
        for number, line in lines:
            ends = size > longest or self.rule == "line" or (self.rule == "blank_line" and line is not None and not line.strip())
            if ends:
                if not broken:
                    yield from _document(gathered, file, start)
                gathered, start, size, broken = [], number, 0, False
            if line is None:
                broken = True
                continue
            gathered.append(line)
            size += len(line) + 1
        if not broken:
            yield from _document(gathered, file, start)

    def _jsonl(self, file: Path, lines: Iterable[tuple[int, str | None]]) -> Iterator[Document]:
        name = self.settings.text_field
        for number, line in lines:
            if line is None or not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                self._report(Problem(str(file), number, f"not JSON ({error})", "Mend or remove the line."))
                continue
            fields = record if isinstance(record, dict) else {name: record}
            yield from self._record(fields, file, number)

    def _csv(self, file: Path, lines: Iterable[tuple[int, str | None]]) -> Iterator[Document]:
        csv.field_size_limit(_LONGEST_RECORD)
        rows = csv.reader(line + "\n" for _, line in lines if line is not None)
        try:
            header = next(rows, [])
            if self.settings.text_field not in header:
                self._report(self._missing_field(header, file, 1))
                return
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    what = f"{len(row)} values, the header has {len(header)}"
                    self._report(Problem(str(file), rows.line_num, what, "Mend or remove the row."))
                    continue
                yield from self._record(dict(zip(header, row, strict=True)), file, rows.line_num)
        except csv.Error as error:
            self._report(Problem(str(file), rows.line_num, f"not CSV ({error})", "Mend the row."))

    def _parquet(self, file: Path) -> Iterator[Document]:
        parquet = require("pyarrow.parquet", "data")
        arrow = require("pyarrow", "data")
        with tempfile.TemporaryDirectory() as folder:
            path = file
            if file.suffix == ".gz":  # parquet is read from its end, so it has to be unpacked first
                path = Path(folder) / "unpacked.parquet"
                with gzip.open(file) as packed, path.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
            try:
                table = parquet.ParquetFile(path)
                if self.settings.text_field not in table.schema_arrow.names:
                    self._report(self._missing_field(table.schema_arrow.names, file, 0))
                    return
                row = 0
                for batch in table.iter_batches(batch_size=1024):
                    for record in batch.to_pylist():
                        row += 1
                        yield from self._record(record, file, row)
            except arrow.ArrowException as error:
                self._report(Problem(str(file), 0, f"damaged parquet file ({error})", "Copy it again."))

    def _record(self, fields: dict[str, object], file: Path, row: int) -> Iterator[Document]:
        name = self.settings.text_field
        text = fields.get(name)
        if name not in fields:
            self._report(self._missing_field(fields, file, row))
        elif not isinstance(text, str):
            what = f"field {name!r} is {type(text).__name__}, not text"
            self._report(Problem(str(file), row, what, "Mend or remove the row."))
        elif any("\ud800" <= character <= "\udfff" for character in text):
            self._report(Problem(str(file), row, "half of a surrogate pair in the text", "Mend or remove the row."))
        elif text.strip():
            yield Document(text, str(file), row, fields)

    def _missing_field(self, names: Iterable[str], file: Path, row: int) -> Problem:
        there = [str(name) for name in names]
        what = f"no field {self.settings.text_field!r}{nearest(self.settings.text_field, there)}; there are {there[:20]}"
        return Problem(str(file), row, what, "Name the right one with --data.text_field.")

    def _report(self, problem: Problem) -> None:
        if self.settings.on_broken == "stop":
            raise UserError(str(problem).removesuffix("."))
        self.on_problem(problem)


class open_bytes:  # noqa: N801 - used like the function open
    """A file's bytes, unpacked, beside the raw file whose position tells the progress; "-" is standard input."""

    def __init__(self, file: Path) -> None:
        self.raw: BinaryIO = sys.stdin.buffer if str(file) == "-" else file.open("rb")
        self.stream: BinaryIO = gzip.GzipFile(fileobj=self.raw) if file.suffix == ".gz" else self.raw  # type: ignore[assignment]

    def __enter__(self) -> tuple[BinaryIO, BinaryIO]:
        return self.stream, self.raw

    def __exit__(self, *_error: object) -> None:
        if self.raw is not sys.stdin.buffer:
            self.raw.close()


def _document(lines: list[str], file: Path, row: int) -> Iterator[Document]:
    text = "\n".join(lines)
    stripped = text.strip("\n")
    if stripped.strip():
        yield Document(stripped, str(file), row + len(text) - len(text.lstrip("\n")))


def _kind(file: Path) -> str:
    """The suffix that tells the format; '' is read as plain text."""
    name = file.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def _walk(folder: Path) -> list[Path]:
    """Files in a folder, and below it, that a reader knows and that hold something."""
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place) / name for name in sorted(names) if not name.startswith(".")):
            if _kind(path) and path.is_file() and path.stat().st_size:
                files.append(path)
    return files
