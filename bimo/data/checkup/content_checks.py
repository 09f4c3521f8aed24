"""Checks of what a text says: mark-up, escapes and tokens left in it, data that is no language, loops, placeholders."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from bimo.data.checkup.character_checks import Spot
from bimo.data.checkup.characters import Block, marked
from bimo.data.checkup.kinds import excerpt

LONGEST_LINE = 20_000  # characters
_TAGS = (
    "a|b|body|br|button|center|div|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input|li|link|meta|nav|ol|p|pre|script"
    "|section|span|strong|style|sub|sup|table|tbody|td|th|thead|tr|u|ul"
)
# Each begins with one literal character, see `_matches`.
_TAG = re.compile(rf"<(?:/(?:{_TAGS})>|(?:{_TAGS})(?:\s+[\w-]+\s*=\s*[\"'][^<>]{{0,300}}|\s*/)>)", re.IGNORECASE)
_ENTITY = re.compile(
    r"&(?:amp|lt|gt|quot|apos|nbsp|copy|reg|[lr][ads]quo|[mn]dash|hellip|szlig|#\d{2,6}|#[xX][0-9a-fA-F]{2,5}"
    r"|[A-Za-z](?:acute|grave|circ|uml|tilde|cedil|ring));"
)
_CHAT_TOKEN = re.compile(
    r"<(?:\|(?:im_\w+|end\w*|eot\w*|eom_id|begin\w*|start\w*|fim_\w+|tool\w*|pad|bos|eos|system|user|assistant|python_tag)\|>"
    r"|<?/?SYS>>|(?:start|end)_of_turn>|｜[^<>｜]{2,30}｜>)"
)
_INSTRUCTION_TOKEN = re.compile(r"\[/?INST\]")
_PERCENT = re.compile(r"%[0-9A-F]{2}(?:%[0-9A-F]{2}){5,}")
_QUOTED = re.compile(r"=[0-9A-F]{2}(?:=[0-9A-F]{2}){3,}")
_FORM = re.compile(r"\[(?:insert|your|add your) [\w ]{2,30}\]", re.IGNORECASE)
_ESCAPES = re.compile(r"\\n\\n|\\u[0-9a-f]{4}|\\n.{20,}?\\n", re.DOTALL)
_BLOB = re.compile(r"[A-Za-z0-9+/_=-]{100,}|(?:[0-9a-fA-F]{2}[ :]){60,}")
_WRAPPED_BLOB = re.compile(r"(?:^[A-Za-z0-9+/]{60,76}\n){4,}", re.MULTILINE)
_APART = re.compile(r"(?:[^\W\d_] {1,3}){8,}")
_QUESTIONS = re.compile(r"\?{2,}(?:[ ,.;:!-]+\?{2,}){2,}|(?<!\?)\?{8,}")
_PLACEHOLDERS = frozenset(
    "n/a N/A null NULL None none nan NaN undefined TODO todo TBD tbd FIXME [deleted] [removed] #REF! #N/A #VALUE! "  # noqa: SIM905
    "xxx XXX asdf test [text] 待补充 暂无 待定".split()
)
_RULES = frozenset(" \t\n-=*_.#~─═━│…·—><|+.。!?！？~～^/\\0:,")
_CODE = re.compile(r"[{}();=&!<>\[\]]")


def content_spots(block: Block) -> Iterator[Spot]:
    """Everything that is wrong with what the documents of a block say; each kind once in a document."""
    yield from _left_over(block)
    yield from _mark_up(block, "html", _TAG, "the tag {} stands in the text")
    yield from _mark_up(block, "entity", _ENTITY, "the entity {} stands in the text")
    yield from _placeholders(block)
    yield from _escapes(block)
    yield from _lost_letters(block)
    yield from _long_words(block)
    yield from _long_lines(block)
    yield from _runs(block)
    yield from _letters_apart(block)
    for document in np.flatnonzero(block.lengths >= 60).tolist():
        text = block.texts[document]
        if len(text) >= 160 and (loop := _loop(text)):
            yield "repetition", document, *loop
        if not any(map(str.isalpha, text[:60])) and not any(map(str.isalpha, text)):
            yield "no words", document, 0, f"a text of {len(text):,} characters without a letter"


_LEFT_OVER = (
    ("control token", _CHAT_TOKEN, "{} is a control token of chat models"),
    ("escapes", _PERCENT, "{} is percent-encoded"),
    ("escapes", _QUOTED, "{} is quoted-printable"),
    ("placeholder", _FORM, "{} is a placeholder"),
    ("control token", _INSTRUCTION_TOKEN, "{} is a control token of chat models"),
)


def _left_over(block: Block) -> Iterator[Spot]:
    """The first match of each pattern in each document."""
    for kind, pattern, what in _LEFT_OVER:
        before = -1
        for match in _matches(block.joined, pattern):
            document = block.document_at(match.start())
            if document != before:
                before = document
                shown = match[0] if len(match[0]) < 50 else f"{match[0][:45]}…"
                yield kind, document, match.start() - int(block.starts[document]), what.format(shown)


def _matches(text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """Matches of a pattern that begins with one literal character: found by that, ten times as fast."""
    first = pattern.pattern.lstrip("\\")[0]
    place = text.find(first)
    while place >= 0:
        match = pattern.match(text, place)
        if match:
            yield match
        place = text.find(first, place + 1)


def _mark_up(block: Block, kind: str, pattern: re.Pattern[str], what: str) -> Iterator[Spot]:
    """What is left of HTML; where it stands alone, and in no word, the text may be about it."""
    found: dict[int, list[re.Match[str]]] = {}
    for match in _matches(block.joined, pattern):
        found.setdefault(block.document_at(match.start()), []).append(match)
    for document, matches in found.items():
        first = matches[0]
        shown = first[0] if len(first[0]) < 50 else f"{first[0][:45]}…"
        in_word = kind == "entity" and block.joined[first.start() - 1 : first.start()].isalpha()
        name = kind if len(matches) > 1 or in_word else f"{kind} mention"
        more = f", and {len(matches) - 1} more in it" if len(matches) > 1 else ""
        yield name, document, first.start() - int(block.starts[document]), what.format(shown) + more


def _placeholders(block: Block) -> Iterator[Spot]:
    for document in np.flatnonzero(block.lengths < 12).tolist():
        text = block.texts[document].strip()
        if text in _PLACEHOLDERS and len(block.texts) > 1:
            yield "placeholder", document, 0, f"the whole text is {text!r}"
    for place in marked(block.joined, ("orem ipsum dolor", "OREM IPSUM DOLOR")):
        document = block.document_at(place)
        yield "placeholder", document, place - int(block.starts[document]), "'lorem ipsum' is a placeholder"


def _escapes(block: Block) -> Iterator[Spot]:
    if "\\" not in block.joined:
        return
    for document, text in enumerate(block.texts):
        if "\\" in text and "\n" not in text and len(text) > 60:
            found = _ESCAPES.findall(text)
            match = _ESCAPES.search(text)
            if match and len(found) + text.count("\\n") >= 3:
                yield (
                    "escapes",
                    document,
                    match.start(),
                    f"escapes stand for characters in {excerpt(text, match.start())}",
                )


def _lost_letters(block: Block) -> Iterator[Spot]:
    if "??" not in block.joined:
        return
    for document, text in enumerate(block.texts):
        if "??" in text and 10 * text.count("?") > len(text) and (match := _QUESTIONS.search(text)):
            what = f"question marks stand where letters were: {excerpt(text, match.start())}"
            yield "lost characters", document, match.start(), what


def _long_words(block: Block) -> Iterator[Spot]:
    """Encoded data: a hundred characters of the alphabets of Base64 and hexadecimal numbers without a space."""
    before = -1
    for gap in np.flatnonzero(block.word_lengths >= 100).tolist():
        start, end = int(block.breaks[gap]) + 1, int(block.breaks[gap + 1])
        for match in _BLOB.finditer(block.joined, start, end):
            document = block.document_at(match.start())
            if document != before and _is_encoded(match[0]):
                before = document
                place = match.start() - int(block.starts[document])
                yield "encoded data", document, place, f"{len(match[0]):,} characters of encoded data: {match[0][:24]}…"
    for match in _WRAPPED_BLOB.finditer(block.joined) if len(_wide_lines(block)) else ():
        document = block.document_at(match.start())
        if _is_encoded(match[0]):
            what = f"{match[0].count(chr(10))} lines of encoded data: {match[0][:24]}…"
            yield "encoded data", document, match.start() - int(block.starts[document]), what


def _wide_lines(block: Block) -> list[int]:
    """Lines of 60 to 76 characters without a space; only where there are some can Base64 in lines be."""
    wide = (block.word_lengths >= 60) & (block.word_lengths <= 76)
    return np.flatnonzero(wide[:-2] & wide[1:-1] & wide[2:]).tolist()


def _is_encoded(word: str) -> bool:
    """Whether a long word is data: digits and letters well mixed, and not one character for ever."""
    digits, varied = sum(c.isdigit() for c in word), len(set(word))
    return (
        varied > 9 and digits > 0.04 * len(word) and word.count("_") + word.count("-") + word.count("=") < len(word) / 8
    )


def _long_lines(block: Block) -> Iterator[Spot]:
    ends = np.concatenate(([-1], np.flatnonzero(block.codes == 10), [len(block.codes)]))
    for line in np.flatnonzero(np.diff(ends) > 1000).tolist():
        start, end = int(ends[line]) + 1, int(ends[line + 1])
        text = block.joined[start : min(end, start + 1000)]
        document = block.document_at(start)
        place = start - int(block.starts[document])
        if text.count(" ") < 0.08 * len(text) and len(_CODE.findall(text)) > 0.1 * len(text):
            what = f"a line of {end - start:,} characters of minified code: {excerpt(text, 0, 24, 0)}"
            yield "minified code", document, place, what
        elif end - start > LONGEST_LINE:
            yield "long line", document, place, f"a line of {end - start:,} characters"


def _runs(block: Block) -> Iterator[Spot]:
    """One character many times over: looked for at every 16th place, so that 64 of them are never missed."""
    sample = block.codes[::16]
    same = (sample[:-3] == sample[1:-2]) & (sample[1:-2] == sample[2:-1]) & (sample[2:-1] == sample[3:])
    before = -1
    for place in (np.flatnonzero(same) * 16).tolist():
        character = block.joined[place]
        least = 180 if character in _RULES else 49  # a rule across a page is no fault
        if character.isspace() or block.joined[place : place + least] != character * least:
            continue
        document = block.document_at(place)
        if document != before:
            before = document
            yield (
                "repetition",
                document,
                place - int(block.starts[document]),
                f"{character!r} stands many times in a row",
            )


def _letters_apart(block: Block) -> Iterator[Spot]:
    """Words that are spelt with a space behind each letter: eight words of one letter in a row."""
    if 3 * len(block.breaks) > len(block.codes) + 300:  # not in Latin letters
        return
    single = np.concatenate(([0], np.cumsum(block.word_lengths == 1)))
    rows = np.flatnonzero(single[12:] - single[:-12] >= 8)  # two spaces between words give a word of none
    for document in block.documents_at(block.breaks[rows] + 1):
        match = _APART.search(block.texts[document])
        if match:
            yield "letters apart", document, match.start(), f"letters stand apart: {match[0]}"


def _loop(text: str) -> tuple[int, str] | None:
    """A phrase that follows itself six times or more: probes of the text, each compared with where it comes again."""
    probe = 24 if text[:64].isascii() else 8
    for start in range(0, len(text) - probe, max(probe, len(text) // 8)):
        phrase = text[start : start + probe]
        period = text.find(phrase, start + 1, start + 1000) - start
        if period < 0:
            continue
        length = max(5 * period, 80)
        again = text[start + period : start + period + length]
        is_loop = len(again) == length and text[start : start + length] == again
        if is_loop and 2 * sum(map(str.isalpha, phrase)) >= probe:
            unit = max(text[start : start + 2 * period].split("\n"), key=len)[:period]
            return start, f"{excerpt(unit, 0, min(len(unit), 40), 0)} stands many times in a row"
    return None
