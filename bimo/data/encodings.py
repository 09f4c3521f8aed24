"""Which encoding a file is in, judged from its first megabyte: UTF-8, UTF-16 or GB18030, or none that bimo reads.

Nearly every byte string is valid GB18030 to a lenient eye, so that name is given only to bytes that decode to text in
which common characters are as frequent as in Chinese. Latin-1, Shift-JIS, EUC-KR, KOI8-R and binary data fail that test
and are reported, never guessed at.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from bimo.data.documents import UnreadableError

CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
"""Characters that no text holds. Tab, line ends, vertical tab and form feed (a page break) are white space."""

_MARKS = (  # a byte order mark settles it; UTF-32 little-endian begins like UTF-16, so it comes first
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
    ("\ufeff".encode("gb18030"), "gb18030", "GB18030"),
)
_FORMATS = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip (or an office document)"),
    (b"%PDF-", "PDF"),
    (b"PAR1", "parquet"),
)

# The most frequent characters of Chinese, simplified and traditional, and full-width punctuation: about half of any
# modern text, a third of a classical one. Of the common characters of GB2312 one in twenty is among them.
_FREQUENT = frozenset(
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能好都然没日于"
    "起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进把法此实回二理美点月明"
    "其种声全工己话者向情部正名定女问力机给等几很业新什打便位因重被走电四第门相"
    "這來國個說們為時會著過學對裡後麼沒於發當開經現實與進點種聲話問機給"
    "。、“”《》·…—\uff0c\uff1a\uff1b\uff01\uff1f\uff08\uff09"  # the escapes are full-width , : ; ! ? ( )
)


@dataclass(frozen=True)
class Encoding:
    """How the bytes of a file become text."""

    codec: str
    """Python's name of it."""
    label: str
    """Its name for people."""
    skip: int = 0
    """Bytes of the byte order mark at the start."""


def recognise(sample: bytes) -> Encoding:
    """Judge the encoding from the first bytes of a file (1 MiB is plenty, the whole of a shorter one).

    A UTF-8 or GB18030 file with a few bad bytes is still recognised: the decoder reports each of them. Raises
    `UnreadableError` for binary data and for every other encoding.
    """
    for mark, codec, label in _MARKS:
        if sample.startswith(mark):
            if label == "UTF-32":
                raise UnreadableError("the file is in UTF-32", "Convert it with: iconv -f UTF-32 -t UTF-8")
            return Encoding(codec, label, len(mark))
    for start, format_name in _FORMATS:
        if sample.startswith(start):
            raise UnreadableError(
                f"this is not text: it begins like {format_name}", "Unpack it, or convert it to plain text."
            )
    if 0 in sample:
        return _utf16_without_mark(sample)
    escaped = codecs.utf_8_decode(sample, "surrogateescape", False)[0]  # each bad byte becomes a lone surrogate
    controls = len(CONTROL.findall(escaped))
    if too_many(controls, len(escaped)):
        raise UnreadableError(f"the file is binary: {controls} control characters in its first {len(sample)} bytes")
    bad = len(re.findall(r"[\ud800-\udfff]", escaped))
    if bad == 0:
        return Encoding("utf-8", "UTF-8")
    good = len(re.findall(r"[^\x00-\x7f\ud800-\udfff]", escaped))
    if good > 9 * bad:
        return Encoding("utf-8", "UTF-8")
    if good < bad and is_chinese(sample.decode("gb18030", "replace")):
        return Encoding("gb18030", "GB18030")
    if too_many(bad, len(escaped)):
        raise UnreadableError(
            "the bytes are not UTF-8, UTF-16 or GB18030 text",
            "If it is text in an older encoding, convert it, for example with: iconv -f WINDOWS-1252 -t UTF-8",
        )
    return Encoding("utf-8", "UTF-8")


def too_many(bad: int, characters: int) -> bool:
    """Whether bad bytes are too many for a text with a few damaged places: above 3 and above one in 500 characters."""
    return bad > max(3, characters // 500)


def _utf16_without_mark(sample: bytes) -> Encoding:
    """UTF-16 text without its mark, from bytes that hold NULs; anything else is binary."""
    scores = {codec: _utf16_score(sample, codec) for codec in ("utf-16-le", "utf-16-be")}
    best = max(scores, key=lambda codec: scores[codec])
    if scores[best] == 0:
        raise UnreadableError(f"the file is binary: it holds a NUL byte at offset {sample.index(0)}")
    return Encoding(best, "UTF-16")


def _utf16_score(sample: bytes, codec: str) -> int:
    """How many frequent characters the sample holds in this byte order; 0 if it cannot be text.

    Read in the wrong order, those become unassigned or rare characters.
    """
    try:
        text = codecs.lookup(codec).incrementaldecoder().decode(sample)
    except UnicodeDecodeError:
        return 0
    counts = Counter(text)
    unassigned = sum(n for c, n in counts.items() if unicodedata.category(c) in ("Cn", "Co"))
    if CONTROL.search(text) or 100 * unassigned > len(text):
        return 0
    return sum(n for c, n in counts.items() if c in " \t\r\n" or c in _FREQUENT or (c.isascii() and c.isalnum()))


def is_chinese(text: str) -> bool:
    """Whether text decoded from GB18030, bad bytes as U+FFFD, is Chinese: see the table of frequent characters."""
    if too_many(text.count("\ufffd"), len(text)):
        return False
    foreign = {c: n for c, n in Counter(text).items() if ord(c) > 127}
    total = sum(foreign.values())
    frequent = sum(n for c, n in foreign.items() if c in _FREQUENT)
    common = sum(n for c, n in foreign.items() if c in _FREQUENT or _is_level_1(c))
    return total > 0 and frequent >= 0.12 * total and common >= 0.6 * total


def _is_level_1(character: str) -> bool:
    """Punctuation of GB2312 or one of its 3,755 common characters; in bytes: lead A1…A3 or B0…D7, trail from A1."""
    code = character.encode("gb18030")
    return len(code) == 2 and code[1] >= 0xA1 and (0xA1 <= code[0] <= 0xA3 or 0xB0 <= code[0] <= 0xD7)
