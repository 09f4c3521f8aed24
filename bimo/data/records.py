"""The records of a table file, whatever its kind; a broken row comes as `Broken` and the next ones follow."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from bimo.data.decoding import TextStream
from bimo.data.documents import UnreadableError
from bimo.data.encodings import recognise
from bimo.data.files import ReadProgress, byte_chunks, kind_of
from bimo.data.tables import Row, csv_rows, jsonl_rows, parquet_rows


def table_rows(file: Path, progress: ReadProgress | None = None) -> Iterator[Row]:
    """Rows of a .jsonl, .csv or .parquet file, each with its number.

    Raises:
        UnreadableError: The rest of the file cannot be read.
    """
    progress = progress or ReadProgress()
    if kind_of(file) == "parquet":
        yield from parquet_rows(file, "", progress)
        return
    chunks = byte_chunks(file, progress)
    first = next(chunks, b"")
    if not first:
        raise UnreadableError("the file is empty")
    stream = TextStream(chain([first], chunks), recognise(first))
    yield from jsonl_rows(stream, "text") if kind_of(file) == "jsonl" else csv_rows(stream, "")
