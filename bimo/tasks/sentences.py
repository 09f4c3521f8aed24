"""Where sentences and paragraphs end, in any language; joined again, the parts are the text, character for character.

By rules instead of a model: a mark that ends sentences, then what may close behind it, then white space (or nothing,
in scripts without spaces); and no end behind an abbreviation, an initial, an ordinal, or before a small letter. The
whole is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bimo.core.unicode import SCRIPTS

_CLOSERS = "\"'”’»›)\\]}」』】》〉）］｝*_"
_WIDE_ENDS = "。！？｡।።။།॥។։"
"""Marks that end a sentence without a space behind them: Chinese, Japanese, Ethiopic, Burmese, Khmer, Indic."""
_WIDE_LETTERS = SCRIPTS["Han"] + SCRIPTS["Kana"]
_END = re.compile(
    rf"(?:(?<![.!?…‥؟۔])(?P<narrow>[.!?…‥؟۔]++)[{_CLOSERS}]*+(?:[ \u00a0\u202f][»›])?(?=\s|\Z)"
    rf"|[{_WIDE_ENDS}]++[.!?…]*+[{_CLOSERS}]*+"
    rf"|(?<=[{_WIDE_LETTERS}])[!?]++(?=[{_WIDE_LETTERS}]))\s*+"
    r"|(?<![^\S\n])[^\S\n]*+\n[^\S\n]*+\n\s*+"
)
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*+\n)++")
_OPENERS = "\"'“„«»‘([{¿¡"
_LONGEST_WORD = 26  # of those that are looked at
_NEXT = re.compile(r"[\"'“„«»‘(\[{*_¿¡-]{0,8}(\w{1,24})")
_MONTHS = (
    "januar februar märz april mai juni juli august september oktober november dezember jänner jahrhundert jh "
    "ledna února března dubna května června července srpna září října listopadu prosince století "
    "stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia wieku "
    "januari februari mars maj juni juli augusti oktober marts tammikuuta helmikuuta maaliskuuta"
)
_AFTER_ORDINALS = frozenset(_MONTHS.split())
_BEFORE_MORE = (
    "dr mr mrs ms mx prof st sr jr rev hon gen col lt sgt capt cmdr gov sen rep pres vs cf viz e.g i.e eg ie ca approx "
    "fig figs eq eqs no nos vol vols pp ch sec secs al ed eds p.ex p.e "
    "z.b d.h u.a o.ä s.o s.u i.d.r u.u z.t z.zt bzw vgl abb nr tel evtl ggf inkl exkl zzgl sog hr fr frl dipl ing "
    "hrsg bd aufl kap tab "
    "mme mlle mgr me chap art av env p.ej ej ud uds sra srta dña dn núm pág págs dott sig sigg prof.ssa pag ecc "
    "exmo exma sra dra eng "
    "т.е т.к т.н напр ср см рис табл стр гл ул пр г им проф акад гр тов св "
    "np tzn tzw prof dr hab inż ul str godz por tj tzv např popř resp č čl odst "
    "dhr mevr bijv nl m.b.t o.a i.v.m d.w.z blz bv kl nr"
)
_GO_ON = frozenset(_BEFORE_MORE.split())
"""Abbreviations, in small letters and without their last dot, behind which a sentence goes on."""
_LAST = "etc usw usf inc ltd co corp bros u.s u.k a.m p.m jr ecc т.д т.п др atd itd itp enz"
_MAY_END = frozenset(_LAST.split())
"""Abbreviations behind which one ends when a capital follows."""


def paragraphs(text: str) -> list[str]:
    """The text in parts that end behind blank lines.

    Returns:
        Parts that give the text when they are joined; an empty text has none.
    """
    return _cut(text, (match.end() for match in _BLANK_LINES.finditer(text)))


def sentences(text: str) -> list[str]:
    """The text in sentences, each with the white space behind it.

    A line end alone ends none: text may be wrapped. A blank line does.

    Returns:
        Parts that give the text when they are joined; an empty text has none.
    """
    return _cut(text, _borders(text))


def _cut(text: str, borders: Iterator[int]) -> list[str]:
    parts, start = [], 0
    for border in borders:
        if text[start:border].strip():  # white space alone goes with what follows
            parts.append(text[start:border])
            start = border
    rest = text[start:]
    if rest and (rest.strip() or not parts):
        parts.append(rest)
    elif rest:
        parts[-1] += rest
    return parts


def _borders(text: str) -> Iterator[int]:
    for match in _END.finditer(text):
        if match["narrow"] is None or match.end() == len(text) or _ends(text, match):
            yield match.end()


def _ends(text: str, match: re.Match[str]) -> bool:
    """Whether a sentence ends at a mark that also has other uses."""
    following = _NEXT.match(text, match.end())
    word = following[1] if following else ""
    if word[:1].islower():
        return False
    if match["narrow"] != ".":
        return True
    before = text[max(0, match.start() - _LONGEST_WORD) : match.start()]
    own = "" if not before or before[-1].isspace() else before.split()[-1].lstrip(_OPENERS)
    if "\n" in text[match.end("narrow") : match.end()] and not own.isdecimal():
        return own.lower() not in _GO_ON
    return not _abbreviates(own, word, before)


def _abbreviates(own: str, word: str, before: str) -> bool:
    """Whether the word with a dot behind it, seen with the word that follows, is none that ends a sentence."""
    small = own.lower()
    if small in _MAY_END:
        return False
    if small in _GO_ON or (len(own) == 1 and own.isalpha() and (len(word) == 1 or (own.isupper() and own != "I"))):
        return True
    if own.isdecimal() and len(own) <= 3:
        rest = before[: -len(own)].rstrip(" \t")
        numbers_a_list = not rest or rest[-1] in "\n.!?:;"  # "1. Open the lid. 2. Close it."
        return numbers_a_list or word.lower() in _AFTER_ORDINALS
    return False
