"""Numbers in a text, and whether two are the same although their languages write them differently.

1,000.5 is 1.000,5 in German and 1 000,5 in French; 2 files may be two files or 两个文件; 500 万 is 5 million. A token
is read in every way that a language could mean it, and two are the same when they share a reading.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

_SPACES = " \u00a0\u2009\u202f"
_TOKEN = re.compile(
    rf"\d++(?:[.,'’٬٫]\d++)*+(?:(?<=\d)[{_SPACES}]\d{{3}}(?![\d])(?:[.,]\d++)?+)*+"
    r"|[〇零一二两三四五六七八九十百千万萬亿億]{1,32}"
)
_SCALE = re.compile(
    r"\s?(?:(thousand|tausend|mille?\b|mil\b|千)|(millions?\b|Millionen|Mio\b|mill(?:ones|ón)|milioni|милли|百万)"
    r"|(billions?\b|Milliarden?\b|Mrd\b|milliards?\b|miliardi|миллиард|十亿)|(万|萬)|(亿|億))",
    re.IGNORECASE,
)
_SCALES = (10**3, 10**6, 10**9, 10**4, 10**8)
_DIGITS = {c: n for n, c in enumerate("〇一二三四五六七八九")} | {"零": 0, "两": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_LARGE = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_WORDS = (
    "zero null zéro cero ноль",
    "one once single first ein eine einen einem einer eines einmal erste ersten un une uno una primo premier première "
    "один одна одно",
    "two twice both second zwei beide beiden zweite zweiten zweimal deux dos due dois duas два две",
    "three third drei dritte dritten dreimal trois tres tre três три",
    "four fourth vier vierte quatre cuatro quattro quatro четыре",
    "five fifth fünf fünfte cinq cinco cinque пять",
    "six sixth sechs sechste seis sei шесть",
    "seven seventh sieben sept siete sette sete семь",
    "eight eighth acht huit ocho otto oito восемь",
    "nine ninth neun neuf nueve nove девять",
    "ten tenth zehn dix diez dieci dez десять",
    "eleven elf onze once undici одиннадцать",
    "twelve dozen zwölf dutzend douze doce dodici doze двенадцать",
)
_VALUES: dict[str, list[int]] = {
    word: [n for n, words in enumerate(_WORDS) if word in words.split()] for words in _WORDS for word in words.split()
}
_LETTERS = re.compile(r"[^\W\d_]{2,16}")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it stands in a text.

    Attributes:
        text: Its characters.
        start: Where it begins, in characters.
        readings: All values that it may mean.
        spelled: Whether it is written in characters or words instead of digits.
    """

    text: str
    start: int
    readings: frozenset[Decimal]
    spelled: bool = False


def numbers(text: str) -> list[Number]:
    """The numbers of a text in digits and in Chinese characters, in order.

    What is no number as a whole, as a date, a version or an address, gives one for each of its parts.
    """
    found = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if not token[0].isdecimal():
            value = _chinese(token)
            found.append(Number(token, match.start(), frozenset([value] if value is not None else []), spelled=True))
            continue
        scale = _SCALE.match(text, match.end())
        factor = next((size for part, size in zip(scale.groups(), _SCALES, strict=True) if part), 1) if scale else 1
        readings = _readings("".join(_plain(c) for c in token))
        if readings:
            scaled = {value * factor for value in readings}
            found.append(Number(token, match.start(), frozenset(readings | scaled)))
            continue
        for part in re.finditer(r"\d+", token):
            found.append(Number(part[0], match.start() + part.start(), frozenset([Decimal(_digits(part[0]))])))
    return found


def missing_numbers(source: str, answer: str) -> list[Number]:
    """Numbers in digits of a source that an answer does not have, each as often as it is missing."""
    there = numbers(answer)
    spoken = [Decimal(n) for word in _LETTERS.findall(answer) for n in _VALUES.get(word.lower(), ())]
    wanted = [number for number in numbers(source) if not number.spelled]
    lost = []
    for number in sorted(wanted, key=lambda number: len(number.readings)):  # the clearest first
        match = _best(number, there)
        if match is not None:
            there.remove(match)
            continue
        word = next((value for value in spoken if value in number.readings), None)
        if word is None:
            lost.append(number)
        else:
            spoken.remove(word)
    return sorted(lost, key=lambda number: number.start)


def _best(number: Number, there: Sequence[Number]) -> Number | None:
    """The one that is written the same, or else means the same."""
    same = [other for other in there if other.readings & number.readings]
    return next((other for other in same if other.text == number.text), same[0] if same else None)


def _readings(token: str) -> frozenset[Decimal]:
    """What a token of digits and separators can mean; nothing when it is no number as a whole."""
    token = re.sub(rf"['’{_SPACES}٬]", " ", token).replace("٫", ".")
    marks = [mark for mark in token if mark in "., "]
    parts = re.split(r"[., ]", token)
    if not marks:
        return frozenset([Decimal(token)])
    grouped = all(len(part) == 3 for part in parts[1:]) and len(parts[0]) <= 3
    found = set()
    if len(set(marks)) == 1:
        if grouped:
            found.add(Decimal("".join(parts)))
        if len(marks) == 1 and marks[0] != " ":
            found.add(Decimal(".".join(parts)))
        return frozenset(found)
    inner = parts[:-1]  # two kinds of marks: groups, then a fraction
    if len(set(marks[:-1])) == 1 and marks[-1] != " " and all(len(part) == 3 for part in inner[1:]):
        found.add(Decimal("".join(inner) + "." + parts[-1]))
    return frozenset(found)


def _chinese(token: str) -> Decimal | None:
    """The value of a number in Chinese characters; None when it is none."""
    if all(c in _DIGITS for c in token):  # 二〇二四
        return Decimal("".join(str(_DIGITS[c]) for c in token))
    total = section = digit = 0
    for character in token:
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character in _UNITS:
            section += (digit or 1) * _UNITS[character]
            digit = 0
        else:
            total = (total + section + digit or 1) * _LARGE[character]
            section = digit = 0
    return Decimal(total + section + digit)


def _plain(character: str) -> str:
    return str(unicodedata.decimal(character)) if character.isdecimal() else character


def _digits(text: str) -> str:
    return "".join(map(_plain, text))
