"""A trace holds every step, its phases in order, and what the runner's threads did."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bimo import LM, ModelSpec, Tokenizer, new
from bimo.engine import Engine, EngineSettings, SamplingParams
from bimo.engine.runner import Chunk, Rows, Stage
from bimo.engine.torch_runner import TorchRunner
from bimo.engine.tracing import TracedEngine

GREEDY = SamplingParams(max_tokens=5, temperature=0)


class Telling(TorchRunner):
    """A runner that tells its stages."""

    told: list[Stage]

    def logits(self, chunks: Sequence[Chunk]) -> Rows:
        start = time.perf_counter_ns()
        found = super().logits(chunks)
        self.told = [Stage("attention", 1, start, time.perf_counter_ns())]
        return found

    def trace(self) -> Sequence[Stage]:
        told, self.told = getattr(self, "told", []), []
        return told


@pytest.fixture(scope="module")
def small(spec: ModelSpec, tokenizer: Tokenizer) -> LM:
    return new(spec, tokenizer, seed=3)


def events(engine: TracedEngine, path: Path) -> list[dict]:
    engine.trace.save(path)
    return json.loads(path.read_text())["traceEvents"]


def test_each_step_has_its_phases_in_order(small: LM, tmp_path: Path) -> None:
    engine = TracedEngine(small, settings=EngineSettings(backend="torch"))
    texts = [answer.tokens for answer in engine.generate(["the cat", "a mat and"], GREEDY)]
    found = [event for event in events(engine, tmp_path / "trace.json") if event["ph"] == "X"]
    steps = [event for event in found if event["name"] == "step"]
    assert len(steps) == 5, "one for the prompts and the first token, four for the others"
    for step in steps:
        inside = [e for e in found if e is not step and step["ts"] <= e["ts"] < step["ts"] + step["dur"]]
        assert [e["name"] for e in inside] == ["schedule", "run", "sample", "publish"]
        assert sum(e["dur"] for e in inside) == pytest.approx(step["dur"], rel=0.2), "they make up the step"
    runs = [event["args"] for event in found if event["name"] == "run"]
    assert runs[1] == {"sequences": 2, "tokens": 2, "outputs": 2}
    plain = Engine(small, settings=EngineSettings(backend="torch")).generate(["the cat", "a mat and"], GREEDY)
    assert texts == [answer.tokens for answer in plain], "a traced engine writes the same"


def test_stages_of_a_runner_stand_in_threads_of_their_own(small: LM, tmp_path: Path) -> None:
    runner = Telling(small.model, EngineSettings())
    engine = TracedEngine(small, runner=runner)
    engine.complete("the cat", GREEDY)
    found = events(engine, tmp_path / "trace.json")
    names = {event["args"]["name"]: event["tid"] for event in found if event["ph"] == "M"}
    stages = [event for event in found if event["name"] == "attention"]
    assert set(names) == {"engine", "thread 1"}
    assert len(stages) == 5, "one for each step"
    assert all(stage["tid"] == names["thread 1"] for stage in stages)


def test_a_step_with_nothing_to_run_is_recorded(small: LM, tmp_path: Path) -> None:
    engine = TracedEngine(small, settings=EngineSettings(backend="torch"))
    assert not engine.step()
    assert [e["name"] for e in events(engine, tmp_path / "trace.json")] == ["thread_name", "step"]
