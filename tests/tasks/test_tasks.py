"""A task says how a record becomes messages and a target; what cannot be used is named."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bimo
from bimo import Tokenizer, UserError
from bimo.core.registry import REGISTRIES
from bimo.data import Problem
from bimo.tasks import Task, TaskExample, make_task, task_of
from bimo.tasks.prompts import prompt_ids
from bimo.tasks.records import read_examples
from bimo.tasks.saved import FILE, saved_tasks, tasks_file
from bimo.tasks.task import asked, text_of

RECORDS: dict[str, Mapping[str, Any]] = {
    "completion": {"text": "一只猫"},
    "translation": {"source": "a cat", "target": "eine Katze", "origin": "book"},
    "summarization": {"document": "It is long.", "summary": "long"},
    "dialogue": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    "classification": {"text": "good", "label": "positive"},
    "preference": {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"},
}


@pytest.mark.parametrize("name", RECORDS)
def test_every_task_keeps_the_contract(name: str) -> None:
    task = make_task(name)
    assert isinstance(task, Task), "all parts are there"
    [example] = task.examples(RECORDS[name], "here")
    assert example.target, "there is something to say"
    assert all(message["role"] == "user" for message in example.messages), "and the assistant's turn is next"
    assert REGISTRIES["task"].names().count(name) == 1, "and it is found by its name"


def test_a_pair_that_is_translated_both_ways_gives_two_examples() -> None:
    there, back = make_task("translation(target='zh', both=True)").examples({"source": "a", "target": "b"}, "here")
    assert (there.source, there.target, back.source, back.target) == ("a", "b", "b", "a")
    assert [e.group["language"] for e in (there, back)] == ["en → zh", "zh → en"]
    assert "Chinese" in there.messages[0]["content"]
    assert "English" in back.messages[0]["content"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("translation(target='klingon')", "klingon"),
        ("translation(goal='de')", "goal"),
        ("translatoin", "translation"),
        ("classification", "all rows have the label"),
    ],
)
def test_a_task_that_cannot_be_made_says_why(text: str, said: str) -> None:
    def settle() -> None:
        task = make_task(text)
        task.settled(task.examples(RECORDS["classification"], "here"))

    with pytest.raises(UserError, match=said):
        settle()


@pytest.mark.parametrize("text", ["translation", "translation(source='de', target='en', both=True)", "dialogue"])
def test_a_task_is_made_again_of_its_text(text: str) -> None:
    assert make_task(task_of(make_task(text))) == make_task(text)


def test_labels_are_settled_by_the_training_rows_and_saved(tmp_path: Path) -> None:
    task = make_task("classification")
    rows = [{"text": "x", "label": label} for label in ("b", 7, "a", "b")]
    task = task.settled([example for row in rows for example in task.examples(row, "here")])
    assert task.labels == ("7", "a", "b")  # type: ignore[attr-defined]
    [(name, content)] = tasks_file([task]).items()
    (tmp_path / name).write_bytes(content)
    assert saved_tasks(tmp_path) == [task]
    with pytest.raises(UserError, match="'c' is not one of"):
        task.examples({"text": "x", "label": "c"}, "here")


@pytest.mark.parametrize("content", ['{"tasks": "translation"}', '{"tasks": [1]}', "{"])
def test_a_damaged_file_of_tasks_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=FILE):
        saved_tasks(tmp_path)


BAD = [
    ('{"source": "a"}', "no field 'target'"),
    ('{"source": "a", "target": 3.5e999}', "target"),
    ('{"source": "a", "target": null}', "NoneType"),
    ('{"source": "  ", "target": "b"}', "empty"),
    ('{"source": ["a"], "target": "b"}', "list"),
    ("[1, 2]", "list"),
    ("{bad", "not valid JSON"),
    ('{"source": "\\ud800", "target": "b"}', "half a character"),
]


def test_every_bad_row_is_named_and_the_others_are_used(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    good = '{"source": "a", "target": "b"}'
    path.write_text("\n".join([good, *(row for row, _ in BAD), good]), encoding="utf-8")
    told: list[Problem] = []
    found = read_examples(make_task("translation"), [str(path)], on_problem=told.append)
    kept = [problem for problem in told if "3.5e999" not in problem.what]
    assert [e.where for e in found if e.target == "b"] == [f"{path}, line 1", f"{path}, line {len(BAD) + 2}"]
    rows = {problem.row: problem.what for problem in kept}
    for row, (content, what) in enumerate(BAD, start=2):
        if "e999" not in content:  # an infinite number is a text like any other number
            assert what in rows[row], content
    with pytest.raises(UserError, match=r"line 2: there is no field 'target'"):
        read_examples(make_task("translation"), [str(path)])


def test_columns_with_other_names_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("english;german\na cat;eine Katze\n", encoding="utf-8")
    fields = {"source": "english", "target": "german"}
    [example] = read_examples(make_task("translation"), [str(path)], fields=fields)
    assert (example.source, example.target) == ("a cat", "eine Katze")
    with pytest.raises(UserError, match="no field 'sauce'"):
        read_examples(make_task("translation"), [str(path)], fields={"sauce": "english"})
    with pytest.raises(UserError, match=r"no row can be used.*'source'"):
        read_examples(make_task("translation"), [str(path)], on_problem=lambda problem: None)


@pytest.mark.parametrize(
    "messages",
    [None, [], "hi", [{"role": "user"}], [{"role": "robot", "content": "x"}], [{"role": "user", "content": "only"}]],
)
def test_a_conversation_without_an_answer_is_refused(messages: object) -> None:
    with pytest.raises(UserError, match="message"):
        make_task("dialogue").examples({"messages": messages}, "row 1")


def test_a_prompt_without_a_chat_format_is_plain_text(tokenizer: Tokenizer) -> None:
    content = json.loads(json.dumps(tokenizer.content))
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in ("<|end_of_turn|>",)]
    plain = Tokenizer({**content, "model": content["model"]})
    plain.special = type(plain.special)()
    assert plain.decode(prompt_ids(asked("Do:", "a cat"), plain)) == "Do:\na cat\n\n"


def test_a_task_of_a_users_own_is_found_by_its_name() -> None:
    @bimo.register("task", "shouting")
    @dataclass(frozen=True)
    class Shouting:
        mark: str = "!"
        max_tokens: int = 8

        name = "shouting"
        fields = ("text",)
        metrics = ("exact",)
        floors = ("copy",)

        def examples(self, record: Mapping[str, object], where: str) -> Sequence[TaskExample]:
            text = text_of(record, "text", where)
            return [TaskExample(asked("Shout:", text), text.upper() + self.mark, text, where)]

        def answer(self, text: str) -> str:
            return text

        def settled(self, examples: Sequence[TaskExample]) -> Task:
            return self

    task = make_task("shouting(mark='!!')")
    assert task.examples({"text": "hey"}, "here")[0].target == "HEY!!"
    with pytest.raises(UserError, match="is no task"):
        make_task(object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "translation(source=3)",
        "classification(labels='good')",
        "classification(labels=[1, 2])",
        "classification(labels=['a', 'a'])",
        "classification(labels=5)",
    ],
)
def test_a_parameter_of_a_wrong_kind_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"tasks": [text]}), encoding="utf-8")
    with pytest.raises(UserError, match=r"tasks\.json"):
        saved_tasks(tmp_path)


@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "nan"), (float("inf"), "inf"), (True, "bool"), (None, "None")]
)
def test_what_is_no_text_and_no_number_is_refused(value: object, said: str) -> None:
    with pytest.raises(UserError, match=f"'label' is {said}"):
        text_of({"label": value}, "label", "row 1")
    assert text_of({"label": 2.5}, "label", "row 1") == "2.5"
