"""The rows of .jsonl, .csv and .parquet files, in a stream; a broken row comes as `Broken` and the next ones follow."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bimo.core.errors import UserError, nearest, require
from bimo.data.addresses import open_binary
from bimo.data.cutting import LONGEST_LINE, lines
from bimo.data.decoding import BAD, TextStream
from bimo.data.documents import UnreadableError
from bimo.data.encodings import CONTROL
from bimo.data.files import ReadProgress, byte_chunks, is_compressed, size_of

if TYPE_CHECKING:
    import pyarrow

PARQUET_ROWS = 64  # rows turned into Python objects at a time
_QUOTE = 'Put text with commas, quotes or line ends between "quotes".'
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_DECODE = json.JSONDecoder().raw_decode  # json.loads without its detours, which take as long as short rows


@dataclass(frozen=True)
class Broken:
    """A row that cannot be used."""

    what: str
    mend: str = ""


Row = tuple[int, Mapping[str, object] | Broken]
"""A 1-based line or row, and its record."""


def jsonl_rows(stream: TextStream, text_field: str, *, strict: bool = False) -> Iterator[Row]:
    """One JSON object per line; a bare string stands for an object with only the text field.

    With `strict`, an object in which a key stands twice is broken; else the last one counts.
    """
    for number, line in enumerate(lines(stream), 1):
        try:  # the usual row, without a call more than it needs
            record, end = _DECODE(line)
        except (ValueError, RecursionError):
            record, end = None, 0
        usual = type(record) is dict and end + 1 == len(line) and "\\u" not in line and BAD not in line
        doubtful = strict and type(record) is dict and (line.count('":') != len(record) or "NaN" in line)
        if usual and not doubtful:
            yield number, record
        elif BAD in line:
            yield number, Broken(stream.take_bad(number))
        elif not line.isspace():
            record = _json_record(line, text_field)
            if doubtful:
                record = _doubted(line, record)
            yield number, record


def _doubted(line: str, record: Mapping[str, object] | Broken) -> Mapping[str, object] | Broken:
    """The record, or that a key stands twice in it."""
    twice: list[str] = []

    def watch(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            keys = [key for key, _ in pairs]
            twice.append(next(key for key in keys if keys.count(key) > 1))
        return dict(pairs)

    if isinstance(record, Broken):
        return record
    constants: list[str] = []
    json.loads(line, object_pairs_hook=watch, parse_constant=constants.append)
    if constants:
        return Broken(f"{constants[0]} is no JSON: other readers refuse it", "Write null, or a number.")
    return Broken(f"the key {twice[0]!r} stands twice in one object", "Keep one of them.") if twice else record


def _json_record(line: str, text_field: str) -> Mapping[str, object] | Broken:
    try:
        value = _json_value(line)
        if "\\u" in line and _HALF_PAIR.search(
            line
        ):  # half of a surrogate pair is no character; a dump with it does not encode
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Broken("an escape like \\ud800 is half a character", "Write both halves, or the character itself.")
    except json.JSONDecodeError as error:
        return Broken(f"not valid JSON at column {error.colno} ({error.msg})", "Write one JSON object per line.")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        return Broken(f"JSON that cannot be read ({error})")
    if isinstance(value, str):
        return {text_field: value}
    if isinstance(value, dict):
        return value
    return Broken(f"a row is an object or a string, this is a {type(value).__name__}")


def _json_value(line: str) -> Any:
    try:
        value, end = _DECODE(line)
    except json.JSONDecodeError:
        return json.loads(line)  # it skips white space, and knows what is wrong
    return value if line[end:] in ("\n", "") else json.loads(line)


def delimiter_of(header: str, text_field: str = "") -> str:
    """Comma, semicolon or tab: the one that makes `text_field` a column, else the one that makes the most columns."""
    splits = {mark: next(csv.reader([header], delimiter=mark), []) for mark in ",;\t"}
    named = [mark for mark, names in splits.items() if text_field in names]
    return named[0] if named else max(splits, key=lambda mark: len(splits[mark]))


def csv_rows(stream: TextStream, text_field: str = "") -> Iterator[Row]:
    """Records named by the header; see `delimiter_of`. Without `text_field`, any header will do."""
    csv.field_size_limit(2 * LONGEST_LINE)  # the module's own limit of 128 KiB is too short for documents
    source = lines(stream)
    first = next(source, "")
    delimiter = delimiter_of(first, text_field)
    reader = csv.reader(chain([first], source), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, Broken(f"not valid CSV ({error})", _QUOTE)
            continue
        if not cells:  # an empty line
            continue
        if BAD in "".join(cells):
            yield number, Broken(stream.take_bad(reader.line_num))
        elif not header:
            header = cells
            _check_columns(header, text_field)
        elif cells == header:
            yield number, Broken("the header stands here once more", "Remove this line.")
        elif len(cells) == len(header):
            yield number, dict(zip(header, cells, strict=True))
        else:
            mark = ", with a byte order mark at its start" if cells[0].startswith("\ufeff") else ""
            yield number, Broken(f"{len(cells)} columns where the header has {len(header)}{mark}", _QUOTE)


def parquet_rows(file: Path, text_field: str, progress: ReadProgress) -> Iterator[Row]:
    """Rows with a column `text_field` ('': with any columns), in batches.

    A compressed file is unpacked to a temporary one first, because parquet is read from its end.
    """
    try:
        arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    except UserError as error:  # other files may still be read without the package
        raise UnreadableError(error.what, error.mend) from error
    size, before = size_of(file), progress.read_bytes
    row = 0
    try:
        with _seekable(file, progress) as source:
            table = parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20)
            _check_columns(table.schema_arrow.names, text_field)
            for batch in table.iter_batches(batch_size=PARQUET_ROWS):
                for record in _records(batch):
                    row += 1
                    yield row, record
                progress.read_bytes = max(progress.read_bytes, before + size * row // table.metadata.num_rows)
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableError(f"it cannot be read as parquet ({reason})", row=row + 1 if row else 0) from error


def _records(batch: pyarrow.RecordBatch) -> list[Mapping[str, object] | Broken]:
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError) as error:  # bytes that are not UTF-8, a time that Python cannot hold
        if batch.num_rows == 1:
            return [Broken(f"a value cannot be read ({error})")]
        return [record for place in range(batch.num_rows) for record in _records(batch.slice(place, 1))]


def _seekable(file: Path, progress: ReadProgress) -> BinaryIO:
    if not is_compressed(file):
        return open_binary(file)
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    for chunk in byte_chunks(file, progress):
        unpacked.write(chunk)
    unpacked.seek(0, io.SEEK_SET)
    return unpacked


def texts(rows: Iterable[Row], text_field: str) -> Iterator[tuple[int, str | Broken, Mapping[str, object]]]:
    """For each row its number, its text with line feeds as line ends (or why it has none), and its record."""
    for row, record in rows:
        if isinstance(record, Broken):
            yield row, record, {}
        else:
            yield row, _text_of(record, text_field), record


def _text_of(record: Mapping[str, object], text_field: str) -> str | Broken:
    if text_field not in record:
        return _missing(text_field, list(record))
    text = record[text_field]
    if not isinstance(text, str):
        return Broken(f"the field {text_field!r} is {'empty' if text is None else type(text).__name__}, not text")
    control = CONTROL.search(text)
    if control:
        return Broken(f"control character U+{ord(control[0]):04X} in the field {text_field!r}", "Remove it.")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _missing(text_field: str, fields: list[str]) -> Broken:
    there = ", ".join(map(repr, fields)) or "none"
    return Broken(
        f"there is no field {text_field!r}{nearest(text_field, fields)}; the fields are {there}",
        "Name the one that holds the text with data.text_field.",
    )


def _check_columns(columns: list[str], text_field: str) -> None:
    if text_field and text_field not in columns:
        missing = _missing(text_field, columns)
        raise UnreadableError(missing.what, missing.mend)
