"""Many processes are one: the same losses in every mode, the same decisions, and checkpoints for any number of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training.many import RUNS, SETTINGS, every_mode, kept, model, resized, stream, together, trainer, troubled

from bimo import ModelSpec, UserError
from bimo.core.config import ParallelSettings
from bimo.training import launch
from bimo.training.parallel import parallelize
from bimo.training.team import Team

Found = dict[str, Any]


def alone(optimizer: str) -> Found:
    torch.set_num_threads(1)
    made, seen = trainer(optimizer=optimizer)
    made.fit(stream())
    return {**vars(seen), "kept": kept(made)}


@pytest.fixture(scope="module")
def one() -> dict[str, Found]:
    """The runs of one process, by optimizer."""
    return {optimizer: alone(optimizer) for optimizer in ("adamw", "muon")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("many")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[Found]:
    """What two processes have seen, in every mode."""
    return together(every_mode, 2, folder)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return together(every_mode, 4, tmp_path_factory.mktemp("four"))


def largest(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other) > 0, "as many numbers"
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_statistics_that_nobody_can_see_whole_are_refused(two: list[Found]) -> None:
    assert "in parts" in two[0]["refused shard"]
    assert "share" in two[0]["refused tensor"]


def test_a_time_is_kept_by_one_clock(two: list[Found]) -> None:
    first, second = (process["clocks"] for process in two)
    assert first["steps"] == second["steps"], "they end together"
    assert 25 <= first["steps"] <= 35, "when the first clock says so"
    assert first["weights"] == second["weights"], "and have grown together"


def check_equal(found: list[Found], run: str, one: dict[str, Found]) -> None:
    expected = one[run.split()[-1]]
    for process in found:
        seen = process[run]
        for what in ("losses", "norms", "figures"):
            assert largest(seen[what], expected[what]) < 1e-5, what
            assert seen[what] == found[0][run][what], f"every process sees the same {what}"
        assert seen["tokens"] == expected["tokens"], "tokens are those of all processes"
        assert not seen["events"], "nothing happened"
        assert seen["depths"] == [2], "but that the depth has grown"
    weights, bound = found[0][run]["kept"], 1e-5 if run.endswith("muon") else 1e-3
    # AdamW divides by the root of the squares: where a gradient is next to nothing, its rounding becomes a step.
    assert max(largest(weights[name], values) for name, values in expected["kept"].items()) < bound, "all numbers kept"


@pytest.mark.parametrize("run", RUNS[2])
def test_two_processes_are_one(two: list[Found], one: dict[str, Found], run: str) -> None:
    check_equal(two, run, one)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS[4])
def test_four_processes_are_one(four: list[Found], one: dict[str, Found], run: str) -> None:
    check_equal(four, run, one)


def test_without_the_sum_of_gradients_they_are_not(two: list[Found], one: dict[str, Found]) -> None:
    """The control of the tests above."""
    assert largest(two[0]["without a sum"]["losses"], one["adamw"]["losses"]) > 1e-4, "the processes go their own ways"


@pytest.fixture(scope="module")
def one_of_two(two: list[Found], folder: Path) -> Found:
    """One process that goes on from a checkpoint of two, saves at once, and trains to the end."""
    made, seen = trainer(folder / "alone")
    made.resume(folder / "shard" / "step-00000004")
    then = kept(made)
    made.data = stream()
    made.data.next_batch = 4
    made.save_checkpoint()
    made.fit(stream())
    shutil.rmtree(folder / "alone" / "step-00000008")
    return {"then": then, "end": kept(made), "losses": seen.losses}


@pytest.fixture(scope="module")
def going_on(one_of_two: Found, folder: Path) -> list[Found]:
    """What two processes come to that go on from checkpoints of one and of two."""
    return together(resized, 2, folder)


def test_one_process_goes_on_where_two_have_stopped(one_of_two: Found, one: dict[str, Found]) -> None:
    assert largest(one_of_two["losses"], one["adamw"]["losses"][4:]) < 1e-5, "with the data that come next"


def test_two_one_two_keeps_every_number_and_the_order_of_the_data(
    going_on: list[Found], one_of_two: Found, one: dict[str, Found]
) -> None:
    first = going_on[0]
    assert first["shard to shard"]["then"] == one_of_two["then"], "one reads what two have written, bit for bit"
    for mode in ("shard", "tensor"):
        assert first[f"alone to {mode}"]["then"] == one_of_two["then"], "and two what one has written"
        assert largest(first[f"alone to {mode}"]["losses"], one["adamw"]["losses"][4:]) < 1e-5, "on the same batches"


@pytest.mark.parametrize("mode", ["shard", "tensor"])
def test_as_many_processes_go_on_exactly(going_on: list[Found], two: list[Found], mode: str) -> None:
    assert going_on[0][f"{mode} to {mode}"]["end"] == two[0][f"{mode} adamw"]["kept"], "bit for bit the unbroken run"


def test_each_process_goes_on_with_its_own_chance(going_on: list[Found]) -> None:
    for process in going_on:
        whole, resumed = process["dropout"]
        assert whole == resumed, "dropout too is that of the unbroken run"


@pytest.fixture(scope="module")
def in_trouble(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """Two processes, of which the second one has a trouble in each run."""
    return together(troubled, 2, tmp_path_factory.mktemp("trouble"))


def alike(in_trouble: list[Found], kind: str) -> Found:
    first, second = (process[kind] for process in in_trouble)
    for what in ("losses", "events", "step", "rows", "interrupted"):
        assert first[what] == second[what], f"{what} must be the same in both"
    return first


@pytest.mark.parametrize("kind", ["nan", "ids"])
def test_a_fault_in_one_process_is_mended_in_all(in_trouble: list[Found], one: dict[str, Found], kind: str) -> None:
    seen = alike(in_trouble, kind)
    assert seen["step"] == SETTINGS.steps, "the run goes on"
    expected = {"nan": ["trying again", "passed"], "ids": ["batch set aside"]}
    assert seen["events"] == expected[kind], "both have said so"
    if kind == "nan":
        assert largest(seen["losses"], one["adamw"]["losses"]) < 1e-5, "and nothing is lost"


def test_memory_used_up_in_one_process_halves_the_rows_of_all(in_trouble: list[Found], one: dict[str, Found]) -> None:
    seen = alike(in_trouble, "memory")
    assert (seen["events"], seen["rows"]) == (["out of memory"], 1), "2 rows were too many"
    assert largest(seen["losses"], one["adamw"]["losses"]) < 1e-5, "the updates stay the same"


def test_a_signal_to_one_process_ends_all_at_the_same_step(in_trouble: list[Found]) -> None:
    seen = alike(in_trouble, "signal")
    assert (seen["interrupted"], seen["step"]) == ("SIGTERM", 5), "after the step in which it came"


def test_damage_to_a_part_in_one_process_sends_all_back(in_trouble: list[Found], one: dict[str, Found]) -> None:
    seen = alike(in_trouble, "damage")
    assert seen["events"] == ["trying again", "went back"], "seen before the next update"
    assert largest(seen["losses"][-2:], one["adamw"]["losses"][-2:]) < 1e-5, "and the steps were made again"


@pytest.mark.parametrize(
    ("settings", "size", "sizes"),
    [
        (ParallelSettings(), 4, (4, 1, 1)),
        (ParallelSettings(shard=0), 4, (1, 4, 1)),
        (ParallelSettings(shard=0, data=2), 4, (2, 2, 1)),
        (ParallelSettings(tensor=2), 4, (2, 1, 2)),
        (ParallelSettings(shard=0), 1, (1, 1, 1)),
    ],
)
def test_what_is_not_said_takes_the_rest(settings: ParallelSettings, size: int, sizes: tuple[int, int, int]) -> None:
    assert launch.mesh_sizes(settings, size) == sizes


@pytest.mark.parametrize("settings", [ParallelSettings(tensor=3), ParallelSettings(data=2, shard=3)])
def test_sizes_that_do_not_multiply_to_the_processes_are_refused(settings: ParallelSettings) -> None:
    with pytest.raises(UserError, match="does not give 4 processes"):
        launch.mesh_sizes(settings, 4)


def test_heads_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(UserError, match="n_kv_heads is 2, which 4 processes cannot share out evenly"):
        parallelize(model(), Team(size=4, tensor=4))


def test_layers_that_cannot_be_cut_are_refused() -> None:
    sparse = ModelSpec(vocab_size=97, context_length=16, n_layers=1, d_model=32, n_heads=4, n_experts=4)
    with pytest.raises(UserError, match="MixtureOfExperts, which tensor parallelism cannot cut"):
        parallelize(model(sparse), Team(size=2, tensor=2))


def start(folder: Path, text_file: Path, name: str, *options: str) -> subprocess.Popen[bytes]:
    """torchrun with two processes on a small recipe."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"data: {{paths: [{text_file}], validation_share: 0.1, check: false}}\n"
        "tokenizer: {vocab_size: 400}\n"
        "model: {n_layers: 2, n_heads: 2, n_kv_heads: 2, d_model: 32, context_length: 32, dropout: 0.1}\n"
        "training: {steps: 40, batch_size: 4, evaluate_every: 10, checkpoint_every: 5, log_every: 1, device: cpu}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"]
    command += ["-m", "bimo", "train", str(recipe), "--name", name, "--folder", str(folder), *options]
    with (folder / f"{name}.txt").open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def metrics(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    timed = ("seconds", "tokens_per_second", "mfu")
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines if line.endswith("}")]


