"""Files written row by row, of the kind that their name says: text, .jsonl, .csv or .parquet, each also .gz."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from bimo.core.errors import require
from bimo.data.cutting import Rule
from bimo.data.files import is_compressed, kind_of

_PARQUET_ROWS = 1000


class Writer(Protocol):
    """Takes rows; the file is whole after `close`."""

    def write(self, content: str | Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_writer(path: Path, rule: Rule) -> Writer:
    """A writer for a new file, made with its folder.

    Args:
        path: Its name says the kind.
        rule: What lies between two documents of plain text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = kind_of(path)
    if kind == "parquet":
        return _ParquetWriter(path)
    file = _open(path)
    if kind == "jsonl":
        return _JsonWriter(file)
    return _CsvWriter(file) if kind == "csv" else _TextWriter(file, "\n\n" if rule == "blank_line" else "\n")


def _open(path: Path) -> IO[str]:
    if is_compressed(path):
        return io.TextIOWrapper(gzip.GzipFile(path, "wb", 6, mtime=0), encoding="utf-8", newline="\n")
    return path.open("w", encoding="utf-8", newline="\n")


class _TextWriter:
    def __init__(self, file: IO[str], border: str) -> None:
        self.file, self.border, self.between = file, border, ""

    def write(self, content: str | Mapping[str, Any]) -> None:
        self.file.write(f"{self.between}{content}")
        self.between = self.border

    def close(self) -> None:
        self.file.write("\n")
        self.file.close()


class _JsonWriter:
    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, content: str | Mapping[str, Any]) -> None:
        self.file.write(json.dumps(content, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self.file.close()


class _CsvWriter:
    def __init__(self, file: IO[str]) -> None:
        self.file, self.table = file, csv.writer(file, lineterminator="\n")
        self.header: list[str] = []

    def write(self, content: str | Mapping[str, Any]) -> None:
        assert isinstance(content, Mapping), "rows of a table are records"
        if not self.header:
            self.header = list(content)
            self.table.writerow(self.header)
        self.table.writerow([content[name] for name in self.header])

    def close(self) -> None:
        self.file.close()


class _ParquetWriter:
    """Parquet is written with random access, so a compressed file is packed when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plain = path.with_name(f"{path.name}.part") if is_compressed(path) else path
        self.rows: list[Mapping[str, Any]] = []
        self.writer: Any = None

    def write(self, content: str | Mapping[str, Any]) -> None:
        assert isinstance(content, Mapping), "rows of a table are records"
        self.rows.append(content)
        if len(self.rows) == _PARQUET_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.writer.close()
        if self.plain != self.path:
            with self.plain.open("rb") as plain, gzip.GzipFile(self.path, "wb", 6, mtime=0) as packed:
                shutil.copyfileobj(plain, packed)
            self.plain.unlink()

    def _flush(self) -> None:
        arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
        if not self.rows:
            return
        table = arrow.Table.from_pylist(self.rows, schema=self.writer.schema if self.writer else None)
        self.rows = []
        if self.writer is None:
            self.writer = parquet.ParquetWriter(self.plain, table.schema)
        self.writer.write_table(table)
