"""Every recipe that we ship trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import bimo
from bimo import LM
from bimo.cli import main

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
TASKS = {path: yaml.safe_load(path.read_text(encoding="utf-8")).get("tasks") for path in RECIPES}
SMALL = ["--training.steps", "2", "--training.batch_size", "2", "--training.evaluate_rows", "4", "--name", "try"]
NEW = ["--model.n_layers", "1", "--model.context_length", "64"]
RECORDS = {
    "translation": {"source": "the cat", "target": "der Hund"},
    "summarization": {"document": "the cat sat on a mat", "summary": "a cat"},
    "dialogue": {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]},
    "classification": {"text": "the cat", "label": "animal"},
}


@pytest.mark.parametrize("recipe", [path for path in RECIPES if not TASKS[path]], ids=lambda path: path.stem)
def test_recipe_trains(recipe: Path, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(recipe), str(text_file), *SMALL, *NEW, "--data.validation_share", "0.1"]) == 0
    assert (tmp_path / "runs/try/model/model.safetensors").exists(), "it leaves a model"


@pytest.mark.parametrize("recipe", [path for path in RECIPES if TASKS[path]], ids=lambda path: path.stem)
def test_recipe_of_a_task_trains(recipe: Path, tmp_path: Path, lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = TASKS[recipe][0]["task"].partition("(")[0]
    plain = json.dumps(RECORDS[name])
    rows = [plain.replace("cat", f"cat {n}").replace("animal", ["animal", "tree"][n % 2]) for n in range(40)]
    (tmp_path / "records.jsonl").write_text("\n".join(rows), encoding="utf-8")
    rest = ["--tokenizer.vocab_size", "300", "--adapt.epochs", "0", *NEW]
    if recipe.stem in ("lora", "language_pack"):  # they begin with a model
        lm.save(tmp_path / "base")
        rest = ["--adapt.base", "base"]
    assert main(["train", str(recipe), "records.jsonl", *SMALL, *rest]) == 0
    assert [task.name for task in bimo.load("runs/try").tasks] == [name]


def test_a_folder_at_an_address_is_refused_here(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(text_file), "--folder", "s3://bucket/runs"]) == 2
    assert "s3://bucket/runs" in capsys.readouterr().err
