"""Texts that the applications work on, from files and standard input, and their answers to files and standard output.

A text file is one document; a table is records, each answered as soon as it can be, in order, with the answer as one
more field.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, Protocol, get_args

from bimo.applying.working import Arriving, Ready, Source
from bimo.cli.options import show_stage
from bimo.core.errors import UserError, nearest
from bimo.data.decoding import TextStream
from bimo.data.documents import Problem, UnreadableError
from bimo.data.encodings import recognise
from bimo.data.files import STANDARD_INPUT, ReadProgress, byte_chunks, find_files, kind_of, size_of
from bimo.data.po import is_po
from bimo.data.records import table_rows
from bimo.data.tables import Broken, Row, jsonl_rows
from bimo.data.tmx import is_tmx

Format = Literal["auto", "text", "jsonl", "csv", "parquet"]
_USUAL_FIELDS = ("text", "source", "document", "content")


class Answered(Protocol):
    """What an application gives for a text."""

    @property
    def warnings(self) -> Sequence[object]:
        """What is to be said about it."""
        ...


Stream = Callable[[Source[str]], Iterator[Any]]
"""An application: texts to results, or a UserError in the place of one, in order."""


@dataclass(frozen=True)
class Inputs:
    """What to read, and where the answers go.

    Attributes:
        paths: Files; none: standard input.
        format: Of the files; auto: by their names, and text for standard input.
        text_field: The field of records that holds the text; "": the first of the usual ones.
        output: A file; a folder, when there are several documents; "": standard output.
        output_field: The field of records that holds the answer.
        force: Replace an output that is there.
    """

    paths: Sequence[str]
    format: Format
    text_field: str
    output: str
    output_field: str
    force: bool
    files: list[tuple[Path, str]] = field(default_factory=list)
    """Each file, and its kind."""

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise UserError(f"it must be one of {', '.join(get_args(Format))}", where="--format", mend="Choose one.")
        for file in find_files(self.paths or ["-"]):
            if is_tmx(file) or is_po(file):
                kind = "translation memory" if is_tmx(file) else "message catalogue"
                mend = "Give .txt, .md, .jsonl, .csv or .parquet files; bimo train learns from .tmx and .po files."
                raise UserError(f"a {kind} holds translations already", where=str(file), mend=mend)
            self.files.append((file, kind_of(file) if self.format == "auto" else self.format))
        if len({kind == "text" for _, kind in self.files}) > 1:
            raise UserError("there are both documents and records", where="input", mend="Give one kind at a time.")
        self._check_output()

    @property
    def documents(self) -> bool:
        """Whether the files are documents; else they are records."""
        return self.files[0][1] == "text"

    def _check_output(self) -> None:
        if not self.output:
            return
        output = Path(self.output)
        if self.documents and len(self.files) > 1:
            if output.exists() and not output.is_dir():
                raise UserError("several documents need a folder", where=self.output, mend="Name a folder.")
            names = [output / file.name for file, _ in self.files]
        else:
            names = [output]
        if len(set(names)) < len(names):
            raise UserError("two documents have one name", where=self.output, mend="Give them one after the other.")
        for name in names:
            if name.is_dir():
                raise UserError("it is a folder", where=str(name), mend="Name a file.")
            if any(name.exists() and file != STANDARD_INPUT and name.samefile(file) for file, _ in self.files):
                raise UserError("it is also what is read", where=str(name), mend="Name another file.")
            if name.exists() and name.stat().st_size and not self.force:
                raise UserError("there is a file already", where=str(name), mend="Name another, or add --force.")


def answer_all(inputs: Inputs, stream: Stream, shown: Callable[[Any], Mapping[str, object]], doing: str) -> int:
    """Answer every text of the inputs; returns the exit code.

    Args:
        inputs: What is read, and where answers go.
        stream: Texts to results.
        shown: The fields that a result adds to its record; the first is the answer itself.
        doing: What is done, for the progress.
    """
    if inputs.documents:
        return _answer_documents(inputs, stream, shown, doing)
    return _Records(inputs, stream, shown, doing).answer()


def _answer_documents(inputs: Inputs, stream: Stream, shown: Callable[[Any], Mapping[str, object]], doing: str) -> int:
    texts = [(_name(file), _document(file)) for file, _ in inputs.files]  # all are read before the first is answered
    several = len(texts) > 1
    folder = Path(inputs.output) if inputs.output and several else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for number, ((file, _), (name, _), result) in enumerate(
        zip(inputs.files, texts, stream(Ready(text for _, text in texts)), strict=True), start=1
    ):
        if isinstance(result, UserError):
            raise UserError(result.what, where=f"{name}, {result.where}" if result.where else name, mend=result.mend)
        _say_warnings(name, result)
        answer = str(next(iter(shown(result).values())))
        with _written(str(folder / file.name) if folder else inputs.output) as output:
            if several and not inputs.output:
                output.write(f"==> {name} <==\n")
            output.write(answer if answer.endswith("\n") else answer + "\n")
        show_stage(doing, number / len(texts))
    return 0


class _Records:
    """Records on their way: their texts go in, and each comes out again when its answer does."""

    def __init__(
        self, inputs: Inputs, stream: Stream, shown: Callable[[Any], Mapping[str, object]], doing: str
    ) -> None:
        self._inputs, self._stream, self._shown, self._doing = inputs, stream, shown, doing
        self._waiting: deque[tuple[str, dict[str, object], bool]] = deque()  # place, record, whether it has a text
        self._progress = ReadProgress(total_bytes=sum(size_of(file) for file, _ in inputs.files))
        self._field = inputs.text_field
        self._n_failed = 0
        self._rows = self._all_rows()
        live = any(file == STANDARD_INPUT for file, _ in inputs.files)
        self._source: Source[tuple[str, Row]] = Arriving(self._rows) if live else Ready(self._rows)

    def answer(self) -> int:
        """Answer them all."""
        with _written(self._inputs.output) as output:
            write = _writer(output, self._inputs)
            for result in self._stream(self):
                self._write_those_without_text(write)
                place, record, _ = self._waiting.popleft()
                if isinstance(result, UserError):
                    self._fail(place, result.what, result.mend)
                    continue
                _say_warnings(place, result)
                write({**record, **self._shown(result)})
                show_stage(self._doing, min(self._progress.share, 0.99))
            self._write_those_without_text(write)
        show_stage(self._doing, 1.0)
        if self._n_failed:
            print(f"bimo: {self._n_failed} records were left out", file=sys.stderr)
        return 1 if self._n_failed else 0

    def take(self, wait: bool) -> str | None:
        """The next text, for the application; records that cannot be used are said and left out."""
        while True:
            found = self._source.take(wait)
            if found is None:
                return None
            file, (row, record) = found
            place = Problem(file, row, "").where
            if isinstance(record, Broken):
                self._fail(place, record.what, record.mend)
                continue
            text = self._text(place, record)
            self._waiting.append((place, dict(record), bool(text)))
            if text:
                return text

    def _text(self, place: str, record: Mapping[str, object]) -> str:
        """The text of a record; "" where it has none."""
        if not self._field:
            self._field = next((name for name in _USUAL_FIELDS if name in record), _USUAL_FIELDS[0])
        if self._inputs.output_field in record:
            what = f"the records have a field {self._inputs.output_field!r} already"
            raise UserError(what, where=place, mend="Name another one with --output_field.")
        if self._field not in record:
            there = ", ".join(map(repr, record)) or "none"
            what = f"there is no field {self._field!r}{nearest(self._field, map(str, record))}; the fields are {there}"
            raise UserError(what, where=place, mend="Name the one that holds the text with --field.")
        text = record[self._field]
        if text is not None and not isinstance(text, str):
            what = f"the field {self._field!r} is {type(text).__name__}, not text"
            raise UserError(what, where=place, mend="Name the one that holds the text with --field.")
        return text if text and text.strip() else ""

    def _write_those_without_text(self, write: Callable[[Mapping[str, object]], None]) -> None:
        while self._waiting and not self._waiting[0][2]:
            write({**self._waiting.popleft()[1], self._inputs.output_field: ""})

    def _fail(self, place: str, what: str, mend: str) -> None:
        self._n_failed += 1
        print(f"bimo: {UserError(what, where=place, mend=mend)}", file=sys.stderr, flush=True)

    def _all_rows(self) -> Iterator[tuple[str, Row]]:
        for file, kind in self._inputs.files:
            name = _name(file)
            try:
                rows = _live_rows() if file == STANDARD_INPUT and kind == "jsonl" else table_rows(file, self._progress)
                yield from ((name, row) for row in rows)
            except UnreadableError as error:
                raise UserError(error.what, where=Problem(name, error.row, "").where, mend=error.mend) from error


def _live_rows() -> Iterator[Row]:
    """Lines of standard input, each as soon as it is there."""
    raw = iter(sys.stdin.buffer.readline, b"")
    first = next(raw, b"")
    if not first:
        raise UnreadableError("the file is empty")
    return jsonl_rows(TextStream(chain([first], raw), recognise(first)), "text")


def _document(file: Path) -> str:
    name = _name(file)
    try:
        data = b"".join(byte_chunks(file, ReadProgress()))
        encoding = recognise(data[: 1 << 20])
        text = data[encoding.skip :].decode(encoding.codec)
    except UnreadableError as error:
        raise UserError(error.what, where=name, mend=error.mend or "Give a text file.") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{data[error.start]:02x} at offset {error.start} is not {encoding.label}"
        raise UserError(what, where=f"{name}, line {line}", mend="Convert the file to UTF-8.") from error
    if not text.strip():
        raise UserError("there is no text in it", where=name, mend="Give a text.")
    return text


def _name(file: Path) -> str:
    return "standard input" if file == STANDARD_INPUT else str(file)


def _say_warnings(place: str, result: Answered) -> None:
    for notice in result.warnings:
        print(f"bimo: {place}: {notice}", file=sys.stderr, flush=True)


@contextmanager
def _written(path: str) -> Iterator[IO[str]]:
    """A file to write to; standard output for ''."""
    if not path:
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise UserError(f"it cannot be written ({error.strerror})", where=path, mend="Name another file.") from error


def _writer(output: IO[str], inputs: Inputs) -> Callable[[Mapping[str, object]], None]:
    """How a record is written: as CSV when the output, or else the input, is CSV; as JSON lines otherwise."""
    suffix = Path(inputs.output).suffix.lower()
    if suffix != ".csv" and (suffix in (".jsonl", ".json") or inputs.files[0][1] != "csv"):

        def write_json(record: Mapping[str, object]) -> None:
            output.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
            output.flush()

        return write_json
    table: list[csv.DictWriter[str]] = []

    def write_row(record: Mapping[str, object]) -> None:
        if not table:
            table.append(csv.DictWriter(output, list(record), extrasaction="ignore", lineterminator="\n"))
            table[0].writeheader()
        table[0].writerow(record)
        output.flush()

    return write_row
