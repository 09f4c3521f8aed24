"""Measuring: the figures add up, peers do the same work, and whoever fails is left out with a reason."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bimo import LM, ModelSpec, Tokenizer, UserError, new
from bimo.core.machine import Speed
from bimo.engine import SamplingParams, new_tokens
from bimo.evaluation.apart import Apart
from bimo.evaluation.bench import BenchSettings, Report, Row, bench, decode_limit
from bimo.evaluation.contenders import About, BimoContender, LlamaCppContender, Run, TransformersContender, Work
from bimo.evaluation.limits import best_seconds
from bimo.evaluation.racing import Effort, Measure, Shape, decode_speed, race

WORK = Work(((5, 6, 7), (8, 9, 10)), 6)


class Stubborn:
    """Fails in the ways that contenders fail."""

    def run(self, work: Work) -> Run:
        if work.new_tokens == 1:
            os.kill(os.getpid(), signal.SIGILL)
        if work.new_tokens == 4:
            raise ValueError("no room")
        return Run((0.5,), 1.5, ((1, 2, 3),))


@pytest.fixture(scope="module")
def small(spec: ModelSpec, tokenizer: Tokenizer) -> LM:
    return new(spec, tokenizer, seed=3)


@pytest.fixture(scope="module")
def folder(small: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.save(tmp_path_factory.mktemp("bench") / "model")


def test_bench_measures_a_model_and_writes_its_trace(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    said: list[str] = []
    settings = BenchSettings(threads=1, seconds=4.0, peers=(), device="cpu", trace=str(trace))
    report = bench(folder, settings, say=said.append)
    report.save(tmp_path / "figures.json")
    assert not report.left_out, report.left_out
    rows = {row.name: row for row in report.rows}
    assert all(row.figures["bimo"] > 0 for row in rows.values()), rows
    assert {"decode, 1 stream of 16", "prefill of 64", "64 streams x 32", "memory, 1 stream"} <= set(rows)
    assert all(row.limit > 0 for row in rows.values()), "each has a limit"
    assert json.loads((tmp_path / "figures.json").read_text())["contenders"]["bimo"]["weight_bytes"] > 0
    assert len(list(report.lines())) == len(rows) + 2, "a line for each, and the head"
    assert json.loads(trace.read_text())["traceEvents"], "steps were recorded"
    assert any(str(trace) in line for line in said)


def test_contenders_give_the_same_greedy_tokens(folder: Path, small: LM) -> None:
    params = SamplingParams(max_tokens=6, min_tokens=6, temperature=0)
    expected = tuple(tuple(new_tokens(small.model, prompt, params)) for prompt in WORK.prompts)
    ours = BimoContender(str(folder), {"threads": 1, "backend": "torch"}, with_text=False)
    assert ours.run(WORK).tokens == expected
    if importlib.util.find_spec("transformers"):
        theirs = TransformersContender(str(folder), 1)
        assert theirs.run(WORK).tokens == expected
        assert theirs.check(WORK.prompts, expected) == (12, 12, 0.0)
        wrong = tuple(((answer[0] + 1) % 300, *answer[1:]) for answer in expected)
        right, count, gap = theirs.check(WORK.prompts, wrong)
        assert right < count, "the control is seen"
        assert gap > 0
    torch.set_num_threads(2)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_llama_cpp_gives_the_same_greedy_tokens(small: LM, tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=6, temperature=0)
    expected = tuple(tuple(new_tokens(small.model, prompt, params)) for prompt in WORK.prompts)
    path = small.export(tmp_path / "model.gguf", "F32")
    assert LlamaCppContender(str(path), 1).run(WORK).tokens == expected


def test_who_fails_is_left_out_with_a_reason_and_the_others_go_on() -> None:
    racing = {name: Apart(Stubborn, threads=1) for name in ("first", "second")}
    measures = [
        Measure("works", "tokens/s", Shape(1, 1, 3), decode_speed),
        Measure("dies", "tokens/s", Shape(1, 1, 1), decode_speed, only=("first",)),
        Measure("works on", "tokens/s", Shape(1, 1, 5), decode_speed),
        Measure("raises", "tokens/s", Shape(1, 1, 4), decode_speed, only=("second",)),
    ]
    results = race(racing, measures, 10, Effort(2, 60.0))
    assert results.figures == {
        ("works", "first"): [2.0],
        ("works", "second"): [2.0],
        ("works on", "second"): [2.0],
    }
    assert results.left_out == {
        "first": f"its process has ended (killed by signal {int(signal.SIGILL)})",
        "second": "ValueError: no room",
    }


def test_measures_without_time_are_named() -> None:
    racing = {"only": Apart(Stubborn, threads=1)}
    results = race(racing, [Measure("late", "tokens/s", Shape(1, 1, 3), decode_speed)], 10, Effort(2, 1e-9))
    assert results.figures == {}
    assert results.left_out == {"late": "no time was left for only"}


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("program", ["engine_cpu.py", "engine_gpu.py"])
def test_the_benchmarks_of_the_engine_run_on_a_tiny_model(program: str, folder: Path) -> None:
    options = {"engine_cpu.py": ["--model", str(folder)], "engine_gpu.py": ["--device", "cpu"]}[program]
    command = [sys.executable, str(BENCHMARKS / program), "--quick", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "| decode, 1 stream" in done.stdout
    if importlib.util.find_spec("transformers"):
        assert "tokens are transformers' likeliest; largest gap of logits 0.0e+00" in done.stdout


def test_figures_of_a_run() -> None:
    run = Run((0.5, 1.0), 3.0, ((1, 2, 3), (4, 5, 6)))
    assert run.decode_per_s == 4 / 2.0, "after everyone had the first token"
    assert run.total_per_s == 6 / 3.0


def test_the_limit_of_decode_is_bytes_over_bandwidth_or_arithmetic() -> None:
    about = About("", weight_bytes=2000, step_bytes=1000, kv_bytes=10, matrix_flops=90.0, head_flops=10.0)
    shape = Shape(streams=2, length=9, new_tokens=2)
    assert decode_limit(about, Speed(1e12, 1200.0), shape) == 2.0, "two tokens: the weights once, 10 tokens of each"
    assert decode_limit(about, Speed(100.0, 1e12), shape) == 1.0, "two tokens of 100 operations take two seconds"


def test_a_share_and_a_ratio_stand_in_the_table() -> None:
    row = Row("decode", "tokens/s", {"bimo": 30.0, "x": 10.0, "y": 20.0}, {"bimo": 0.1, "x": 0.0, "y": 0.0}, 60.0)
    lines = list(Report("m", {}, {"bimo": {}, "x": {}, "y": {}}, (row,), {"z": "not installed"}).lines())
    assert lines[2] == "| decode, tokens/s | 30 ±5% | 10 | 20 | 1.50 | 50% of 60 |"
    assert lines[3] == "left out: z: not installed"


def test_works_of_a_seed_are_the_same_and_share_what_they_shall() -> None:
    shape = Shape(streams=3, length=20, new_tokens=2, shared=12)
    work = shape.work(100, 7)
    assert work == shape.work(100, 7) != shape.work(100, 8)
    assert len({prompt[:12] for prompt in work.prompts}) == 1
    assert len({prompt[12:] for prompt in work.prompts}) == 3


def test_the_best_of_several_ways_counts() -> None:
    calls: list[str] = []
    assert best_seconds([lambda: calls.append("a"), lambda: calls.append("b")], 0.0) < 1.0
    assert calls == ["a", "b"] * 2


def test_mistaken_settings_are_named() -> None:
    with pytest.raises(UserError, match=r"peers has no 'llama'.*mean 'llama.cpp'"):
        BenchSettings(peers=("llama",))
    with pytest.raises(UserError, match="seconds must be a positive number"):
        BenchSettings(seconds=0.0)
