"""Killed at any moment, a resumed run ends bit for bit like the unbroken one."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bimo.core.artifacts import RunDirectory

PROGRAM = Path(__file__).with_name("killed.py")
PARTS = (
    "model",
    "optimizer",
    "random",
    "random.torch",
    "random.python",
    "random.numpy",
    "data",
    "training",
    "callbacks.Average-0",
    "callbacks.EarlyStopping-0",
    "callbacks.Watchdog-0",
)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(PROGRAM), str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(folder: Path, *arguments: str) -> dict[str, object]:
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return json.loads((folder / "end.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return finish(tmp_path_factory.mktemp("unbroken"))


def killed_at(folder: Path, moment: float, by: signal.Signals = signal.SIGKILL, leave_out: str = "") -> None:
    """Start, and kill it that many seconds after training has begun."""
    process = start(folder, *filter(None, [leave_out]))
    assert process.stdout is not None, "its output is read"
    process.stdout.readline()  # it begins to train
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, by)
    process.communicate(timeout=60)


def test_a_run_that_is_killed_twice_ends_bit_for_bit_like_the_unbroken_one(
    unbroken: dict[str, object], tmp_path: Path
) -> None:
    for moment in (0.15, 0.4):
        killed_at(tmp_path, moment)
    assert finish(tmp_path) == unbroken, "weights, moments, averages, figures and what the watchdog knows"


@pytest.mark.slow
def test_a_hundred_random_moments(unbroken: dict[str, object], tmp_path: Path) -> None:
    rng = random.Random(0)
    for number in range(100):
        folder = tmp_path / str(number)
        killed_at(folder, rng.uniform(0.0, 1.2))
        assert finish(folder) == unbroken, f"kill number {number}"


def stopped_at(folder: Path, step: int, leave_out: str = "") -> None:
    """Interrupt a run when the checkpoint of that step is there."""
    process = start(folder, *filter(None, [leave_out]))
    newest = RunDirectory(folder).checkpoints / f"step-{step:08d}"
    while process.poll() is None and not newest.exists():
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.mark.parametrize("part", ["random.python", "callbacks.Watchdog-0"])
def test_a_part_that_is_left_out_of_the_state_is_missed(unbroken: dict[str, object], tmp_path: Path, part: str) -> None:
    """The control of the two tests above."""
    stopped_at(tmp_path, 24, part)
    assert finish(tmp_path) != unbroken, f"without {part} it must be another run"


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_state_is_needed(unbroken: dict[str, object], tmp_path: Path, part: str) -> None:
    stopped_at(tmp_path, 24, part)
    assert finish(tmp_path) != unbroken, f"without {part} it must be another run"


def test_sigterm_saves_and_ends_within_ten_seconds(unbroken: dict[str, object], tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None, "its output is read"
    process.stdout.readline()
    time.sleep(0.3)
    begin = time.monotonic()
    process.terminate()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert time.monotonic() - begin < 10, "it does not wait for anything"
    assert finish(tmp_path) == unbroken, "also when the signal came in the middle of a step"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(unbroken: dict[str, object], tmp_path: Path) -> None:
    stopped_at(tmp_path, 24)
    newest = sorted(RunDirectory(tmp_path).checkpoints.glob("step-*"))[-1]
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 4
    weights.write_bytes(content)
    process = start(tmp_path)
    output, _ = process.communicate(timeout=60)
    assert "model.safetensors has changed since it was written" in output, "loudly"
    assert json.loads((tmp_path / "end.json").read_text(encoding="utf-8")) == unbroken, "and it ends the same"
