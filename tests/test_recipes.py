"""Every recipe that we ship trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from bimo.cli import main

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains(recipe: Path, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--training.steps", "2", "--training.batch_size", "2", "--model.context_length", "32"]
    small += ["--model.n_layers", "1", "--data.validation_share", "0.1", "--training.evaluate_rows", "4"]
    assert main(["train", str(recipe), "--data.paths", f"[{text_file}]", "--name", "try", *small]) == 0
    assert (tmp_path / "runs/try/model/model.safetensors").exists(), "it leaves a model"


def test_a_folder_at_an_address_is_refused_here(text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(text_file), "--folder", "s3://bucket/runs"]) == 2
    assert "s3://bucket/runs" in capsys.readouterr().err
