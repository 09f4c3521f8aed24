"""Documents in sentences, paragraphs, portions and layout: nothing is lost, and cuts lie where a reader makes them."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bimo import Tokenizer
from bimo.tasks.layout import columns, layout, unwrapped, wrapped
from bimo.tasks.portions import portions
from bimo.tasks.sentences import paragraphs, sentences

PIECES = [
    *(
        "Dr. ",
        "3.14 ",
        "z. B. ",
        "e.g. ",
        "He left. ",
        "“No!” ",
        "。",
        "！？」",
        "中文",
        "かな",
        "...",
        "\n",
        "\n\n",
        " ",
    ),
    *("\t", "- ", "1. ", "# ", "```\n", "a@b.c", "नमस्ते। ", "؟ ", "ab", "é", "👩‍👩‍👧", "\r\n", "\u2028", "(x) ", "；"),
    *("word, ", "> ", "Ä"),
]
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), st.text(max_size=200))


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_joined_parts_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text
    assert "".join(paragraphs(text)) == text
    parts = layout(text)
    assert "".join(part.text for part in parts) == text
    starts = [part.start for part in parts]
    assert all(text[part.start :].startswith(part.text) for part in parts), starts


@given(TEXTS, st.integers(4, 40))
@settings(max_examples=200, deadline=None)
def test_portions_are_the_text_and_none_is_too_large(tokenizer: Tokenizer, text: str, most: int) -> None:
    found = portions(text, most, lambda part: len(tokenizer.encode(part)))
    assert "".join(portion.text for portion in found) == text
    sizes = [len(tokenizer.encode(portion.text)) for portion in found]
    assert all(size <= most for size in sizes), sizes
    assert all(text[portion.start :].startswith(portion.text) for portion in found)


SENTENCES = {
    "en": ["Dr. Smith paid 3.50 USD. ", "He left, e.g. early. ", "“Why?” he asked. ", "See www.x.org. ", "OK?"],
    "de": ["Am 3. Oktober 1990 war z. B. Herr Dr. Müller da. ", "Er kam usw. ", "Danach ging er. ", "Siehe Abb. 3."],
    "fr": ["M. Dupont est là. ", "« Oui ! » dit-il. ", "Voir p. ex. la fig. 2."],
    "es": ["¿Qué pasa? ", "¡Nada! ", "El Sr. Pérez llegó."],
    "ru": ["Он, т.е. Иван, ушёл в 1990 г. и вернулся. ", "Да. ", "Нет!"],
    "pl": ["Dnia 3. maja 1791 r. uchwalono np. konstytucję. ", "Tak."],
    "zh": ["他说：“你好。”", "你是谁？！", "好吧!", "价格是3.5元。", "完"],
    "ja": ["今日は。", "元気ですか？", "はい"],
    "hi": ["नमस्ते। ", "आप कैसे हैं? ", "ठीक।"],
    "ar": ["كيف حالك؟ ", "بخير."],
    "initials": ["J. S. Bach wrote it. ", "I am. "],
    "numbers": ["1. Open it. ", "2. Close it. ", "It was 5. ", "Version 2.0 is out... and so on."],
    "wrapped": ["One line\nand the next one. ", "End.\n", "New"],
    "blank": ["No full stop\n\n", "Next"],
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_end_where_a_reader_ends_them(name: str) -> None:
    parts = SENTENCES[name]
    assert sentences("".join(parts)) == parts


def test_paragraphs_end_at_blank_lines() -> None:
    assert paragraphs("a\nb\n\n \nc\n\nd") == ["a\nb\n\n \n", "c\n\n", "d"]


def test_a_portion_says_what_its_end_cuts_through() -> None:
    def cuts(text: str, most: int) -> list[str]:
        return [portion.cut for portion in portions(text, most, len)]

    assert cuts("One. Two. Three.", 10) == ["", ""], "at sentences"
    assert cuts("one two, three four. End.", 14) == ["clause", "", ""], "at a comma"
    assert cuts("one two three four five", 14) == ["word", ""], "between words"
    assert cuts("a" * 25, 10) == ["character", "character", ""], "inside a word"


def test_no_character_is_cut_that_a_reader_sees_as_one() -> None:
    family = "👩‍👩‍👧"
    found = portions(family * 5, 2 * len(family), len)
    assert [portion.text for portion in found] == [family * 2, family * 2, family]


def test_twenty_thousand_chinese_characters_without_a_full_stop_are_cut(tokenizer: Tokenizer) -> None:
    text = "一只猫坐在垫子上" * 2500
    started = time.perf_counter()
    found = portions(text, 100, lambda part: len(tokenizer.encode(part)))
    assert time.perf_counter() - started < 20
    assert "".join(portion.text for portion in found) == text
    assert {portion.cut for portion in found[:-1]} == {"character"}, "it is told"


DOCUMENT = """# Title

This is a paragraph that an editor wrapped at some sixty columns
because its one long line did not fit the window that it had,
as you can see.

- one item that is long enough to be wrapped, as it is indeed,
  and goes on here
- [ ] two
12) twelve

```
code, not text
```
Roses are red,
Violets are blue.
-----
"""


def test_layout_is_told_from_what_is_said() -> None:
    said = [part.said for part in layout(DOCUMENT) if part.spoken]
    assert said[0] == "Title"
    assert said[1].endswith("did not fit the window that it had, as you can see.")
    assert said[2].endswith("as it is indeed, and goes on here")
    assert said[3:] == ["two", "twelve", "Roses are red,", "Violets are blue."], "short lines are meant"


def test_wrapped_lines_come_back_with_their_indent() -> None:
    part = next(part for part in layout(DOCUMENT) if part.said.startswith("one item"))
    again = wrapped(part.said, part.width, part.indent)
    assert again == part.text, "nothing has changed"
    assert max(map(columns, again.split("\n"))) <= part.width


def test_chinese_lines_join_without_a_space() -> None:
    assert unwrapped("你好\n世界\nab\ncd") == "你好世界 ab cd"


LONG = 100_000
ENDLESS = {
    name: text * (LONG // len(text)) for name, text in (
        ("dots", "."), ("spaces", " "), ("sentences", "A. "), ("wide", "。"), ("marks", "- "), ("lines", "a\n"),
        ("brackets", ")"), ("letters", "x"), ("blank lines", "\n "), ("questions", "!?"),
    )
}  # fmt: skip


@pytest.mark.parametrize("cut", [sentences, paragraphs, layout], ids=lambda cut: cut.__name__)
@pytest.mark.parametrize("name", ENDLESS)
def test_hostile_texts_take_no_longer_than_others(cut: Callable[[str], object], name: str) -> None:
    started = time.perf_counter()
    cut(ENDLESS[name] + "x")
    assert time.perf_counter() - started < 10, "linear: 0.1 s alone"
