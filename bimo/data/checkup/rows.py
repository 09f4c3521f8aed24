"""The rows of a file as they stand, broken ones included: what the checkup looks at and the cleaning copies.

Training leaves out what it cannot read; here the same readers say more: control characters stay in the text, any set of
fields will do, and how the file is made (its encoding, line ends, last line) is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from bimo.data.addresses import name_of
from bimo.data.checkup.legacy import guess_encoding
from bimo.data.cutting import Rule, cut
from bimo.data.decoding import BAD, TextStream
from bimo.data.documents import Problem, UnreadableError
from bimo.data.encodings import Encoding, recognise, too_many
from bimo.data.files import STANDARD_INPUT, ReadProgress, byte_chunks, kind_of
from bimo.data.tables import Broken, csv_rows, jsonl_rows, parquet_rows

Content = str | Mapping[str, object] | Broken
"""What a row holds: a document of plain text, a record, or neither."""


@dataclass
class LineEnds:
    """How many lines end how, and the first of each kind.

    Attributes:
        windows: Lines that end in carriage return and line feed.
        unix: Lines that end in a line feed alone.
        first_windows: The first line of that kind; 0 when there is none.
        first_unix: The same.
        last_byte: The file's last byte.
    """

    windows: int = 0
    unix: int = 0
    first_windows: int = 0
    first_unix: int = 0
    last_byte: bytes = b""

    def watch(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks, counted while they pass."""
        for chunk in chunks:
            joint = self.last_byte == b"\r" and chunk.startswith(b"\n")
            windows = chunk.count(b"\r\n") + joint
            unix = chunk.count(b"\n") - windows
            before = self.windows + self.unix
            if windows and not self.windows:
                self.first_windows = before + 1 if joint else before + chunk.count(b"\n", 0, chunk.find(b"\r\n")) + 1
            if unix and not self.unix:
                self.first_unix = before + _first_unix(chunk, joint)
            self.windows += windows
            self.unix += unix
            self.last_byte = chunk[-1:] or self.last_byte
            yield chunk


def _first_unix(chunk: bytes, joint: bool) -> int:
    """The first line of a chunk, from 1, that ends in a line feed alone."""
    place = chunk.find(b"\n", 1 if joint else 0)
    while place > 0 and chunk[place - 1] == 13:
        place = chunk.find(b"\n", place + 1)
    return chunk.count(b"\n", 0, place) + 1


@dataclass
class FileRows:
    """One file; iterating gives (row, content), and then the attributes below hold.

    Attributes:
        file: Where it lies.
        rule: Where documents end in plain text.
        text_field: Stands for the only field of a row that is a bare JSON string.
        encoding: What it is in, once known.
        guessed: The encoding was guessed, and training would not read the file.
        line_ends: Of text files.
        last_text: The last document of plain text.
        ended_early: Why the rest could not be read.
    """

    file: Path
    rule: Rule
    text_field: str = "text"
    progress: ReadProgress = field(default_factory=ReadProgress)
    encoding: Encoding | None = None
    guessed: bool = False
    line_ends: LineEnds = field(default_factory=LineEnds)
    last_text: str = ""
    ended_early: Problem | None = None

    @property
    def name(self) -> str:
        return "standard input" if self.file == STANDARD_INPUT else name_of(self.file)

    def __iter__(self) -> Iterator[tuple[int, Content]]:
        stream: TextStream | None = None
        try:
            if kind_of(self.file) == "parquet":
                yield from parquet_rows(self.file, "", self.progress)
                return
            stream = self._open()
            yield from self._rows(stream)
        except UnreadableError as failure:
            reached = stream.line if stream and stream.line > 1 else 0
            self.ended_early = Problem(self.name, failure.row or reached, failure.what, failure.mend)

    def _open(self) -> TextStream:
        chunks = self.line_ends.watch(byte_chunks(self.file, self.progress))
        first = next(chunks, b"")
        if not first:
            raise UnreadableError("the file is empty", "Remove it, or copy it again.")
        try:
            self.encoding = recognise(first)
        except UnreadableError:
            self.encoding = _with_a_few_nuls(first) or guess_encoding(first)
            self.guessed = self.encoding is not None
            if self.encoding is None:
                raise
        return TextStream(chain([first], chunks), self.encoding, keep_controls=True)

    def _rows(self, stream: TextStream) -> Iterator[tuple[int, Content]]:
        kind = kind_of(self.file)
        if kind == "jsonl":
            yield from jsonl_rows(stream, self.text_field, strict=True)
        elif kind == "csv":
            yield from csv_rows(stream)
        else:
            for row, text in cut(stream, self.rule):
                self.last_text = text
                if BAD not in text:
                    yield row, text
                    continue
                line = row + text.count("\n", 0, text.index(BAD))
                yield line, Broken(stream.take_bad(row + text.count("\n")), "Repair these bytes.")


def _with_a_few_nuls(sample: bytes) -> Encoding | None:
    """The encoding of a text into which NUL bytes have come in a few places; None when that is not what it is."""
    runs, nuls = len(re.findall(rb"\0+", sample)), sample.count(0)
    if not runs or too_many(runs, len(sample)) or 2 * nuls > len(sample):
        return None
    try:
        return recognise(sample.replace(b"\0", b""))
    except UnreadableError:
        return None
