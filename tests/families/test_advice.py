"""The advice says what scores, intervals and p-values show, and no more."""

from __future__ import annotations

import math

import pytest

from bimo.evaluation.significance import Difference, Value
from bimo.families.advice import Findings, Pair, advice, corrected


def apart(value: float, half: float, p: float) -> Difference:
    return Difference(value, value - half, value + half, p, value > 0)


def findings(
    scores: dict[str, float], pairs: list[tuple[str, str, Difference]], floors: list[tuple[str, str, Difference]]
) -> Findings:
    values = {name: Value(score, score - 1, score + 1) for name, score in scores.items()}
    return Findings("chrF", True, values, corrected(pairs), [Pair(*floor, floor[2].p) for floor in floors])


WIN, TIE = apart(3.1, 1.0, 0.002), apart(0.4, 1.5, 0.4)


def test_a_clear_leader_is_named_with_its_lead_and_taken() -> None:
    floor = [("encoder-decoder", "copy", apart(9, 1, 0.001))]
    said = advice(
        findings({"GPT": 30.0, "encoder-decoder": 33.1}, [("GPT", "encoder-decoder", apart(-3.1, 1, 0.002))], floor)
    )
    assert "the encoder-decoder leads in chrF, 3.10 ahead of the GPT (95 %: 2.10 to 4.10, p = 0.002)" in said
    assert "take the encoder-decoder, unless one model" in said


def test_without_a_shown_difference_no_leader_is_named_and_the_gpt_is_taken() -> None:
    floor = [("encoder-decoder", "copy", apart(9, 1, 0.001))]
    said = advice(
        findings({"GPT": 30.0, "encoder-decoder": 30.4}, [("GPT", "encoder-decoder", apart(-0.4, 1.5, 0.4))], floor)
    )
    assert "no difference in chrF is shown" in said
    assert "leads" not in said
    assert "take the GPT, for no other one is shown to be better" in said


@pytest.mark.parametrize(
    ("difference", "word"), [(apart(3.1, 3.2, 0.001), "interval holds 0"), (apart(3.1, 1.0, 0.06), "p is too large")]
)
def test_interval_and_p_must_agree_before_anybody_leads(difference: Difference, word: str) -> None:
    said = advice(findings({"GPT": 33.1, "encoder-decoder": 30.0}, [("GPT", "encoder-decoder", difference)], []))
    assert "no difference" in said, word


def test_a_floor_that_is_ahead_forbids_to_take_any() -> None:
    floors = [("GPT", "copy", apart(-5, 1, 0.001)), ("GPT", "nearest", apart(-2, 1, 0.001))]
    said = advice(findings({"GPT": 33.1, "encoder-decoder": 30.0}, [("GPT", "encoder-decoder", WIN)], floors))
    assert "but copy and nearest do better without learning a model, so take none" in said
    assert "take the" not in said


def test_a_floor_that_is_not_beaten_leaves_the_choice_open() -> None:
    said = advice(
        findings({"GPT": 33.1, "encoder-decoder": 30.0}, [("GPT", "encoder-decoder", WIN)], [("GPT", "copy", TIE)])
    )
    assert "it is not shown to beat copy, so the choice is open" in said
    assert "take the" not in said


def test_only_the_floors_of_the_leader_count() -> None:
    floors = [("encoder-decoder", "copy", apart(-5, 1, 0.001)), ("GPT", "copy", apart(5, 1, 0.001))]
    said = advice(findings({"GPT": 33.1, "encoder-decoder": 30.0}, [("GPT", "encoder-decoder", WIN)], floors))
    assert said.endswith("take the GPT.")


def test_of_three_the_two_that_are_level_are_named_apart_from_the_one_behind() -> None:
    pairs = [
        ("GPT", "encoder-decoder", apart(3, 1, 0.001)),
        ("GPT", "encoder", apart(-0.4, 1.5, 0.4)),
        ("encoder-decoder", "encoder", apart(-3.4, 1, 0.001)),
    ]
    said = advice(findings({"GPT": 90.0, "encoder-decoder": 87.0, "encoder": 90.4}, pairs, []))
    assert "shown between the encoder and the GPT" in said
    assert "the encoder is 3.40 ahead of the encoder-decoder" in said
    assert "take the GPT" in said


def test_many_pairs_need_a_smaller_p() -> None:
    alone = corrected([("a", "b", apart(1, 0.5, 0.03))])
    three = corrected(
        [("a", "b", apart(1, 0.5, 0.03)), ("a", "c", apart(1, 0.5, 0.02)), ("b", "c", apart(1, 0.5, 0.9))]
    )
    assert alone[0].shown
    assert not three[0].shown, "one of three pairs below 0.05 is no wonder"
    assert [pair.p for pair in three] == pytest.approx([0.06, 0.06, 0.9]), "Holm, never falling"


def test_a_score_that_cannot_be_computed_gives_no_advice() -> None:
    said = advice(findings({"GPT": math.nan, "encoder-decoder": 30.0}, [], []))
    assert "nothing can be advised" in said


def test_where_less_is_better_the_lower_score_leads() -> None:
    values = {"GPT": Value(2.0, 1.5, 2.5), "encoder": Value(5.0, 4.5, 5.5)}
    lower = Difference(-3.0, -3.5, -2.5, 0.001, better=True)
    said = advice(Findings("errors", False, values, corrected([("GPT", "encoder", lower)]), []))
    assert "the GPT leads in errors, 3.00 ahead of the encoder" in said
