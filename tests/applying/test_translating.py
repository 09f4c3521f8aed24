"""Translation: layout is kept, what must survive is checked, tried again and forced, and the rest is reported."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from applying.conftest import german, sentence
from hypothesis import given, settings
from hypothesis import strategies as st

from bimo import LM, UserError, translate
from bimo.applying import Notice, Translated
from bimo.applying.checking import faults, forced_form
from bimo.applying.pieces import planned
from bimo.applying.translating import TranslationSettings, Translator
from bimo.applying.working import Ask
from bimo.core.errors import require
from bimo.engine.answers import Choice, Completion
from bimo.engine.constraints import Forms
from bimo.tasks.glossary import read_glossary
from bimo.tasks.translation import translation_request

DOCUMENT = """# The old cat.

The dog sees the red tree. The cat eats.

- The small house.
  2) The big tree.

12 %
```
code stays
```
"""


def quiet(notice: Notice) -> None:
    """Whoever does not want to hear it."""


def test_the_toy_translates(toy: LM) -> None:
    rng = random.Random(1)
    texts = [sentence(rng) for _ in range(40)]
    found = translate(toy, texts, "de", retries=0, on_warning=quiet)
    right = sum(answer == german(text) for answer, text in zip(found, texts, strict=True))
    assert right >= 32, "or the other tests say nothing"


def test_a_document_keeps_its_layout(toy: LM) -> None:
    found = translate(toy, DOCUMENT, "German", report=True, retries=0)
    assert isinstance(found, Translated)
    assert [len(line) > 0 for line in found.text.split("\n")] == [len(line) > 0 for line in DOCUMENT.split("\n")]
    assert found.text.startswith("# ")
    assert "\n- " in found.text
    assert "\n  2) " in found.text
    assert found.text.endswith("12 %\n```\ncode stays\n```\n"), "what says nothing stays"
    assert [piece.line for piece in found.pieces] == [1, 3, 3, 5, 6, 8]
    assert found.pieces[-1].attempts == 0, "a number needs no model"


def test_shapes_in_are_shapes_out(toy: LM) -> None:
    texts = ["The old dog.", "The red tree.", "The cat eats."]
    alone = [translate(toy, text, "de", on_warning=quiet) for text in texts]
    assert translate(toy, texts, "de", on_warning=quiet) == alone
    stream = translate(toy, (text for text in texts), "de", on_warning=quiet)
    assert isinstance(stream, Iterator)
    assert list(stream) == alone, "in order, many at once, and the same as each alone"


@given(
    st.lists(
        st.sampled_from(["A b. ", "中文。", "- ", "\n", "\n\n", " ", "12", "x, y", "“Q?” ", "> ", "\t", "a\r\n"]),
        max_size=30,
    )
)
@settings(max_examples=150, deadline=None)
def test_a_document_whose_pieces_stay_is_itself(parts: list[str]) -> None:
    text = "".join(parts)
    for per_piece in (0, 20):
        plan = planned(text, 40, per_piece, len)
        again = plan.whole([piece.text for piece in plan.pieces], "")
        if "中文" not in text:  # between sentences without spaces, one may be set
            assert again == text


def test_spaces_between_sentences_are_those_of_the_language() -> None:
    plan = planned("你好。再见。\n", 100, 0, len)
    assert plan.whole(["Hello.", "Bye."], "en") == "Hello. Bye.\n"
    plan = planned("Hello. Bye.\n", 100, 0, len)
    assert plan.whole(["你好。", "再见。"], "zh") == "你好。再见。\n"


def test_wrapped_paragraphs_are_translated_whole_and_wrapped_again() -> None:
    line = "The cat sees the dog and the dog sees the old cat and they"
    plan = planned(f"{line}\n{line}\nsee it.\n", 1000, 0, len)
    (piece,) = plan.pieces
    assert "\n" not in piece.text
    again = plan.whole([piece.text], "de")
    assert again == f"{line}\n{line}\nsee it.\n"


def answered(work: object, *answers: str) -> object:
    """Drive a work by hand: each answer is what the model says the next time."""
    try:
        next(work)  # type: ignore[call-overload]
        for answer in answers:
            work.send([Completion((Choice(answer, (), "end"),))])  # type: ignore[attr-defined]
    except StopIteration as end:
        return end.value
    raise AssertionError("it asks for more")


def test_a_good_answer_is_taken_at_once_and_a_bad_one_is_tried_again(toy: LM) -> None:
    translator = Translator(toy, "de")
    _, (work,) = translator.works("The {x} has 3 cats.")
    ((piece,),) = [answered(work, "Die {x} hat 3 Katzen.")]
    assert (piece.attempts, piece.notices) == (1, ())
    _, (work,) = translator.works("The {x} has 3 cats.")
    ((piece,),) = [answered(work, "Die hat 3 Katzen.", "", "Die {x} hat drei Katzen.")]
    assert (piece.text, piece.attempts) == ("Die {x} hat drei Katzen.", 3)


def test_the_best_of_bad_answers_is_kept_and_said_with_its_place(toy: LM) -> None:
    translator = Translator(toy, "de", glossary={"cat": "Kater"})
    _, works = translator.works("The dog.\n\nA {x} cat: 1,000.5.\n")
    answered(works[0], "Der Hund.")
    ((piece,),) = [answered(works[1], "Die Katze.", "Ein {x} Kater kostet 1.000.", "Nein.")]
    assert piece.text == "Ein {x} Kater kostet 1.000."
    assert [str(notice) for notice in piece.notices] == [
        "line 3 ('A {x} cat: 1,000.5.'): the number '1,000.5' is missing"
    ]


def test_retries_can_be_turned_off(toy: LM) -> None:
    found = translate(toy, "The {x} cat.", "de", retries=0, report=True)
    assert [piece.attempts for piece in found.pieces] == [1]


def test_what_the_model_does_not_write_is_forced_and_said(toy: LM) -> None:
    require("llguidance", "grammar")
    found = translate(toy, "The {name} cat.", "de", report=True, seed=3)
    assert "{name}" in found.text
    assert "forced to write '{name}'" in str(found.warnings[0])
    free = translate(toy, "The {name} cat.", "de", report=True, retries=0)
    assert "'{name}' is missing" in str(free.warnings[0]), "the control"


def test_forced_forms_hold_all_that_must_stand(toy: LM) -> None:
    source = "Open {a} at https://x.org (100%) or %s."
    form = forced_form(source, ["{a}", "100"], read_glossary({"open": "öffnen"}).terms)
    constraint = Forms(toy.tokenizer, toy.model.spec.vocab_size).regex(form)
    for token in toy.tokenizer.encode("öffnen {a} https://x.org %s 100."):
        constraint.accept(token)
    assert not constraint.complete or "öffnen" in form


def test_a_glossary_is_told_to_the_model_and_its_terms_are_checked(toy: LM) -> None:
    glossary = {"house": "Gebäude"}
    _, (work,) = Translator(toy, "de", glossary=glossary).works("The house.")
    (ask,) = next(work)
    assert isinstance(ask, Ask)
    told = translation_request("The house.", "de", ["house = Gebäude"])
    assert list(ask.ids) == toy.tokenizer.encode_chat(told)
    found = translate(toy, "The house.", "de", glossary=glossary, retries=0, glossary_notes=False, report=True)
    assert "the term 'house' is not translated as 'Gebäude'" in str(found.warnings[0])


def test_earlier_sentences_are_shown_when_asked_for(toy: LM) -> None:
    _, (work,) = Translator(toy, "de", settings=TranslationSettings(context_sentences=1)).works("The cat. The dog.")
    next(work)
    (ask,) = work.send([Completion((Choice("Die Katze.", (), "end"),))])
    earlier = [*translation_request("The cat.", "de"), {"role": "assistant", "content": "Die Katze."}]
    assert list(ask.ids) == toy.tokenizer.encode_chat([*earlier, *translation_request("The dog.", "de")])
    found = translate(toy, "The cat eats. The dog eats.", "de", context_sentences=1, retries=0, report=True)
    assert len(found.pieces) == 2


def test_beams_find_a_likelier_translation_or_the_same(toy: LM) -> None:
    assert translate(toy, "The old red cat.", "de", beams=4, length_penalty=1.2) == german("The old red cat.")


def test_a_long_sentence_is_cut_and_told(toy: LM) -> None:
    found = translate(toy, "The cat and " * 30 + "the dog.", "de", report=True, retries=0)
    assert len(found.pieces) > 3
    assert "was cut between two words" in str(found.pieces[0].notices[0])


def test_twenty_thousand_chinese_characters_are_planned_without_loss(toy: LM) -> None:
    text = ("一只猫坐在垫子上" * 250 + "。\n") * 10
    plan, works = Translator(toy, "en").works(text)
    assert len(works) == len(plan.pieces)
    assert plan.whole([piece.text for piece in plan.pieces], "zh") == text


@pytest.mark.parametrize(
    ("source", "answer", "reason", "what"),
    [
        ("The cat.", " ", "end", "empty"),
        ("The cat.", "Die Katze", "max_tokens", "cut off"),
        ("The cat eats.", "die Katze die Katze die Katze die Katze die Katze", "end", "repeats itself"),
        ("The old cat eats.", "The old cat eats.", "end", "is the source"),
        (
            "The cat.",
            "猫坐在垫子上，看着那只老狗，什么也没有说，只是静静地坐着。",
            "end",
            "reads as Chinese, not German",
        ),
    ],
)
def test_faults_are_seen_without_knowing_the_language(source: str, answer: str, reason: str, what: str) -> None:
    found = faults(source, answer, "de", (), reason)
    assert any(what in fault.what for fault in found), found
    assert not faults("The cat eats.", "Die Katze frisst.", "de", (), "end"), "the control"


def test_warnings_reach_whoever_asks_for_them(toy: LM, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Notice] = []
    translate(toy, "The {x} cat.", "de", retries=0, on_warning=heard.append)
    assert "{x}" in heard[0].what
    assert not caplog.records
    translate(toy, "The {x} cat.", "de", retries=0)
    assert "{x}" in caplog.text, "nothing is passed over in silence"


@pytest.mark.parametrize(
    ("texts", "options", "problem"),
    [
        ("The cat.", {"target": "xx"}, "no language that is known"),
        ("The cat.", {"target": "en", "source": "English"}, "both languages are"),
        ("  ", {"target": "de"}, "text: it is empty"),
        (["The cat.", ""], {"target": "de"}, "text 2: it is empty"),
        ([3], {"target": "de"}, "text 1: it is int, not text"),
        (3, {"target": "de"}, "not int"),
        ("The cat.", {"target": "de", "beans": 4}, r"unknown key 'beans' .*beams"),
        ("The cat.", {"target": "de", "beams": 0}, "beams must be at least 1"),
        ("The cat.", {"target": "de", "glossary": "no.tsv"}, "no glossary can be read"),
        ("The cat.", {"target": "de", "max_tokens": 90}, "no room"),
    ],
)
def test_wrong_requests_are_errors_for_people(toy: LM, texts: object, options: dict[str, object], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        translate(toy, texts, **options)  # type: ignore[arg-type]
