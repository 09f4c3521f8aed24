"""Examples run as they are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"ten_lines.py", "own_loss.py"}, "add a test"
