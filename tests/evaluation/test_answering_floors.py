"""Floors answer what a person would expect of so simple a way, on data small enough to see it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from bimo import UserError, register
from bimo.core.registry import REGISTRIES
from bimo.evaluation.answer import Answer
from bimo.evaluation.floors import Floor, make_floor
from bimo.tasks import TaskExample, make_task

NAMES = list(REGISTRIES["floor"].ours)


def pair(source: str, target: str = "", language: str = "") -> TaskExample:
    return TaskExample((), target, source, group={"language": language} if language else {})


def answers(name: str, training: Sequence[TaskExample], sources: Sequence[str]) -> list[Answer]:
    floor = make_floor(name)
    floor.fit(training)
    return [Answer(answer) for answer in floor.answer([pair(source) for source in sources])]


def test_copy_says_the_source() -> None:
    assert answers("copy", [], [" a text \n"]) == ["a text"]


def test_lead_is_the_first_sentence_as_long_as_summaries_are() -> None:
    training = [pair("x", "one two"), pair("x", "one two three four")]
    assert answers("lead", training, ["Now this is a sentence. And more."]) == ["Now this is"]
    assert answers("lead", [], ["Now this is a sentence. And more."]) == ["Now this is a sentence."]
    assert answers("lead", [pair("x", "今天好")], ["天气很好。我们走吧。"]) == ["天气很"]


def test_nearest_gives_what_was_right_for_the_most_similar_text() -> None:
    training = [
        pair("red apples and pears", "fruit"),
        pair("a fast red car", "vehicle"),
        pair("今天天气很好", "weather"),
    ]
    found = answers("nearest", training, ["green pears", "the car", "天气好吗", "zzz", ""])
    assert found[:3] == ["fruit", "vehicle", "weather"]
    assert found[3:] == ["fruit", "fruit"], "of equally near ones the first"


def test_the_word_table_finds_which_words_belong_together() -> None:
    pairs = [
        ("the house", "das Haus"), ("the book", "das Buch"), ("a book", "ein Buch"), ("a house", "ein Haus"),
        ("a red book", "ein rotes Buch"), ("the red house", "das rotes Haus"),
    ]  # fmt: skip
    training = [pair(*texts) for texts in pairs]
    assert answers("word_table", training, ["the red book, Anna"]) == ["das rotes Buch, Anna"]


def test_the_word_table_goes_by_characters_where_no_spaces_are_written() -> None:
    pairs = [("cat", "猫"), ("dog", "狗"), ("big cat", "大猫"), ("big dog", "大狗"), ("big house", "大房")]
    assert answers("word_table", [pair(*texts) for texts in pairs], ["big dog"]) == ["大狗"]
    back = [pair(target, source) for source, target in pairs]
    assert answers("word_table", back, ["大狗"]) == ["big dog"]


def test_each_direction_has_its_own_table() -> None:
    task = make_task("translation(both=True)")
    training = [
        example
        for record in ({"source": "gift", "target": "Geschenk"}, {"source": "poison", "target": "Gift"})
        for example in task.examples(record, "here")
    ]
    floor = make_floor("word_table")
    floor.fit(training)
    asked = [pair("gift", "", "en → de"), pair("Gift", "", "de → en"), pair("gift", "", "en → fr")]
    assert list(floor.answer(asked)) == ["Geschenk", "poison", "gift"], "an unknown direction copies"


def test_the_n_gram_floor_goes_on_as_its_text_does_and_says_how_likely_a_target_was() -> None:
    varied = [pair(f"row {i} is ", f"{i * i} and no more") for i in range(200)]  # discounts need counts of all sizes
    training = [*varied, *[pair("the cat ", "sat on my mat, so warm")] * 9]
    floor = make_floor("n_gram")
    floor.fit(training)
    likely, unlikely = floor.answer([pair("the cat ", "sat on my mat"), pair("the cat ", "xqzj vkw ÿÿ")])
    assert likely.startswith("sat on my mat")
    foresight = [Answer.from_dict(a.to_dict()).how.foresight for a in (likely, unlikely) if isinstance(a, Answer)]
    costs = [seen.nats / math.log(2) / seen.bytes for seen in foresight if seen is not None]
    assert len(costs) == 2
    assert costs[0] < 1 < 6 < costs[1]


def test_majority_is_as_sure_as_its_share() -> None:
    found = answers("majority", [pair("x", "ham"), pair("y", "spam"), pair("z", "ham")], ["anything"])
    assert found == ["ham"]
    floor = make_floor("majority")
    floor.fit([pair("x", "b"), pair("y", "a")])
    answer = floor.answer([pair("z")])[0]
    assert isinstance(answer, Answer)
    assert (answer, answer.how.probabilities) == ("a", {"a": 0.5, "b": 0.5}), "of equally frequent ones the first"


def test_bag_of_words_learns_words_and_pieces_of_words() -> None:
    training = [pair(f"cheap pills {i}", "spam") for i in range(8)] + [pair(f"see you at {i}", "ham") for i in range(8)]
    floor = make_floor("bag_of_words")
    floor.fit(training)
    found = floor.answer([pair("cheapest pills"), pair("you at noon"), pair("")])
    assert list(found[:2]) == ["spam", "ham"]
    assert all(isinstance(a, Answer) and sum(a.how.probabilities.values()) == pytest.approx(1) for a in found)


def test_bag_of_words_without_a_choice_is_the_only_label() -> None:
    assert answers("bag_of_words", [pair("x", "only")], ["y"]) == ["only"]


@pytest.mark.parametrize("name", NAMES)
def test_every_floor_answers_odd_texts_the_same_twice(name: str) -> None:
    training = [pair("a b", "x", "en → zh"), pair("。。", "y", "en → zh"), pair("\ud800", "z", "de")]
    sources = ["", "a b", "。。", "\x00\ud800", "𝄞 ก็ได้"]
    assert answers(name, training, sources) == answers(name, training, sources)
    floor = make_floor(name)
    floor.fit(training)
    assert len(floor.answer([])) == 0
    assert isinstance(floor, Floor)


def test_a_floor_of_a_user_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRIES["floor"], "registered", {})

    @register("floor", "shout")
    class Shout:
        name, needs_training = "shout", False

        def fit(self, examples: Sequence[TaskExample]) -> None:
            pass

        def answer(self, examples: Sequence[TaskExample]) -> list[str]:
            return [example.source.upper() for example in examples]

    assert answers("shout", [], ["hey"]) == ["HEY"]
    register("floor", "silent")(lambda: object())
    with pytest.raises(UserError, match="no floor"):
        make_floor("silent")


@pytest.mark.parametrize("text", ["cellar", "word_table(rounds=0)", "n_gram(order=9)", "bag_of_words(strength=0)"])
def test_a_floor_that_cannot_be_is_a_sentence(text: str) -> None:
    with pytest.raises(UserError):
        make_floor(text)
