"""Which language a text is in, offline: by its script where that settles it, else by `py3langid` (extra `lang`).

Without the package the small words of `data.checkup` judge longer texts, and leave short ones open.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from bimo.core.errors import UserError, require
from bimo.core.unicode import SCRIPTS
from bimo.data.checkup.languages import latin_language
from bimo.tasks.languages import LANGUAGES

_LETTERS = re.compile("|".join(f"(?P<{name}>[{ranges}])" for name, ranges in SCRIPTS.items()))
_OF_ONE_SCRIPT = {"Greek": "el", "Hebrew": "he", "Thai": "th", "Hangul": "ko", "Kana": "ja"}
_OF_SCRIPTS = {"Cyrillic": ("ru", "uk", "bg", "sr"), "Arabic": ("ar", "fa", "ur"), "Indic": ("hi", "bn", "ta")}
_OTHERS = {"zh", *_OF_ONE_SCRIPT.values(), *chain(*_OF_SCRIPTS.values())} - {"sr"}  # Serbian is written in both
_LATIN_LANGUAGES = tuple(code for code in LANGUAGES if code not in _OTHERS)
_LOOKED_AT = 2000  # characters
_NOISE = re.compile(r"https?://\S++|<[^<>]{0,256}>|[{%$`\\]\S*+|\d++")
_CODES = {name: code for code, name in LANGUAGES.items()}


@dataclass(frozen=True, slots=True)
class Guess:
    """A language by its code, and how sure that is, 0 … 1."""

    language: str
    probability: float


def recognise_language(text: str, among: Sequence[str] = ()) -> Guess | None:
    """The language of a text.

    Args:
        text: Its first 2,000 characters are looked at, without links, tags and numbers.
        among: Codes of the languages that it can be; empty: all of `LANGUAGES`.

    Returns:
        None where there are no letters, or where nothing settles it.
    """
    plain = _NOISE.sub(" ", text[:_LOOKED_AT])
    scripts = Counter(match.lastgroup or "" for match in _LETTERS.finditer(plain))
    if not scripts:
        return None
    if 8 * scripts["Kana"] > scripts["Han"] + scripts["Kana"]:
        return _allowed("ja", among)
    script = scripts.most_common(1)[0][0]
    if 2 * (scripts["Han"] + scripts["Kana"]) > scripts.total() or script == "Han":
        return _allowed("zh", among)
    if script in _OF_ONE_SCRIPT:
        return _allowed(_OF_ONE_SCRIPT[script], among)
    possible = _OF_SCRIPTS.get(script, _LATIN_LANGUAGES)
    if among:
        possible = tuple(code for code in possible if code in among)
    if len(possible) < 2:
        return Guess(possible[0], 1.0) if possible else None
    try:
        return _by_package(plain, possible)
    except UserError:  # the package is not there
        code = _CODES.get(latin_language(plain), "") if script == "Latin" else ""
        return Guess(code, 0.9) if code in possible else None


def _allowed(code: str, among: Sequence[str]) -> Guess | None:
    return Guess(code, 1.0) if not among or code in among else None


def _by_package(text: str, possible: tuple[str, ...]) -> Guess:
    language, probability = _identifier(possible).classify(text)
    return Guess(language, float(probability))


@functools.lru_cache(maxsize=16)
def _identifier(possible: tuple[str, ...]) -> Any:
    library = require("py3langid.langid", "lang")
    identifier = library.LanguageIdentifier.from_model_file(library.MODEL_FILE, norm_probs=True)
    known = set(identifier.labels)
    identifier.set_languages([code for code in possible if code in known])
    return identifier
