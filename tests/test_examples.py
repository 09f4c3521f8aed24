"""Examples run as they are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bimo.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(folder: Path, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ten_lines_train_write_save_and_load(tmp_path: Path, text_file: Path) -> None:
    output = run(tmp_path, "ten_lines.py", str(text_file))
    assert output.count("\n") >= 2, "two texts are printed"
    assert (tmp_path / "runs" / "ten_lines" / "model.safetensors").exists(), "the model is saved"


def test_own_loss_learns_the_answers(tmp_path: Path) -> None:
    output = run(tmp_path, "own_loss.py")
    assert "two and one → three" in output, output


def test_own_attention_is_checked_learns_and_comes_back_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run(tmp_path, "own_attention.py")
    assert "causality, mask" in output, "the contract is checked"
    losses = [float(line.rpartition(" ")[2]) for line in output.splitlines() if line.startswith("step")]
    assert losses[-1] < losses[0] / 4, "the loss falls"
    assert "cats, so Bo has cats." in output, "the loaded model writes"
    command = ["generate", "runs/own_attention", "Bo has 7", "--temperature", "0", "--max_tokens", "20"]
    modules = ["--modules", f"[{EXAMPLES / 'own_attention.py'}]"]
    monkeypatch.chdir(tmp_path)
    assert main([*command, *modules]) == 0
    assert capsys.readouterr().out.strip() in output, "another Python finds the module by its file"


def test_own_gpt_shows_its_modules_learns_and_writes_after_loading(tmp_path: Path) -> None:
    output = run(tmp_path, "own_gpt.py")
    assert "(self_attn): Attention" in output, "one sees what a block is made of"
    assert "(mlp): SquaredReLU" in output, "with the module of one's own"
    figures = [float(line.split()[2]) for line in output.splitlines() if line.startswith("step")]
    assert figures[-1] < figures[0] / 2, "the held-out figure falls"
    assert "it writes: Ada met " in output, "the loaded model writes"


def test_every_example_is_tested() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    assert names == {"ten_lines.py", "own_loss.py", "own_attention.py", "own_gpt.py"}, "add a test"
