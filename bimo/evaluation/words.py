"""Words of a text in any script: characters where a script writes no spaces, runs of letters and digits elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import regex

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_WORD = rf"(?:{_UNSPACED}\p{{M}}*+|[[\p{{L}}\p{{N}}\p{{M}}]--{_UNSPACED}]++)"
_WORDS = regex.compile(_WORD, regex.V1)
_PIECES = regex.compile(rf"{_WORD}|\S", regex.V1)
_IS_UNSPACED = regex.compile(rf"{_UNSPACED}|[，。、；：？！「」『』（）《》“”‘’…—]", regex.V1)
_SENTENCE = regex.compile(r"""(?s)\s*(.+?(?:[.!?…]+['")\]»“”]*(?=\s|$)|[。！？]+[」”』）]*|\n\s*\n|$))""")


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation: of ASCII text what `rouge-score` takes for its words."""
    return _WORDS.findall(text.lower())


def pieces(text: str) -> list[str]:
    """Words and every other character that is no space, as they are written."""
    return _PIECES.findall(text)


def spaced_pieces(text: str) -> list[tuple[str, str]]:
    """As `pieces`, each with the white space before it."""
    found, end = [], 0
    for match in _PIECES.finditer(text):
        found.append((text[end : match.start()], match[0]))
        end = match.end()
    return found


def is_unspaced(piece: str) -> bool:
    """Whether a piece belongs to a script that writes no spaces."""
    return _IS_UNSPACED.match(piece) is not None


def first_sentence(text: str) -> str:
    """Up to the first full stop, question or exclamation mark, or empty line."""
    match = _SENTENCE.match(text)
    return match[1].strip() if match else ""


def shortened(text: str, n_words: int) -> str:
    """The beginning of a text, up to the end of so many words."""
    for number, match in enumerate(_WORDS.finditer(text), start=1):
        if number == n_words:
            return text if _WORDS.search(text, match.end()) is None else text[: match.end()]
    return text


def n_grams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
