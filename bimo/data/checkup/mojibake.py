"""Text that was once decoded wrongly, 'cafÃ©' for 'café': where it stands, and what it was, where that is certain.

Certain means: the characters, written back in the wrong encoding, are bytes that decode without fault in the right one,
to characters that such text holds. UTF-8 and GBK read as Latin-1 and UTF-8 read as GBK are known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bimo.data.encodings import is_chinese

_CP1252_HIGH = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_FOLLOWING = f"\u0080-\u00bf{_CP1252_HIGH}"
UTF8_AS_LATIN = re.compile(
    f"(?:[\u00c2-\u00df][{_FOLLOWING}]|[\u00e0-\u00ef][{_FOLLOWING}]{{2}}|[\u00f0-\u00f4][{_FOLLOWING}]{{3}})+"
)
GBK_AS_LATIN = re.compile("(?:[\u00a1-\u00f7][\u00a1-\u00fe\xa0-\xff]){4,}")
_HAN_LEADS = "鐨涓鏄浜鍦鎴锛銆鏈鍒鍜浠鍙杩鏃瑙缁闂鍏浣犲ソ鎻掓枃璇濆洖鏉ヤ"
UTF8_AS_GBK = re.compile("[\u4e00-\u9fff\u3400-\u4dbf\ue000-\uf8ff\u00a4-\u00f7\u2010-\u33ff\uff00-\uffef€]{3,}")
LEADS = frozenset(_HAN_LEADS)
_LETTERS = "œŒŠšŽžŸąćęłńśźżĄĆĘŁŃŚŹŻčďěňřťůČĎĚŇŘŤŮőűŐŰăĂșşțţğıİŞĞ"
_QUOTES = tuple("\"'`“”‘’„«»‹›「」『』()（）")
_LOST = re.compile("锟斤拷|烫烫烫|屯屯屯")


def repaired(text: str) -> str:
    """The text with every certain case put right."""
    if not text.isascii():
        for start, end, right in reversed(list(mojibake(text))):
            if right:
                text = text[:start] + right + text[end:]
    return text


def mojibake(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and right reading of each place, in order; the reading is '' where it is lost."""
    for start, end, right in sorted([*_latin(text), *_chinese(text)]):
        before, after = text[max(0, start - 1) : start], text[end : end + 1]
        quoted = before in _QUOTES or (after in _QUOTES and not before.isalpha())
        if not quoted or end - start > 4:  # a quoted character or two: the text speaks about it
            yield start, end, right


def _latin(text: str) -> Iterator[tuple[int, int, str]]:
    chinese = [(m.start(), m.end(), right) for m in GBK_AS_LATIN.finditer(text) if (right := _as_gbk(m[0]))]
    yield from chinese
    for match in UTF8_AS_LATIN.finditer(text):
        right = _as_utf8(match[0])
        if (
            right
            and _plausible(right)
            and all(match.start() >= end or match.end() <= start for start, end, _ in chinese)
        ):
            yield match.start(), match.end(), right


def _chinese(text: str) -> Iterator[tuple[int, int, str]]:
    for match in _LOST.finditer(text):
        yield match.start(), match.end(), ""
    if LEADS.isdisjoint(text):
        return
    for match in UTF8_AS_GBK.finditer(text):
        try:
            right = match[0].encode("gb18030").decode(errors="replace")
        except UnicodeError:
            continue
        lost = right.count("\ufffd")
        if len(right) >= 2 and 4 * lost <= len(right) and all(_is_chinese_text(c) for c in right.replace("\ufffd", "")):
            yield match.start(), match.end(), "" if lost else right


def _is_chinese_text(character: str) -> bool:
    return "\u3000" <= character <= "\u9fff" or character in "，。！？：；“”（）"


def _as_utf8(run: str) -> str:
    """What a run of Latin characters is when its bytes are UTF-8; '' when they are not."""
    try:
        data = b"".join(c.encode("cp1252" if c in _CP1252_HIGH else "latin-1") for c in run)
        return data.decode()
    except UnicodeError:
        return ""


def _plausible(right: str) -> bool:
    """Whether such text holds these characters: letters of Europe, punctuation, or a run of a script."""
    common = sum(
        c < "\u0100" or c in _LETTERS or "\u2010" <= c <= "\u2122" or c in "ﬁﬂ\ufeff" or c >= "\U0001f000"
        for c in right
    )
    foreign = sum("\u0370" <= c <= "\u06ff" or "\u3000" <= c <= "\ud7a3" or "\uff00" <= c <= "\uffef" for c in right)
    if foreign == 1 and common == 0:
        return "\u3000" <= right <= "\u9fff" or "\uff00" <= right <= "\uffef"
    return common + foreign == len(right)


def _as_gbk(run: str) -> str:
    """What a run of Latin letters is when its bytes are Chinese; '' when that is not sure."""
    try:
        right = run.encode("latin-1").decode("gb2312")
    except UnicodeError:
        return ""
    han = sum("\u4e00" <= c <= "\u9fff" for c in right)
    return right if han >= 3 and is_chinese(right) else ""
