"""A guess at the encoding of text that the readers refuse, so that the checkup can name it and the cleaning convert it.

A guess is made only where the bytes decode without fault to letters of one language in which its most frequent letters
are as frequent as they should be; anything else stays unknown.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter

from bimo.data.encodings import CONTROL, Encoding

_CYRILLIC_FREQUENT = frozenset("оеаинтсрвлкмдпуя")
_WESTERN = frozenset("äöüßÄÖÜàâçéèêëîïôûùœÉÀáíóúñÁÍÓÚÑ¿¡åøæÅØÆãõ«»’‘“”–—…€°§©®´·ºª²³½\xa0£×ìòÈÊÇ•‚„‹›Ÿÿ")
_COMMON = frozenset("äöüßÄÖÜàâçéèêëîïôùÉáíóúñ")
_CENTRAL = frozenset("ąćęłńóśźżĄĆĘŁŃÓŚŹŻčďěňřšťůžýáéíúČĎĚŇŘŠŤŮŽÝőűŐŰöüÖÜâăîșțşţÂĂÎŞŢ–—„”“’\xa0…")
_HANGUL = re.compile("[가-힣]")
_KANA = re.compile("[\u3041-\u3096\u30a1-\u30fc]")
_TRADITIONAL = frozenset(
    "的一是不了人我在有他這中大來上國個到說們為子和你地出道也時年得就那要下以生會自著去之過家學對可"
)


def guess_encoding(sample: bytes) -> Encoding | None:
    """The older encoding that these bytes are in, or None."""
    if sample.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        order = "le" if sample.startswith(codecs.BOM_UTF32_LE) else "be"
        return Encoding(f"utf-32-{order}", "UTF-32", 4)
    if 0 in sample or CONTROL.search(sample.decode("latin-1").replace("\x1b", "")):
        return None
    if b"\x1b$" in sample and _decoded(sample, "iso2022_jp"):
        return Encoding("iso2022_jp", "ISO-2022-JP")
    for codec, label, fits in _CANDIDATES:
        text = _decoded(sample, codec)
        foreign = [c for c in text if not c.isascii()]
        if foreign and fits(foreign):
            return Encoding(codec, label)
    return None


def guess_line(data: bytes) -> Encoding | None:
    """The encoding of one line that is not UTF-8: GB18030 for Chinese, else as `guess_encoding`."""
    text = _decoded(data, "gb18030")
    foreign = [c for c in text if not c.isascii()]
    han = sum("\u4e00" <= c <= "\u9fff" or c in "，。、？！：；“”（）《》" for c in foreign)
    common = sum(
        1 for c in foreign if len(code := c.encode("gb18030")) == 2 and 0xA1 <= code[0] <= 0xD7 and code[1] >= 0xA1
    )
    if len(foreign) >= 2 and han == len(foreign) and 10 * common >= 9 * len(foreign):
        return Encoding("gb18030", "GB18030")
    few = [c for c in data.decode("latin-1") if not c.isascii()]
    if len(few) < 3 and not _COMMON.issuperset(few):  # a byte or two may be anything
        return None
    return guess_encoding(data)


def _decoded(sample: bytes, codec: str) -> str:
    """The text, without a character that the end of the sample cuts; '' when it does not decode."""
    for cut in range(3):
        try:
            return sample[: len(sample) - cut].decode(codec)
        except UnicodeDecodeError:
            continue
    return ""


def _share(characters: list[str], wanted: frozenset[str]) -> float:
    counts = Counter(characters)
    return sum(counts[c] for c in wanted) / len(characters)


def _is_japanese(foreign: list[str]) -> bool:
    kana = len(_KANA.findall("".join(foreign)))
    halfwidth = sum("\uff61" <= c <= "\uff9f" for c in foreign)
    return kana > 0.25 * len(foreign) and halfwidth < 0.05 * len(foreign)


def _is_korean(foreign: list[str]) -> bool:
    return len(_HANGUL.findall("".join(foreign))) > 0.8 * len(foreign)


def _is_traditional(foreign: list[str]) -> bool:
    return _share(foreign, _TRADITIONAL) > 0.08 and sum("\u4e00" <= c <= "\u9fff" for c in foreign) > 0.7 * len(foreign)


def _is_russian(foreign: list[str]) -> bool:
    small = sum("а" <= c <= "я" for c in foreign)
    return _share(foreign, _CYRILLIC_FREQUENT) > 0.6 and small > 0.7 * len(foreign)


def _is_western(foreign: list[str]) -> bool:
    return _share(foreign, _WESTERN) > 0.97


def _is_central(foreign: list[str]) -> bool:
    return _share(foreign, _CENTRAL) > 0.97


_CANDIDATES = (
    ("shift_jis", "Shift-JIS", _is_japanese),
    ("euc_jp", "EUC-JP", _is_japanese),
    ("cp949", "EUC-KR", _is_korean),
    ("big5", "Big5", _is_traditional),
    ("cp1251", "Windows-1251", _is_russian),
    ("koi8-r", "KOI8-R", _is_russian),
    ("cp1252", "Windows-1252 (Latin-1)", _is_western),
    ("cp1250", "Windows-1250", _is_central),
)
