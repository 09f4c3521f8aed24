"""Text is cut into documents at the right places, however long it is and however it arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bimo.data.cutting import LONGEST, LONGEST_LINE, Rule, cut, lines
from bimo.data.documents import UnreadableError

RULES: list[Rule] = ["file", "blank_line", "line"]

messy = st.text(st.sampled_from("ab \t\n\n\u3000"), max_size=60)


def blocks_of(text: str, sizes: list[int]) -> list[str]:
    blocks = []
    for size in sizes:
        blocks.append(text[:size])
        text = text[size:]
    return [*blocks, text]


@pytest.mark.parametrize("rule", RULES)
@given(text=messy, sizes=st.lists(st.integers(0, 9), max_size=20))
def test_how_the_text_arrives_changes_nothing(rule: Rule, text: str, sizes: list[int]) -> None:
    assert list(cut(blocks_of(text, sizes), rule)) == list(cut([text], rule))


@pytest.mark.parametrize("rule", RULES)
@given(text=messy)
def test_no_text_is_lost_and_every_row_is_right(rule: Rule, text: str) -> None:
    rows = text.split("\n")
    found = list(cut([text], rule))
    assert "".join("".join(piece.split()) for _, piece in found) == "".join(text.split())
    for row, piece in found:
        assert rows[row - 1].startswith(piece.split("\n")[0]), f"line {row} does not begin with the document"


@given(st.lists(messy.map(str.split).map("\n".join).filter(bool), max_size=8), st.sampled_from(["\n\n", "\n \t\n\n"]))
def test_documents_end_at_blank_lines(documents: list[str], gap: str) -> None:
    assert [text for _, text in cut([gap.join(documents)], "blank_line")] == documents


@pytest.mark.parametrize("rule", RULES)
def test_an_endless_line_is_cut_at_a_space_or_anywhere(rule: Rule) -> None:
    longest = LONGEST[rule]
    solid = [text for _, text in cut(["笔" * 300_000] * 12, rule)]
    assert "".join(solid) == "笔" * 3_600_000
    assert max(map(len, solid)) == longest
    spaced = [text for _, text in cut(["word " * 200_000] * 4, rule)]
    assert " ".join(spaced) == ("word " * 800_000).strip(), "no word is cut in two"


@pytest.mark.parametrize("rule", ["file", "blank_line"])
def test_a_long_document_is_cut_at_a_line_end(rule: Rule) -> None:
    text = "".join(f"line {n}\n" for n in range(400_000))
    pieces = list(cut([text], rule))
    assert len(pieces) > 1
    assert "\n".join(piece for _, piece in pieces) == text.rstrip()
    assert all(piece.startswith(f"line {row - 1}") for row, piece in pieces)


def test_a_long_file_is_cut_at_a_blank_line_where_it_can() -> None:
    text = ("a line\n" * 7 + "\n") * 30_000
    pieces = [piece for _, piece in cut([text], "file")]
    assert len(pieces) == 2
    assert "\n\n".join(pieces) == text.rstrip()


@given(text=messy, sizes=st.lists(st.integers(0, 9), max_size=20))
def test_lines_joined_are_the_text(text: str, sizes: list[int]) -> None:
    found = list(lines(blocks_of(text, sizes)))
    assert "".join(found) == text
    assert all(line.index("\n") == len(line) - 1 for line in found[:-1])


def test_a_line_that_cannot_be_a_row_is_refused_with_its_number() -> None:
    with pytest.raises(UnreadableError) as error:
        list(lines(["one\ntwo", *["x" * 1_000_000] * (LONGEST_LINE // 1_000_000 + 1)]))
    assert error.value.row == 2
