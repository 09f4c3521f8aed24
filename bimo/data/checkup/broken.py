"""What is wrong with a file as a whole, and with rows that cannot be read: the words and kinds of those findings."""

from __future__ import annotations

from collections.abc import Sequence

from bimo.data.checkup.kinds import excerpt
from bimo.data.checkup.legacy import guess_line
from bimo.data.checkup.rows import FileRows
from bimo.data.checkup.sides import Side
from bimo.data.documents import UnreadableError
from bimo.data.encodings import Encoding
from bimo.data.files import ReadProgress, byte_chunks, kind_of
from bimo.data.tables import Broken

LOOKED_AT = 200  # lines with bad bytes whose encoding is guessed
_FEW_LINES = 20


def report_broken(side: Side, rows: FileRows, broken: Sequence[tuple[int, Broken]], n_rows: int) -> None:
    """Report the rows of a file that cannot be read."""
    bad = [row for row, content in broken if _is_bad_bytes(content)]
    guesses = _guesses(rows, bad[:LOOKED_AT]) if bad else {}
    last = broken[-1][0] if broken else 0
    for row, content in broken:
        kind, what, mend = "broken row", content.what, content.mend
        if _is_bad_bytes(content):
            kind, mend = "bad bytes", ""
            if row in guesses:
                assert rows.encoding is not None, "the file was decoded"
                kind = "mixed encodings"
                what = f"this line is {guesses[row].label}, while the file is {rows.encoding.label} ({content.what})"
        elif content.what.startswith("the key"):
            kind = "duplicate key"
        elif row == last and rows.line_ends.last_byte not in (b"\n", b"\r", b"") and rows.ended_early is None:
            kind, what, mend = "truncated", f"the last line is cut off: {content.what}", ""
        side.say(kind, rows.name, row, what, f"{mend} --fix leaves the row out.".strip() if mend else "")


def report_file(side: Side, rows: FileRows, n_rows: int) -> None:
    """Report what is wrong with the file as a whole."""
    problem = rows.ended_early
    if problem:
        side.say(_kind_of_end(problem.what), rows.name, problem.row, problem.what, problem.mend)
    elif n_rows == 0:
        side.say("empty file", rows.name, 0, "there is nothing but white space in the file")
    if rows.encoding and (rows.guessed or rows.encoding.label != "UTF-8"):
        _report_encoding(side, rows, rows.encoding)
    ends, last = rows.line_ends, rows.last_text
    if n_rows >= 20 and not problem and last[-1:].isalnum() and ends.last_byte != b"\n":
        what = (
            f"the file ends without a line end, in the midst of a sentence: {excerpt(last, len(last) - 1, around=30)}"
        )
        side.say("unfinished last line", rows.name, 0, what)
    is_table = kind_of(rows.file) == "csv"  # a cell may hold line feeds while rows end as in Windows
    if ends.windows and ends.unix and not (is_table and ends.windows > ends.unix):
        few, row = (ends.windows, ends.first_windows) if ends.windows < ends.unix else (ends.unix, ends.first_unix)
        kind = "a carriage return and a line feed" if ends.windows < ends.unix else "a line feed alone"
        what = f"mixed line ends: {few:,} of {ends.windows + ends.unix:,} lines end in {kind}, here the first"
        side.say("line ends", rows.name, row, what)


def _report_encoding(side: Side, rows: FileRows, encoding: Encoding) -> None:
    if not rows.guessed:
        side.say("encoding", rows.name, 0, f"the file is {encoding.label}, not UTF-8")
    elif encoding.label in ("UTF-8", "UTF-16", "GB18030"):
        what = f"NUL bytes stand in the {encoding.label} text, so that it is taken for binary data"
        side.say("control character", rows.name, 0, what)
    else:
        mend = f"Convert it with: iconv -f {encoding.codec} -t UTF-8. Or use --fix."
        what = f"the file is not UTF-8 but {encoding.label}, which training does not read"
        side.say("unknown encoding", rows.name, 0, what, mend)


def _kind_of_end(what: str) -> str:
    if "truncated" in what or "too early" in what:
        return "truncated"
    if what == "the file is empty":
        return "empty file"
    return "unknown encoding" if "UTF-8" in what or "UTF-32" in what else "unreadable"


def _is_bad_bytes(content: Broken) -> bool:
    return content.what.startswith("byte") and " is not " in content.what


def _guesses(rows: FileRows, wanted: Sequence[int]) -> dict[int, Encoding]:
    """For some lines of a file the encoding that they seem to be in."""
    found: dict[int, Encoding] = {}
    left = set(wanted)
    number, rest = 0, b""
    try:
        for chunk in byte_chunks(rows.file, ReadProgress()):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                number += 1
                if number in left:
                    _guess(found, number, line)
            if number > max(left):
                return found
    except UnreadableError:
        return found
    if number + 1 in left:
        _guess(found, number + 1, rest)
    return found


def _guess(found: dict[int, Encoding], number: int, line: bytes) -> None:
    """The bad part of the line alone is judged: around it may be good UTF-8."""
    encoding = guess_line(line.strip())
    if encoding:
        found[number] = encoding
