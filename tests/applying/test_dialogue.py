"""Conversations of any length: the newest turns stay, what goes is said, histories are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bimo import LM, Conversation, SamplingParams, UserError
from bimo.applying import Notice
from bimo.applying.dialogue import Forget, read_history

SHORT = SamplingParams(max_tokens=6, temperature=0)


def test_two_hundred_turns_work_and_what_is_forgotten_is_said(lm: LM) -> None:
    heard: list[Notice] = []
    talk = Conversation(lm, "the old tree", SHORT, on_notice=heard.append)
    for turn in range(200):
        talk.say(f"the cat {turn}")
    assert len([m for m in talk.messages if m["role"] == "user"]) == 200, "all of it is kept"
    assert talk.read[0] == {"role": "system", "content": "the old tree"}, "the instructions stay"
    assert talk.read[-2]["content"] == "the cat 199", "the newest turns stay"
    ids = lm.tokenizer.encode_chat(talk.read)
    assert len(ids) <= 64 + 6
    assert len(heard) > 50
    assert "no longer reads" in heard[0].what


def test_as_many_turns_are_read_as_fit(lm: LM) -> None:
    talk = Conversation(lm, "", SHORT)
    for turn in range(12):
        talk.say(f"cat {turn}")
    first = next(n for n, m in enumerate(talk.messages) if m is talk.read[0])
    longer = [*talk.messages[first - 2 : -1]]
    assert len(lm.tokenizer.encode_chat(longer)) > 64 - 6, "one turn more would not have fitted"


def test_what_is_forgotten_can_be_summarised(toy: LM) -> None:
    heard: list[Notice] = []
    talk = Conversation(toy, "", SHORT, forget="summarize", on_notice=heard.append)
    for turn in range(12):
        talk.say(f"The cat eats {turn}.")
    assert "it knows a summary of them" in heard[0].what
    assert talk.read[0]["role"] == "system"
    assert talk.read[0]["content"].startswith("Earlier in this conversation: ")


def test_a_message_that_is_too_long_changes_nothing(lm: LM) -> None:
    talk = Conversation(lm, "", SHORT)
    talk.say("the cat")
    before = list(talk.messages)
    with pytest.raises(UserError, match=r"the message has .* tokens; .*no room"):
        talk.say("cat " * 200)
    assert talk.messages == before
    assert talk.say("the dog") is not None, "it goes on"


def test_instructions_without_room_are_refused(lm: LM) -> None:
    with pytest.raises(UserError, match="the instructions leave no room"):
        Conversation(lm, "cat " * 100, SHORT)


def test_undo_and_reset(lm: LM) -> None:
    talk = Conversation(lm, "be old", SHORT)
    assert not talk.undo()
    talk.say("the cat")
    once = list(talk.messages)
    talk.say("the dog")
    assert talk.undo()
    assert talk.messages == once
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "be old"}]


def test_undo_after_turns_were_forgotten_leaves_a_conversation_that_works(lm: LM) -> None:
    talk = Conversation(lm, "", SHORT)
    for turn in range(15):
        talk.say(f"the cat {turn}")
    for _ in range(15):
        talk.undo()
    assert talk.messages == []
    assert talk.say("the dog") is not None


def test_an_answer_that_is_broken_off_is_kept(lm: LM) -> None:
    talk = Conversation(lm, "", SamplingParams(max_tokens=20, temperature=0))
    pieces = talk.stream("the cat")
    first = next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert talk.messages[-1] == {"role": "assistant", "content": first}
    assert not lm.engine.jobs, "and nothing goes on behind"


def test_a_history_comes_back(lm: LM, tmp_path: Path) -> None:
    talk = Conversation(lm, "be old", SHORT)
    talk.say("猫\nthe cat")
    path = tmp_path / "talk.jsonl"
    talk.save(path)
    kept = len(talk.messages)
    talk.say("the dog")
    talk.save(path, since=kept)
    again = Conversation(lm, "", SHORT)
    again.load(path)
    assert again.messages == talk.messages
    assert again.say("a tree") == talk.say("a tree")
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5, "a message on each line"


def test_a_training_record_is_a_history_too(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "row.jsonl").write_text(json.dumps({"messages": messages}))
    assert read_history(tmp_path / "row.jsonl") == messages


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"hello\n", "line 1: it is no JSON"),
        (b'{"role": "user", "content": "a"}\n{"role": "robot", "content": "b"}\n', "line 2: unknown role 'robot'"),
        (b'{"role": "user"}', "line 1: a message needs"),
        (b'{"role": "user", "content": "a"}\n{"role": "system", "content": "b"}\n', "line 2: the system message"),
        (b'{"messages": 3}', "line 1: a message needs"),
        (b"[" * 100_000, "line 1: it is no JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_broken_history_is_named_with_its_line(tmp_path: Path, text: bytes, problem: str) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_bytes(text)
    with pytest.raises(UserError, match=problem):
        read_history(path)


def test_a_missing_history_and_unknown_choices_are_errors_for_people(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the history cannot be read"):
        read_history(tmp_path / "none.jsonl")
    wrong: Forget = "burn"  # type: ignore[assignment]
    with pytest.raises(UserError, match="drop or summarize"):
        Conversation(lm, forget=wrong)
