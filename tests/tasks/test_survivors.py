"""What must stand in a translation: what is lost is found, and what was only written differently is no loss."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bimo.tasks.numbers import missing_numbers, numbers
from bimo.tasks.survivors import missing, survivors

KEPT = {
    "https://example.org/a_(b)?c=1#d": "link",
    "www.example.org/x": "link",
    "jane.doe+x@mail.example.org": "e-mail address",
    "{name}": "placeholder",
    "{{user.name}}": "placeholder",
    "${HOME}": "placeholder",
    "$(ARG1)": "placeholder",
    "%s": "placeholder",
    "%1$s": "placeholder",
    "%(count)d": "placeholder",
    "%.2f": "placeholder",
    "%PRODUCTNAME": "placeholder",
    "%1": "placeholder",
    "<b>": "tag",
    "</item>": "tag",
    '<a href="x">': "tag",
    "&nbsp;": "entity",
    "&amp;nbsp;": "entity",
    "`ls -l`": "code",
    "\\n": "code",
}


@pytest.mark.parametrize("text", KEPT)
def test_each_kind_is_found_and_missed(text: str) -> None:
    source = f"See {text} now."
    (found,) = survivors(source)
    assert (found.text, found.kind, found.start) == (text, KEPT[text], 4)
    assert not missing(source, f"Jetzt {text} ansehen.")
    assert [lost.text for lost in missing(source, "Jetzt ansehen.")] == [text]


@pytest.mark.parametrize("text", ["100 % sure", "50%die", "5 < 6 and 7 > 2", "R&D; more", "a@b", "100%."])
def test_plain_text_is_no_placeholder(text: str) -> None:
    assert not survivors(text)


def test_a_link_does_not_take_the_sentence_with_it() -> None:
    assert [found.text for found in survivors("(see https://x.org/a). 见https://x.org/b。好")] == [
        "https://x.org/a",
        "https://x.org/b",
    ]


def test_what_stands_twice_must_stand_twice() -> None:
    assert len(missing("{a} and {a}", "{a}")) == 1
    assert not missing("{a} and {a}", "{a} und {a}")


SAME = [
    ("1,000.5", "1.000,5"), ("1,000.5", "1 000,5"), ("1000", "1.000"), ("3.14", "3,14"), ("1,234,567", "1.234.567"),
    ("1'000", "1000"), ("2024-05-01", "1.5.2024"), ("12 files", "zwölf Dateien"), ("2 files", "两个文件"),
    ("20", "二十"),
    ("5 million", "500万"), ("10,000", "1万"), ("3 files", "3 个文件"), ("2.4.52", "2.4.52"), ("10:30", "10h30"),
    ("in 1998", "1998年"), ("٣٤", "34"), ("twice 2", "zweimal 2"), ("三个文件", "the files"), ("2nd", "2."),
]  # fmt: skip


@pytest.mark.parametrize(("source", "answer"), SAME)
def test_numbers_may_change_their_format(source: str, answer: str) -> None:
    assert not missing_numbers(source, answer)


@pytest.mark.parametrize(
    ("source", "answer"), [("1,000.5", "1,005"), ("17", "71"), ("5 and 5", "5"), ("2.5", "25"), ("3 million", "300")]
)
def test_numbers_may_not_change_their_value(source: str, answer: str) -> None:
    assert missing_numbers(source, answer)


def test_digits_inside_links_are_no_numbers() -> None:
    assert not missing("https://x.org/2024 has 3", "https://x.org/2024 hat 3")
    assert [lost.text for lost in missing("https://x.org/2024 has 3", "https://x.org/2024")] == ["3"]


PARTS = st.sampled_from([*KEPT, "12", "3.5", "1,000", "word ", "中文", " ", ". ", ", "])


@given(st.lists(PARTS, max_size=12))
def test_a_text_lacks_nothing_of_itself(parts: list[str]) -> None:
    text = " ".join(parts)
    assert not missing(text, text)


@given(st.lists(st.sampled_from(list(KEPT)), min_size=1, max_size=6, unique=True), st.data())
def test_each_deletion_is_seen(parts: list[str], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(parts))
    answer = " und ".join(part for part in parts if part != gone)
    lost = [found.text for found in missing(" and ".join(parts), answer)]
    assert lost == [gone] or any(gone in part for part in parts if part != gone), "%1 also stands in %1$s"


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_two_texts_can_be_compared(source: str, answer: str) -> None:
    assert all(source[lost.start :].startswith(lost.text) for lost in missing(source, answer))


@pytest.mark.parametrize("text", ["%", "<a", "{", "&a", "$(", "a@", "1.", "1,", "万", "http://", "`", "9", "{{a"])
def test_hostile_texts_take_no_longer_than_others(text: str) -> None:
    started = time.perf_counter()
    survivors(text * 50_000)
    numbers(text * 50_000)
    assert time.perf_counter() - started < 15, "linear: 0.2 s alone"