def kill_second(agent: int) -> None:
    """Kill that process of torchrun's which has rank 1."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        parent = (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
        if int(parent) == agent and b"\0RANK=1\0" in path.read_bytes():
            os.kill(int(path.parent.name), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process in /proc")
@pytest.mark.parametrize("options", [(), ("--parallel.shard", "0"), ("--parallel.tensor", "2")], ids=" ".join)
def test_a_killed_process_is_replaced_and_the_run_ends_bit_for_bit_the_same(
    tmp_path: Path, text_file: Path, options: tuple[str, ...]
) -> None:
    assert start(tmp_path, text_file, "unbroken", *options).wait(timeout=300) == 0
    job = start(tmp_path, text_file, "killed", *options)
    while len(metrics(tmp_path / "killed")) < 14 and job.poll() is None:
        time.sleep(0.05)
    kill_second(job.pid)
    assert job.wait(timeout=300) == 0, (tmp_path / "killed.txt").read_text(encoding="utf-8")
    assert "going on from" in (tmp_path / "killed.txt").read_text(encoding="utf-8"), "it was started again"
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "unbroken"), "every figure"
    results = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("unbroken", "killed")]
    assert results[0] == results[1], "every weight"


@pytest.mark.slow
def test_a_mistake_ends_all_with_one_sentence(tmp_path: Path, text_file: Path) -> None:
    job = start(tmp_path, text_file, "wrong", "--parallel.tensor", "2", "--model.n_kv_heads", "1")
    assert job.wait(timeout=300) != 0, "it cannot be trained"
    said = [line for line in (tmp_path / "wrong.txt").read_text(encoding="utf-8").splitlines() if "bimo: " in line]
    assert len(set(said)) == 1, said
    assert "n_kv_heads is 1, which 2 processes cannot share out evenly" in said[0], "the reason"
