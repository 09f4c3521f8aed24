"""Killed at any moment, a resumed run ends bit for bit like the unbroken one."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import random
import signal
import time
from pathlib import Path

import pytest
from training.killed import child

from bimo.core.artifacts import RunDirectory

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


Process = multiprocessing.process.BaseProcess


def start(folder: Path, leave_out: str = "") -> Process:
    """Begin a run; returns when it trains. A process that has imported everything is copied for each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "bimo.lm"])  # what a run imports
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "output.txt").unlink(missing_ok=True)
    process = context.Process(target=child, args=(folder, leave_out))
    process.start()
    while process.is_alive() and not output(folder).endswith("\n"):
        time.sleep(0.002)
    return process


def output(folder: Path) -> str:
    path = folder / "output.txt"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def finish(folder: Path, leave_out: str = "") -> dict[str, object]:
    process = start(folder, leave_out)
    process.join(timeout=120)
    assert process.exitcode == 0, output(folder)
    return json.loads((folder / "end.json").read_text(encoding="utf-8"))


def kill(process: Process, by: signal.Signals = signal.SIGKILL) -> None:
    assert process.pid is not None, "it has been started"
    if process.is_alive():
        os.kill(process.pid, by)
    process.join(timeout=60)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return finish(tmp_path_factory.mktemp("unbroken"))


def killed_at(folder: Path, moment: float) -> None:
    """Start, and kill it that many seconds after training has begun."""
    process = start(folder)
    time.sleep(moment)
    kill(process)


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


def killed_after(folder: Path, step: int, leave_out: str = "") -> None:
    """Kill a run when the checkpoint of that step is there."""
    process = start(folder, leave_out)
    while process.is_alive() and not (RunDirectory(folder).checkpoints / f"step-{step:08d}").exists():
        time.sleep(0.002)
    kill(process)


@pytest.mark.parametrize("part", ["random.python"])
def test_a_part_that_is_left_out_of_the_state_is_missed(unbroken: dict[str, object], tmp_path: Path, part: str) -> None:
    """The control of the two tests above."""
    killed_after(tmp_path, 24, part)
    assert finish(tmp_path) != unbroken, f"without {part} it must be another run"


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_the_state_is_needed(unbroken: dict[str, object], tmp_path: Path, part: str) -> None:
    killed_after(tmp_path, 24, part)
    assert finish(tmp_path) != unbroken, f"without {part} it must be another run"


def test_sigterm_saves_and_ends_within_ten_seconds(unbroken: dict[str, object], tmp_path: Path) -> None:
    process = start(tmp_path)
    time.sleep(0.2)
    begin = time.monotonic()
    kill(process, signal.SIGTERM)
    assert process.exitcode == 0, output(tmp_path)
    assert time.monotonic() - begin < 10, "it does not wait for anything"
    assert finish(tmp_path) == unbroken, "also when the signal came in the middle of a step"


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(unbroken: dict[str, object], tmp_path: Path) -> None:
    killed_after(tmp_path, 24)
    newest = sorted(RunDirectory(tmp_path).checkpoints.glob("step-*"))[-1]
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 4
    weights.write_bytes(content)
    assert finish(tmp_path) == unbroken, "it ends the same"
    assert "model.safetensors has changed since it was written" in output(tmp_path), "and says so, loudly"
