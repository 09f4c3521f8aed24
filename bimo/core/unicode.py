"""One definition of what a character is: invisible, a control, a look-alike, of which script. For data and requests.

What is invisible depends on its neighbours: a joiner belongs between Persian letters and between the parts of an emoji,
a variation selector behind a symbol, a direction mark into Arabic and Hebrew text. Elsewhere they hide something.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

CONTROLS = "\x00-\x08\x0e-\x1f\x7f-\x9f"
"""Control characters, as the inside of a character class. Tab, line ends and form feed are white space."""
JOINERS = "\u200c\u200d"
SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
TAGS = "\U000e0020-\U000e007f"
ALWAYS_INVISIBLE = (
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0001"
)
DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
PRIVATE = "\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd"
REPLACEMENT = "\ufffd"

SCRIPTS: dict[str, str] = {
    "Latin": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
    "Armenian": "\u0531-\u058f",
    "Hebrew": "\u05d0-\u05f4\ufb1d-\ufb4f",
    "Arabic": "\u0620-\u065f\u066e-\u06d5\u06fa-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufefc",
    "Indic": "\u0900-\u0dff",
    "Thai": "\u0e01-\u0e5b",
    "Georgian": "\u10a0-\u10ff",
    "Han": "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af",
    "Kana": "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d",
    "Hangul": "\u1100-\u115e\u1161-\u11ff\u3131-\u3163\uac00-\ud7a3",
}
"""Letters of the scripts that are told apart, as the insides of character classes."""

LOOK_ALIKES = dict(
    zip(
        "АВЕКМНОРСТХаеіјорсухѕԁԛԝһӏΑΒΕΖΗΙΚΜΝΟΡΤΥΧοѵ",
        "ABEKMHOPCTXaeijopcyxsdqwhlABEZHIKMNOPTYXov",
        strict=True,
    )
)
"""Cyrillic and Greek letters that look like a Latin one."""

_HIDDEN = re.compile(f"[{ALWAYS_INVISIBLE}{DIRECTIONS}{JOINERS}{SELECTORS}{TAGS}]")
_RIGHT_TO_LEFT = re.compile(f"[{SCRIPTS['Hebrew']}{SCRIPTS['Arabic']}\u0700-\u08ff]")
_JOINED_SCRIPTS = re.compile(
    "[\u0600-\u08ff\u0900-\u0dff\u0f00-\u0fff\u1000-\u109f\u1780-\u18aa\ufb50-\ufdff\ufe70-\ufefc]"
)
_OVERRIDES = "\u202d\u202e"
_BLACK_FLAG = "\U0001f3f4"
_MIXED_WORD = re.compile(
    "(?=[A-Za-z]*[\u0370-\u03ff\u0400-\u052f])(?=[\u0370-\u03ff\u0400-\u052f]*[A-Za-z])[A-Za-z\u0370-\u03ff\u0400-\u052f]{3,}"
)


def hidden_places(text: str) -> Iterator[tuple[int, str]]:
    """Position and character of everything that cannot be seen and has no business where it stands."""
    for match in _HIDDEN.finditer(text):
        if not _belongs(text, match.start(), match[0]):
            yield match.start(), match[0]


def without_hidden(text: str) -> str:
    """The text without what `hidden_places` finds; a line or paragraph separator becomes a line end."""
    if not _HIDDEN.search(text):
        return text
    parts, done = [], 0
    for place, character in hidden_places(text):
        parts += [text[done:place], "\n" if character in "\u2028\u2029" else ""]
        done = place + 1
    return "".join([*parts, text[done:]])


def is_direction(character: str) -> bool:
    """Whether the character steers the direction of text."""
    return (
        character == "\u061c"
        or character in "\u200e\u200f"
        or "\u202a" <= character <= "\u202e"
        or ("\u2066" <= character <= "\u2069")
    )


def character_name(character: str) -> str:
    """'U+200B (zero width space)'."""
    name = unicodedata.name(character, "").lower() or {"\x00": "NUL", "\x1b": "escape"}.get(character, "")
    return f"U+{ord(character):04X}" + (f" ({name})" if name else "")


def forged_words(text: str) -> Iterator[tuple[int, str]]:
    """Position and word of each Latin word in which letters of another script stand for Latin ones they look like.

    A word counts when more than half of it is Latin and every foreign letter in it is a look-alike, or the reverse.
    """
    for match in _MIXED_WORD.finditer(text):
        word = match[0]
        foreign = [c for c in word if not c.isascii()]
        latin = len(word) - len(foreign)
        alike = all(c in LOOK_ALIKES for c in foreign)
        if (latin > len(foreign) and alike) or (latin <= 2 and 3 * latin < len(foreign) and foreign[0] >= "\u0400"):
            yield match.start(), word


def unforged(word: str) -> str:
    """The word with Latin letters in place of their look-alikes."""
    return "".join(LOOK_ALIKES.get(c, c) for c in word)


def _belongs(text: str, place: int, character: str) -> bool:
    """Whether the invisible character does what it is for."""
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if character in JOINERS:
        if _JOINED_SCRIPTS.match(before):
            return True
        return character == "\u200d" and _is_pictorial(before) and _is_pictorial(after)
    if "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef":
        return _is_pictorial(before) or before in "#*0123456789" or unicodedata.category(before or " ") == "Lo"
    if "\U000e0020" <= character <= "\U000e007f":
        return _BLACK_FLAG in text[max(0, place - 7) : place]
    if is_direction(character):
        return character not in _OVERRIDES and bool(_RIGHT_TO_LEFT.search(text, max(0, place - 200), place + 200))
    return False


def _is_pictorial(character: str) -> bool:
    """Whether this is a symbol, a skin tone or a variation selector: a part that emoji are made of."""
    return bool(character) and (unicodedata.category(character) in ("So", "Sk", "Sm", "Po") or character == "\ufe0f")
