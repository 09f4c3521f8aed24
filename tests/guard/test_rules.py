"""Rules of the guard: what they find, what they leave alone, and what becomes of it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from bimo import register
from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES
from bimo.guard import Verdict, made_chain, masked


@pytest.mark.parametrize(
    ("rule", "text", "found"),
    [
        ("length(most=3)", "abcd", ["d"]),
        ("length(most=3)", "abc", []),
        ("hidden_characters", "a\u200bb", ["\u200b"]),
        ("hidden_characters", "a\x1b[31mb", ["\x1b"]),
        ("hidden_characters", "line\n\tline 👩‍👩‍👧 می‌خواهم", []),
        ("forged_words", "pаypal please", ["pаypal"]),
        ("forged_words", "paypal пожалуйста", []),
        ("personal_data", "write to anna.b@posteo.de", ["anna.b@posteo.de"]),
        ("personal_data", "write to me@example.com", []),
        ("personal_data", "key sk-abcDEF1234567890abcdEFGH12", ["sk-abcDEF1234567890abcdEFGH12"]),
    ],
)
def test_rules_find_their_places(rule: str, text: str, found: list[str]) -> None:
    verdicts = made_chain([rule]).check(text, "input")
    assert [text[v.start : v.end] for v in verdicts] == found


def test_what_is_masked_is_gone() -> None:
    text = "I am anna.b@posteo.de, he is carl.d@posteo.de."
    chain = made_chain(['personal_data(action="mask")'])
    assert masked(text, chain.check(text, "output")) == "I am ███, he is ███."
    noted = made_chain(["personal_data"])
    assert masked(text, noted.check(text, "output")) == text, "the control: what is noted stays"


def test_masks_that_overlap_leave_nothing_between() -> None:
    verdicts = [Verdict("a", 1, "mask", 2, 6), Verdict("b", 1, "mask", 4, 8), Verdict("c", 1, "mask", 3, 5)]
    assert masked("0123456789", verdicts) == "01██████89"


def test_a_rule_can_look_at_one_side_only() -> None:
    chain = made_chain(['personal_data(sides="output")'])
    assert not chain.check("anna.b@posteo.de", "input")
    assert chain.check("anna.b@posteo.de", "output")


@pytest.mark.parametrize("text", ["lenght", "length(most=0)", 'personal_data(action="shout")', "length(least=1)"])
def test_rules_that_cannot_be_made_are_refused(text: str) -> None:
    with pytest.raises(UserError):
        made_chain([text])


def test_a_rule_of_ones_own_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRIES["guard"], "registered", {})

    @register("guard", "shouting")
    class Shouting:
        def check(self, text: str, side: str) -> list[Verdict]:
            return [Verdict("shouting", 1.0, "refuse", 0, len(text))] if text.isupper() else []

    assert [v.rule for v in made_chain(["shouting", "length"]).check("HEY", "input")] == ["shouting"]


@pytest.mark.parametrize(
    "unit", ["a@b. 0123 \u200bпa ", "Bearer aaaaaaaaaaaaaaaaaaaaaaaa1 ", "eyJaaaaaaaaaa.", "-----BEGIN "]
)
def test_rules_take_time_in_proportion_to_the_text(unit: str) -> None:
    chain = made_chain(["length", "hidden_characters", "forged_words", "personal_data"])
    times = []
    for size in (20_000, 160_000):
        text = unit * (size // len(unit))
        began = time.process_time()
        chain.check(text, "input")
        times.append(time.process_time() - began)
    assert times[1] < 24 * times[0] + 0.1, "8 times the text, not 64 times the time"


def test_long_texts_are_searched_in_portions_and_nothing_is_lost_between() -> None:
    mail = "anna.b@posteo.de"
    for place in (0, 49_990, 49_999, 50_000, 50_001, 99_995, 149_900):
        text = "x " * 75_000
        text = text[:place] + f" {mail} " + text[place:]
        (verdict,) = made_chain(["personal_data"]).check(text, "input")
        assert text[verdict.start : verdict.end] == mail


def test_a_text_full_of_secrets_is_not_searched_to_its_end_and_still_masked() -> None:
    text = "Bearer aaaaaaaaaaaaaaaaaaaaaaaa1 " * 6000 + "anna.b@posteo.de"
    verdicts = made_chain(['personal_data(action="mask")']).check(text, "output")
    assert verdicts[-1].rule == "personal_data/too many"
    assert verdicts[-1].end == len(text)
    assert "posteo" not in masked(text, verdicts)


def test_after_a_refusal_no_other_rule_is_asked() -> None:
    chain = made_chain(["length(most=5)", "personal_data"])
    assert [v.rule for v in chain.check("anna.b@posteo.de", "input")] == ["length"]
    assert len(made_chain(["length", "personal_data"]).check("anna.b@posteo.de", "input")) == 1, "the control"


def test_the_guard_needs_no_torch() -> None:
    code = "import sys, bimo.guard, bimo.guard.rules; assert 'torch' not in sys.modules, 'torch was loaded'"
    subprocess.run([sys.executable, "-c", code], check=True)
