"""The whole command on three tasks, with tiny models that train for seconds."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import bimo
from bimo import UserError
from bimo.cli import main
from bimo.families.comparison import Comparison

Rows = list[dict[str, str]]
TINY: dict[str, Any] = {
    "minutes": 0.2, "n_layers": 2, "d_model": 32, "vocab_size": 400, "threads": 1, "device": "cpu", "rounds": 200,
}  # fmt: skip


def check_alike(found: Comparison, families: list[str]) -> None:
    """What must hold whatever was learned."""
    assert [member.name for member in found.members] == families
    counts = [member.parameters for member in found.members]
    assert max(counts) / min(counts) < 1.05
    seconds = [member.seconds for member in found.members]
    assert min(seconds) >= 60 * TINY["minutes"] * 0.25 / len(families), "all of its share"
    assert len({len(c.answers) for c in found.evaluation.contenders}) == 1, "all answered the same examples"
    assert len(found.findings.pairs) == len(families) * (len(families) - 1) // 2


def test_labels_are_learned_by_all_three_families(labelled: Rows, tmp_path: Path) -> None:
    found = bimo.compare(labelled, "classification", floors=["majority"], **TINY)
    check_alike(found, ["GPT", "encoder-decoder", "encoder"])
    assert set(found.scores) == {"GPT", "encoder-decoder", "encoder", "majority"}
    assert all(set(answer.how.probabilities) == {"cat", "dog"} for answer in found.evaluation.ours.answers)
    page = found.save(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert content["advice"] == found.advice
    assert [family["name"] for family in content["families"]] == ["GPT", "encoder-decoder", "encoder"]
    text = page.read_text(encoding="utf-8")
    ElementTree.fromstring(text.replace("<!doctype html>", ""))  # well-formed
    assert "What each was and got" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), "nothing from elsewhere"


def test_summaries_are_compared(summaries: Rows) -> None:
    found = bimo.compare(summaries[30:], "summarization", valid=summaries[:30], floors=["copy"], **TINY)
    check_alike(found, ["GPT", "encoder-decoder"])
    assert len(found.evaluation.examples) == 30
    assert any("30 measured examples are few" in note for note in found.notes)


def test_the_command_compares_translations_and_writes_what_it_found(
    pairs: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [{"english": row["source"], "german": row["target"]} for row in pairs]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    flags = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    flags += ["--fields", "{source: english, target: german}", "--output", str(tmp_path / "out"), "--floors", "[copy]"]
    assert main(["compare", str(data), "--task", "translation(source='en', target='de')", *flags]) == 0
    said = capsys.readouterr().out
    for word in ("GPT", "encoder-", "chrF", "weights", "seconds", "training, ", "The page: "):
        assert word in said, word
    content = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert content["advice"] in " ".join(said.split()) or content["advice"] in said
    assert set(content["spent_seconds"]) == {"reading", "floors", "training", "answering", "scoring"}
    assert len(content["evaluation"]["examples"][0]["answers"]) == 3


def test_without_transformers_the_extra_is_named(
    pairs: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "transformers" else find(name, *more)
    )
    with pytest.raises(UserError, match="transformers is not installed") as error:
        bimo.compare(pairs, "translation", **TINY)
    assert "bimo[hf]" in error.value.mend


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--task", "translashun"], "translashun"),
        (["--task", "translation", "--minutes", "-1"], "minutes must be positive"),
        (["--task", "translation", "--d_model", "50"], "multiple of 32"),
        (["--task", "translation", "--rates", "[]"], "at least one positive number"),
        (["--task", "translation", "--minuts", "3"], "minutes"),
        (["--task", "translation", "--device", "cuda:9"], "device 'cuda:9' is not on this machine"),
        ([], "task"),
    ],
)
def test_what_is_wrong_is_said_at_once(
    flags: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"source": "a", "target": "b"}\n', encoding="utf-8")
    assert main(["compare", "a.jsonl", *flags]) == 2
    said = capsys.readouterr().err
    assert what in said
    assert "Traceback" not in said


def test_an_interrupted_comparison_says_what_was_finished(
    pairs: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bimo.families.compare.train_all", interrupted)
    flags = ["--output", str(tmp_path / "out"), "--floors", "[copy]", "--d_model", "32", "--minutes", "0.1"]
    assert main(["compare", str(data), "--task", "translation", *flags]) == 130
    said = capsys.readouterr().out
    assert "interrupted; finished: reading, floors. No figure was written." in said
    assert not (tmp_path / "out" / "compare.json").exists()
