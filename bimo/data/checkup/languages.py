"""Which language a text is in, well enough to find the ones that do not belong: by script, and by its small words.

A corpus has a main language; most texts are settled by one of its words, and only the others are looked at closely.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from bimo.data.checkup.characters import FIRST_SCRIPT, KANA, SCRIPT_NAMES, Block, script_counts

SMALL_WORDS: dict[str, str] = {
    "English": (
        "the of and to in is that it was for with as his he be not by but have you which this are on or her "
        "had at from they their were been an if there your can will"
    ),
    "German": (
        "der die das und ist nicht ein eine zu den von mit sich des auf für im dem auch als wird werden sie "
        "es an oder einer durch bei kann wenn aus nach wie ich war daß dass zum zur nur noch über haben"
    ),
    "French": (
        "le la les de des et est une un du dans que qui pour pas sur avec il vous ce se plus par au aux ne "
        "sont cette nous être mais ou elle son sa été je"
    ),
    "Spanish": (
        "el la los las de que y en un una por con para del se es no su al lo como más pero sus le ya este son "
        "está esta si han muy cuando sobre también fue"
    ),
    "Italian": (
        "il la di che e è un una per non in con del della le si sono dei da al come più anche nel alla gli "
        "delle ma lo ha questo essere"
    ),
    "Portuguese": (
        "o a os as de que e do da em um uma para com não por mais dos das no na se ao como é mas foi são seu "
        "sua você este está pelo"
    ),
    "Dutch": (
        "de het een en van is dat niet te op voor met zijn aan in er die als ook om bij uit dan maar of wordt "
        "naar door deze kan worden"
    ),
    "Polish": ("i w na z nie się do to że jest o jak po za od co przez dla czy jego są tym może być który oraz"),
    "Swedish": ("och att det i en som är på av för med den inte till om har de ett var jag från men kan eller vid så"),
    "Turkish": ("bir ve bu için ile da de ne olarak daha çok gibi olan en kadar var sonra ama o her"),
    "Czech": ("a se v na je že to s z do o i jako by pro za ve k nebo jsou který jeho tak po při"),
    "Indonesian": (
        "yang dan di untuk dengan ini tidak dari dalam adalah pada akan itu ke atau oleh sebagai juga dapat"
    ),
    "Vietnamese": ("và của là có trong không được cho một các người những để với này đã từ khi về như"),
}
"""Frequent words of languages in Latin letters, the most frequent first."""

UNKNOWN = ""
_ENOUGH = 60  # characters below which a text in Latin letters is not judged


class LanguageGuesser:
    """Judges texts of one column; it learns which language is the main one.

    Args:
        settle_after: Texts after which the main language is settled.
    """

    def __init__(self, settle_after: int = 300) -> None:
        self.settle_after = settle_after
        self.codes: dict[str, int] = {UNKNOWN: 0}
        """A number for each language that was met."""
        self._met: Counter[str] = Counter()
        self._main: tuple[str, ...] = ()
        self._main_name = UNKNOWN

    def judge(self, block: Block) -> np.ndarray:
        """A number for the language of each document, (documents,) uint8."""
        counts = script_counts(block)  # (documents, scripts)
        han = counts[:, _HAN_ROWS].sum(1)
        kana, simplified, traditional = (counts[:, row] for row in (_KANA_ROW, *_HAN_ROWS[1:]))
        japanese = 8 * kana > han + kana
        old_forms = ~japanese & (traditional > 2) & (traditional > 3 * simplified)
        merged = counts.copy()
        merged[:, _HAN_ROWS[0]] = han + kana
        merged[:, [_KANA_ROW, *_HAN_ROWS[1:]]] = 0
        letters, main = merged.sum(1), merged.argmax(1)
        clear = (letters >= 12) & (merged.max(1) >= 0.7 * letters)
        found = np.zeros(len(letters), np.uint8)
        for script in np.unique(main[clear]).tolist():
            own = clear & (main == script)
            if script == _HAN_ROWS[0]:
                found[own & japanese] = self._code("Japanese")
                found[own & old_forms] = self._code("traditional Chinese")
                found[own & ~japanese & ~old_forms] = self._code("Chinese")
            elif script > 0:
                found[own] = self._code(SCRIPT_NAMES[script])
            else:
                long = np.flatnonzero(own & (letters >= _ENOUGH)).tolist()
                if long:
                    found[long] = self._latin_codes([block.texts[number] for number in long])
        return found

    def _code(self, name: str) -> int:
        return self.codes.setdefault(name, len(self.codes))

    def _latin_codes(self, texts: list[str]) -> list[int]:
        main, code = self._main, self.codes.get(self._main_name, 0)
        return [
            code if main and any(w in text for w in main) else self._code(self._latin(text[:400])) for text in texts
        ]

    def _latin(self, start: str) -> str:
        name = latin_language(start)
        if name and len(self._main) == 0:
            self._met[name] += 1
            if self._met.total() == self.settle_after:
                self._settle()
        return name

    def _settle(self) -> None:
        """From now on, one of the most frequent words that only the main language has is enough for it."""
        self._main_name = self._met.most_common(1)[0][0]
        own = [word for word in SMALL_WORDS[self._main_name].split() if _LANGUAGES_OF.get(word) == [self._main_name]]
        self._main = tuple(f" {word} " for word in own)[:8]


_KANA_ROW = KANA - FIRST_SCRIPT
_HAN_ROWS = [SCRIPT_NAMES.index(name) for name in ("Han", "simplified Han", "traditional Han")]


def latin_language(text: str) -> str:
    """The language of a text in Latin letters; '' when it is none of the known ones, or not clear."""
    words = set(text.lower().split())  # one word that comes often says little
    counts = Counter(name for word in words for name in _LANGUAGES_OF.get(word, ()))
    (name, best), (_, second) = [*counts.most_common(2), ("", 0), ("", 0)][:2]
    return name if best >= max(4, 2 * second, second + 3) and 6 * best >= len(words) else UNKNOWN


_LANGUAGES_OF: dict[str, list[str]] = {
    word: [name for name, small in SMALL_WORDS.items() if word in small.split()]
    for word in " ".join(SMALL_WORDS.values()).split()
    if len(word) > 1  # single letters are initials, bullets and variables in every language
}
