"""Summaries: one request where the document fits, else part by part, with every part accounted for."""

from __future__ import annotations

import random

import pytest
from applying.conftest import sentence

from bimo import LM, UserError, summarize
from bimo.applying import Notice, Summarized
from bimo.applying.summarizing import Summarizer, SummarySettings
from bimo.applying.working import Work
from bimo.engine.answers import Choice, Completion


def told(work: Work[Summarized], say: object, limit: int = 200) -> tuple[Summarized, list[int]]:
    """Drive a work by hand: `say` makes an answer of the number of a request; the sizes of the rounds."""
    rounds, number = [], 0
    asks = next(work)
    for _ in range(limit):
        rounds.append(len(asks))
        answers = [Completion((Choice(say(number + n), (), "end"),)) for n in range(len(asks))]  # type: ignore[operator]
        number += len(asks)
        try:
            asks = work.send(answers)
        except StopIteration as end:
            return end.value, rounds
    raise AssertionError("it never ends")


def quiet(notice: Notice) -> None:
    """Whoever does not want to hear it."""


def test_a_document_that_fits_is_one_request(toy: LM) -> None:
    found = summarize(toy, "The cat eats. The dog sees the tree.", report=True)
    assert (found.levels, len(found.parts)) == (0, 1)
    assert found.text


def test_every_part_of_a_long_document_goes_in(toy: LM) -> None:
    rng = random.Random(2)
    text = "\n".join(" ".join(sentence(rng) for _ in range(4)) for _ in range(12))
    found = summarize(toy, text, report=True)
    assert found.levels >= 1
    assert "".join(text[part.start : part.end] for part in found.parts) == text, "without gaps"
    assert [part.line for part in found.parts] == [text.count("\n", 0, part.start) + 1 for part in found.parts]
    assert all(part.summary for part in found.parts)


def test_a_part_that_the_model_says_nothing_about_is_named(toy: LM) -> None:
    rng = random.Random(3)
    text = "\n".join(sentence(rng) for _ in range(40))
    work = Summarizer(toy).work(text)
    found, rounds = told(work, lambda number: "" if number == 1 else "The cat.")
    assert len(found.parts) == rounds[0]
    assert found.parts[1].summary == ""
    assert f"part 2 of {rounds[0]} has no summary" in found.warnings[0].what
    assert found.warnings[0].line == found.parts[1].line


def test_it_ends_even_when_summaries_are_long(toy: LM) -> None:
    summarizer = Summarizer(toy)
    most = max(1, min(summarizer.max_tokens, summarizer.most // 3))
    longest = toy.tokenizer.decode(toy.tokenizer.encode("The small house and the big tree. " * 20)[:most])
    rng = random.Random(4)
    found, rounds = told(summarizer.work("\n".join(sentence(rng) for _ in range(300))), lambda number: longest)
    assert rounds == sorted(rounds, reverse=True)
    assert rounds[-1] == 1
    assert found.levels == len(rounds) - 1


def test_a_number_that_the_document_does_not_have_is_said(toy: LM) -> None:
    found, _ = told(Summarizer(toy).work("The 12 cats."), lambda number: "17 cats.")
    assert "the number '17' does not stand in the document" in found.warnings[0].what
    found, _ = told(Summarizer(toy).work("The 12 cats."), lambda number: "Twelve cats: 12.")
    assert not found.warnings, "the control"


def test_shapes_in_are_shapes_out(toy: LM) -> None:
    texts = ["The cat eats. The dog.", "The old tree. The cat."]
    alone = [summarize(toy, text, on_warning=quiet) for text in texts]
    assert summarize(toy, texts, on_warning=quiet) == alone
    assert list(summarize(toy, iter(texts), on_warning=quiet)) == alone


def test_twenty_thousand_chinese_characters_are_covered(toy: LM) -> None:
    text = "一只猫坐在垫子上" * 2500
    found, _ = told(Summarizer(toy).work(text), lambda number: "猫。")
    assert "".join(text[part.start : part.end] for part in found.parts) == text
    assert any("inside a sentence" in notice.what for notice in found.warnings)


def test_a_context_without_room_is_an_error_for_people(toy: LM) -> None:
    with pytest.raises(UserError, match="no room for a document and its summary"):
        Summarizer(toy, SummarySettings(max_tokens=90))
