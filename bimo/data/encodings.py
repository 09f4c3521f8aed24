"""Bytes to text: recognises UTF-8, UTF-16 and GB18030, and never replaces what it cannot decode.

The encoding is settled on the first megabyte. GB18030 gives a meaning to almost any bytes, so it is believed only where
the result looks like Chinese: Latin-1 accents stand between ASCII letters, GBK characters are pairs of high bytes.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from typing import BinaryIO

_SAMPLE = 2**20
_CHUNK = 2**20
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def recognise(sample: bytes) -> tuple[str, int] | None:
    """Encoding and length of the byte-order mark of a file that begins like this; None: binary or unknown."""
    for bom, encoding in _BOMS.items():
        if sample.startswith(bom):
            return encoding, len(bom)
    if b"\0" in sample:
        return _utf16_without_bom(sample)
    if _decodes(sample, "utf-8"):
        return "utf-8", 0
    if _looks_like_gbk(sample):
        return "gb18030", 0
    # A few broken bytes in a text are damage, not another encoding.
    bad = sample.decode("utf-8", errors="replace").count("\ufffd")
    return ("utf-8", 0) if bad <= 3 or bad < sample.count(b"\n") / 20 else None


def decode(stream: BinaryIO, on_broken: Callable[[int, int, str], None]) -> Iterator[str | None]:
    """Text of a stream in pieces of about a megabyte; None stands for a line that could not be decoded.

    Args:
        stream: Bytes, read once.
        on_broken: Called with line number, byte offset in the file and what is wrong; line 0 is the whole file.
    """
    sample = stream.read(_SAMPLE)
    if not sample:
        return
    found = recognise(sample)
    if found is None:
        on_broken(0, 0, _unknown(sample))
        return
    encoding, skip = found
    decoder = codecs.getincrementaldecoder(encoding)()
    line, offset, chunk = 1, skip, sample[skip:]
    by_line = not encoding.startswith("utf-16")  # there a byte 0x0A can be half of a character
    while chunk:
        following = stream.read(_CHUNK)
        cut = chunk.rfind(b"\n") + 1
        if by_line and cut and following:
            chunk, following = chunk[:cut], chunk[cut:] + following
        try:
            piece = decoder.decode(chunk, final=not following)
            line += piece.count("\n")
            yield piece
        except UnicodeDecodeError as error:
            if not by_line:
                on_broken(line, offset + error.start, f"bytes that are not {encoding.upper()}; the rest is left out")
                return
            decoder.reset()
            yield from _by_lines(chunk, encoding, line, offset, on_broken)
            line += chunk.count(b"\n")
        offset += len(chunk)
        chunk = following


def _by_lines(
    chunk: bytes, encoding: str, line: int, offset: int, on_broken: Callable[[int, int, str], None]
) -> Iterator[str | None]:
    """A chunk with broken bytes, line by line."""
    for raw in io.BytesIO(chunk):
        try:
            yield raw.decode(encoding)
        except UnicodeDecodeError as error:
            place = offset + error.start
            on_broken(line, place, f"byte 0x{raw[error.start]:02X} at offset {place} is not {encoding.upper()}")
            yield None
        line += 1
        offset += len(raw)


def _unknown(sample: bytes) -> str:
    """Why a file is not read, with the first place that shows it."""
    place = sample.find(b"\0")
    if place >= 0:
        return f"not text: it holds NUL bytes, the first at offset {place}"
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        line = sample.count(b"\n", 0, error.start) + 1
        return f"not UTF-8 (byte 0x{sample[error.start]:02X} at offset {error.start}, line {line}), UTF-16 or GB18030"
    return "not UTF-8, UTF-16 or GB18030"


def _decodes(sample: bytes, encoding: str) -> bool:
    """Whether the sample decodes, but for a character cut off at its end."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return False
    return True


def _utf16_without_bom(sample: bytes) -> tuple[str, int] | None:
    """UTF-16 of mostly Latin text has its NUL bytes on one side; anything else with NULs is binary."""
    sample = sample[: len(sample) // 2 * 2]
    for encoding, high, low in (("utf-16-le", sample[1::2], sample[::2]), ("utf-16-be", sample[::2], sample[1::2])):
        if high.count(0) > 0.3 * len(high) and low.count(0) == 0 and _decodes(sample, encoding):
            return encoding, 0
    return None


def _looks_like_gbk(sample: bytes) -> bool:
    """Whether the non-ASCII characters are Chinese as people write it: mostly in GB 2312, both bytes above 0xA0."""
    if not _decodes(sample, "gb18030"):
        return False
    text = codecs.getincrementaldecoder("gb18030")().decode(sample)
    foreign = [character for character in text if ord(character) > 127]
    if not foreign:
        return False
    simple = 0
    for character in foreign:
        code = character.encode("gb18030")
        simple += len(code) == 2 and code[0] >= 0xA1 and code[1] >= 0xA1
    chinese = sum("\u4e00" <= c <= "\u9fff" or "\u3000" <= c <= "\u303f" or "\uff00" <= c <= "\uffef" for c in foreign)
    return simple > 0.8 * len(foreign) and chinese > 0.8 * len(foreign)
