"""Only what the model must say is trained, whole; what does not fit is told with its place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bimo import Tokenizer, UserError
from bimo.examples.preview import preview
from bimo.examples.task_rows import OnLong, TaskRows
from bimo.tasks import TaskExample, make_task
from bimo.tasks.task import asked
from bimo.training.rows import TokenRows


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, kind: str, /, **facts: Any) -> None:
        self.lines.append(f"{kind}: {facts['what']}")


def made(
    examples: list[TaskExample], tokenizer: Tokenizer, length: int = 64, on_long: OnLong = "skip"
) -> tuple[TokenRows, Told]:
    told = Told()
    return TaskRows(tokenizer, length, on_long, told).rows(examples), told


def row(rows: TokenRows, number: int = 0) -> tuple[list[int], list[int]]:
    part = slice(rows.starts[number], rows.starts[number + 1])
    return rows.ids[part].tolist(), rows.trained[part].tolist()


SHORT = TaskExample(asked("Say:", "the cat"), "der Hund", "the cat", "file, line 3")


def test_exactly_the_answer_and_its_end_are_trained(tokenizer: Tokenizer) -> None:
    rows, told = made([SHORT], tokenizer)
    ids, trained = row(rows)
    said = [i for i, counts in zip(ids, trained, strict=True) if counts]
    assert said == [*tokenizer.encode("der Hund"), tokenizer.encode_chat([{"role": "user", "content": ""}])[-2]]
    assert said[-1] in tokenizer.end_ids, "the end is learned"
    assert not told.lines, "nothing was left out"


def test_a_preview_marks_the_trained_tokens(tokenizer: Tokenizer) -> None:
    shown = preview(*row(made([SHORT], tokenizer)[0]), tokenizer)
    trained = "".join(shown.plain[span.start : span.end] for span in shown.spans if "green" in str(span.style))
    assert trained == "der Hund<|end_of_turn|>"
    assert shown.plain.startswith("<|begin|><|user|>Say:"), "control tokens are shown by name"


LONG = replace(SHORT, messages=asked("Say:", "cat " * 200), source="cat " * 200)


def test_a_row_that_is_too_long_is_left_out_with_its_place(tokenizer: Tokenizer) -> None:
    rows, told = made([SHORT, LONG], tokenizer)
    assert len(rows) == 1
    assert any("left out: file, line 3" in line and "the model sees 64" in line for line in told.lines)
    with pytest.raises(UserError, match="line 3"):
        made([LONG], tokenizer, on_long="stop")


def test_a_cut_takes_from_what_is_read_and_never_from_the_answer(tokenizer: Tokenizer) -> None:
    rows, told = made([LONG], tokenizer, on_long="cut")
    ids, trained = row(rows)
    assert 55 <= len(ids) <= 65, "as much as fits is kept"
    assert tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t]) == "der Hund"
    assert any("cut: file, line 3" in line and "characters that are read are cut" in line for line in told.lines)


def test_an_answer_that_is_too_long_alone_is_left_out(tokenizer: Tokenizer) -> None:
    rows, told = made([SHORT, replace(SHORT, target="der Hund " * 100)], tokenizer, on_long="cut")
    assert len(rows) == 1
    assert any("the answer alone is too long" in line for line in told.lines)


@pytest.mark.parametrize("on_long", ["cut", "skip"])
def test_a_long_conversation_becomes_several_and_no_answer_is_lost(tokenizer: Tokenizer, on_long: OnLong) -> None:
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"the cat sat {n}"} for n in range(200)]
    system = {"role": "system", "content": "an old tree"}
    [example] = make_task("dialogue").examples({"messages": [system, *turns]}, "file, line 1")
    rows, told = made([example], tokenizer, on_long=on_long)
    said = ""
    for number in range(len(rows)):
        ids, trained = row(rows, number)
        assert tokenizer.decode(ids).startswith("an old tree"), "the system's message stands in front of all"
        said += tokenizer.decode([i for i, t in zip(ids, trained, strict=True) if t])
    assert said == "".join(turn["content"] for turn in turns[1::2]), "every answer once"
    assert any(line.startswith("split: file, line 1") for line in told.lines)


def test_pairs_are_kept_together_and_incomplete_ones_told(tokenizer: Tokenizer) -> None:
    told = Told()
    pair = replace(SHORT, rejected="Hund")
    pairs = TaskRows(tokenizer, 64, "skip", told).pairs([pair, SHORT, replace(pair, rejected="tree " * 99), pair])
    assert len(pairs) == 2
    assert len(told.lines) == 2, "without a rejected answer, and too long"
    batch = pairs.batch([1, 0])
    assert batch.weights.view(2, -1).sum(dim=1).tolist() == pytest.approx([1, 1]), "a mean over tokens is one of pairs"


def test_many_of_a_kind_are_told_as_a_number(tokenizer: Tokenizer) -> None:
    _, told = made([SHORT, *[LONG] * 30], tokenizer)
    assert len(told.lines) == 11
    assert told.lines[-1] == "left out: 30 rows in all"


def test_of_a_conversation_only_the_last_answers_are_a_pair(tokenizer: Tokenizer) -> None:
    before = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "the old tree"})
    example = replace(SHORT, messages=(*before, {"role": "user", "content": "b"}), target="cat", rejected="Hund")
    pairs = TaskRows(tokenizer, 64, "skip", Told()).pairs([example])
    for number, answer in enumerate(("cat", "Hund")):
        ids, trained = row(pairs.rows, number)
        said = [i for i, counts in zip(ids, trained, strict=True) if counts]
        assert said[:-1] == tokenizer.encode(answer), "what was said before is in no mean over tokens"


def test_where_all_is_left_out_the_first_reason_is_said(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"file, line 3: prompt and answer have \d+ tokens, the model sees 64"):
        made([LONG], tokenizer)
    with pytest.raises(UserError, match="file, line 3: there is no rejected answer"):
        TaskRows(tokenizer, 64, "skip", Told()).pairs([SHORT])


def test_a_preview_of_a_head_of_labels_shows_the_name_and_not_a_token(tokenizer: Tokenizer) -> None:
    told = Told()
    labels = ("even", "odd")
    example = TaskExample(asked("Which?", "the cat"), "odd", "the cat", "file, line 3")
    rows = TaskRows(tokenizer, 64, "skip", told, labels).rows([example])
    shown = preview(*row(rows), tokenizer, labels)
    trained = "".join(shown.plain[span.start : span.end] for span in shown.spans if "green" in str(span.style))
    assert trained == " [odd]"
    assert "[odd]" not in preview(*row(rows), tokenizer).plain, "the control"


def test_turns_that_fit_into_no_conversation_are_told(tokenizer: Tokenizer) -> None:
    said = [("the cat", "sat"), ("a " * 200, "on a mat"), ("an old tree", "by water"), ("and " * 20, "saw")]
    turns = [{"role": role, "content": text} for pair in said for role, text in zip(("user", "assistant"), pair)]  # noqa: B905
    rows, told = made([TaskExample(tuple(turns[:-1]), "saw", "", "file, line 3")], tokenizer)
    assert "turns left out: file, line 3: 2 of its 8 turns fit into none of them, and are left out" in told.lines
    shown = "".join(tokenizer.decode(row(rows, n)[0]) for n in range(len(rows)))
    assert "on a mat" not in shown
    assert "by water" in shown
