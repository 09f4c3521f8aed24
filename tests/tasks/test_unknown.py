"""A model that was trained for somebody's own task opens without it, and says so when the task is used."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import bimo
from bimo import LM, UserError
from bimo.cli import main
from bimo.tasks.naming import make_task

OWN = """
from dataclasses import dataclass

import bimo
from bimo.tasks.task import TaskExample, asked, text_of


@bimo.register("task", "murmuring")
@dataclass(frozen=True)
class Shouting:
    loud: bool = True
    max_tokens: int = 8

    name = "murmuring"
    fields = ("text",)
    metrics = ("exact_match",)
    floors = ("copy",)

    def examples(self, record, where):
        text = text_of(record, "text", where)
        return [TaskExample(asked("Shout:", text), text.upper(), text, where)]

    def answer(self, text):
        return text

    def settled(self, examples):
        return self
"""


@pytest.fixture
def stranger(lm: LM, tmp_path: Path) -> Path:
    """A model whose task is not there."""
    folder = lm.save(tmp_path / "model")
    (folder / "tasks.json").write_text(json.dumps({"tasks": ["murmuring(loud=False)", "translation(target='de')"]}))
    return folder


def test_it_opens_writes_and_keeps_what_it_was_trained_for(
    stranger: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        lm = bimo.load(stranger)
    assert "trained for 'murmuring(loud=False)', a task that is not there" in caplog.text
    assert "--modules" in caplog.text, "the mend"
    assert lm.generate("the", max_tokens=2)
    assert [task.name for task in lm.tasks] == ["murmuring", "translation"]
    assert json.loads((lm.save(tmp_path / "again") / "tasks.json").read_text())["tasks"][0] == "murmuring(loud=False)"


def test_only_the_task_itself_is_refused(stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "the cat", "source": "the cat", "target": "die Katze"}\n')
    with pytest.raises(UserError, match="'murmuring' is one of somebody's own"):
        bimo.evaluate(str(stranger), str(data), "murmuring")
    found = bimo.evaluate(str(stranger), str(data), "translation", floors=(), rounds=100)
    assert found.task.startswith("translation")
    (tmp_path / "own.py").write_text(OWN)
    flags = ["--modules", str(tmp_path / "own.py"), "--task", "murmuring", "--floors", "[]", "--rounds", "100"]
    page = ["--output", str(tmp_path / "page"), "--engine.max_running", "1"]
    assert main(["evaluate", str(stranger), str(data), *flags, *page]) == 0, "with its file it is there"
    assert "murmuring" in capsys.readouterr().out or (tmp_path / "page").is_dir()


@pytest.mark.parametrize("length", [0, -3, True, "'many'"])
def test_an_answer_has_a_length(length: object) -> None:
    with pytest.raises(UserError, match="max_tokens must be a whole number"):
        make_task(f"summarization(max_tokens={length})")


def test_an_answer_that_was_asked_for_fits_into_the_context(lm: LM, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"document": "the cat sat", "summary": "cat"}\n')
    with pytest.raises(UserError, match="500 tokens, and the model sees 64"):
        bimo.evaluate(lm, str(data), "summarization(max_tokens=500)", floors=())
    bimo.evaluate(lm, str(data), "summarization", floors=(), rounds=100)  # its own length is shortened
