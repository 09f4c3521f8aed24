"""What an engine says to wrong input, damaged weights and unlucky moments: one sentence, and it goes on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine.test_native import model_of, packed
from engine.test_torch_runner import SMALL
from model.test_lora import adapter_of

from bimo import GPT, Engine, ModelSpec, SamplingParams, Tokenizer, UserError
from bimo.engine import EngineSettings
from bimo.engine.kernels import Kernels, load_kernels
from bimo.engine.kernels.library import _library, instruction_sets
from bimo.engine.runner import Chunk

GREEDY = SamplingParams(max_tokens=6, temperature=0)
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
needs_kernels = pytest.mark.skipif(not instruction_sets(), reason="the kernels were not compiled")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(model_of(SMALL), settings=EngineSettings(cache_tokens=512))


@pytest.mark.parametrize("prompts", [None, 5, [None], [["a"]], [[1.5]], [1, "a"], [np.array([0.5])]])
def test_a_prompt_that_is_neither_text_nor_ids_is_refused(engine: Engine, prompts: Any) -> None:
    with pytest.raises(UserError, match=r"texts or ids|a text, or ids"):
        engine.generate(prompts, GREEDY)


@pytest.mark.parametrize("ids", [np.array([1, 2, 3]), torch.tensor([1, 2, 3]), (1, 2, 3), [np.array([1, 2, 3])]])
def test_ids_may_be_an_array(engine: Engine, ids: Any) -> None:
    assert engine.generate(ids, GREEDY)[0].tokens == engine.generate([[1, 2, 3]], GREEDY)[0].tokens


@pytest.mark.parametrize("params", [{"max_tokens": 3}, [3], 5])
def test_parameters_of_another_kind_are_refused(engine: Engine, params: Any) -> None:
    with pytest.raises(UserError, match="params must be SamplingParams"):
        engine.generate([[1]], params)


def test_a_text_in_place_of_a_list_is_refused(tokenizer: Tokenizer) -> None:
    engine = Engine(model_of(replace(SMALL, vocab_size=tokenizer.vocab_size)), tokenizer)
    calls: dict[str, Callable[[], Any]] = {
        "texts": lambda: engine.score("the cat"),
        "contexts": lambda: engine.score(["a"], "b"),
        "labels": lambda: engine.classify(["the"], "ab"),
    }
    for name, call in calls.items():
        with pytest.raises(UserError, match=f"{name} must be a list of texts"):
            call()
    with pytest.raises(UserError, match="2 texts and 1 contexts"):
        engine.score(["a", "b"], ["c"])
    with pytest.raises(UserError, match="pooling must be mean or last, is 'max'"):
        engine.embed(["a"], pooling="max")  # type: ignore[arg-type]
    assert np.array_equal(engine.embed("the cat"), engine.embed(["the cat"])), "one text is one vector"


def test_a_tokenizer_may_have_more_ids_than_the_model(tokenizer: Tokenizer) -> None:
    engine = Engine(model_of(replace(SMALL, vocab_size=tokenizer.vocab_size - 60)), tokenizer)
    assert max(tokenizer.end_ids) >= engine.model.spec.vocab_size, "its end is beyond"
    assert engine.complete([1, 2], replace(GREEDY, min_tokens=3)).n_tokens == 6


@pytest.mark.parametrize("options", [{"n": 10**9}, {"beams": 10**9}])
def test_a_request_has_a_bounded_number_of_answers(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"must lie in 1 … 1024"):
        SamplingParams(**options)  # type: ignore[arg-type]


def test_numbers_of_more_than_32_bits_reach_the_kernels_unharmed(engine: Engine) -> None:
    drawn = SamplingParams(max_tokens=6, temperature=1.0, seed=3)
    text = engine.generate([[1]], drawn)[0].tokens
    assert engine.generate([[1]], replace(drawn, top_k=2**32 + 1))[0].tokens == text, "no limit"
    assert engine.generate([[1]], replace(drawn, temperature=1e300))[0].n_tokens == 6
    with pytest.raises(UserError, match="threads must be at most 1024"):
        EngineSettings(threads=2**32 + 1)


@pytest.fixture
def each_instruction_set(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    yield instruction_sets()
    monkeypatch.undo()
    load_kernels.cache_clear()


@needs_kernels
@pytest.mark.parametrize("cache", ["float32", "int8"])
def test_a_single_nan_in_any_matrix_reaches_the_logits(
    cache: Any, each_instruction_set: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in each_instruction_set:
        monkeypatch.setenv("BIMO_INSTRUCTION_SET", name)
        load_kernels.cache_clear()
        for format, matrix in [(format, matrix) for format in ("", "Q8_0") for matrix in MATRICES]:
            model = model_of(replace(SMALL, d_model=64, d_ff=64, n_heads=4, n_kv_heads=2, head_dim=16))
            damage(packed(model, format) if format else model, matrix)
            engine = Engine(model, settings=EngineSettings(backend="native", cache_tokens=64, cache_dtype=cache))
            with pytest.raises(UserError, match="NaN or infinite"):
                engine.complete([1, 2, 3, 4, 5], replace(GREEDY, max_tokens=2))


def damage(model: GPT, matrix: str) -> None:
    """NaN in one row of a matrix of the first layer."""
    weight: Any = next(m.weight for path, m in model.named_modules() if path.endswith(f"layers.0.mlp.{matrix}") or
                       path.endswith(f"layers.0.self_attn.{matrix}"))  # fmt: skip
    if hasattr(weight, "rows"):
        weight.rows[3, :2] = torch.tensor([0xFF, 0x7F], dtype=torch.uint8)  # the scale of its first block
    else:
        weight.data[3, 1] = float("nan")


def test_damaged_weights_give_no_vectors() -> None:
    model = model_of(SMALL)
    model.norm.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="states are NaN or infinite"):
        Engine(model).embed([[1, 2, 3]])


def test_a_damaged_draft_model_guesses_nothing() -> None:
    model, draft = model_of(SMALL), model_of(SMALL, seed=1)
    draft.norm.weight.data[0] = float("nan")
    guessed = Engine(model, draft=draft).generate([[1, 2], [3]], GREEDY)
    assert [c.tokens for c in guessed] == [c.tokens for c in Engine(model).generate([[1, 2], [3]], GREEDY)]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_adapters_that_do_not_fit_are_refused(backend: Any) -> None:
    if backend == "native" and not instruction_sets():
        pytest.skip("the kernels were not compiled")
    model, settings = model_of(SMALL), EngineSettings(backend=backend)
    twice = [adapter_of(model, "one", 2, seed) for seed in (1, 2)]
    with pytest.raises(UserError, match="two adapters are called 'one'"):
        Engine(model, settings=settings, adapters=twice)
    other = model_of(replace(SMALL, d_ff=SMALL.d_ff + 32))
    with pytest.raises(UserError, match="has matrices of"):
        Engine(model, settings=settings, adapters=[adapter_of(other, "wide", 2, 1, only="layers.0.mlp")])


def test_who_arrives_and_is_given_up_while_others_are_taken_in(engine: Engine) -> None:
    late = engine.request([1, 2], GREEDY)

    class Arriving(type(engine._arrived)):  # type: ignore[misc]
        """At the moment when the last arrival was seen, another comes and is given up at once."""

        come = False

        def __bool__(self) -> bool:
            if not len(self) and not self.come:
                self.come = True
                job = engine.intake.job(late)
                engine.jobs[late.id] = job
                engine._cancelled.append(late.id)
                self.append(job)
                return False
            return len(self) > 0

    ordinary, engine._arrived = engine._arrived, Arriving()
    try:
        assert engine.generate([[5, 6]], GREEDY)[0].n_tokens == 6
    finally:
        engine._arrived = ordinary
    while engine.jobs:
        engine.step()
    assert [*engine.scheduler.waiting, *engine.scheduler.running] == [], "nobody is left behind"
    assert engine.pool.n_free == engine.pool.n_blocks


@needs_kernels
def test_threads_that_start_together_get_the_same_machine() -> None:
    for _ in range(10):
        kernels, meeting, found = Kernels(_library(), 0, 2), threading.Barrier(6), []

        def ask(kernels: Kernels = kernels, meeting: threading.Barrier = meeting, found: list[int] = found) -> None:
            meeting.wait()
            found.append(kernels.machine)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(found) == {kernels.machine} != {0}, "one machine, and nobody sees it half made"


_FEW_THREADS = """
import resource
from pathlib import Path
from bimo.engine.kernels.library import Kernels, NoKernelsError, _library
library = _library()
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 2**28,) * 2)
try:
    print(Kernels(library, 0, 1000).machine)
except NoKernelsError as error:
    print(error)
"""


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_a_system_without_threads_is_an_error_and_no_end_of_the_program() -> None:
    done = subprocess.run([sys.executable, "-c", _FEW_THREADS], capture_output=True, text=True, timeout=60)
    assert "no memory or no threads for 1000 threads" in done.stdout, done.stderr[-2000:]


def test_a_stream_starts_a_thread_where_the_last_one_is_gone(engine: Engine) -> None:
    """A forked process finds its parent's thread, which does not run there."""
    expected = engine.complete([1, 2], GREEDY).text
    kept = threading.Thread(target=lambda: None)
    kept.start()
    kept.join()
    engine._driver = kept

    async def text() -> list[str]:
        return [piece async for piece in engine.astream([1, 2], GREEDY)]

    assert "".join(asyncio.run(asyncio.wait_for(text(), 20))) == expected, "it is not waited for in vain"
    engine._driver = None


@needs_kernels
def test_long_contexts_take_turns_with_the_same_bits() -> None:
    """Attention's partial results are kept for 64 MB at a time; these need some 80."""
    spec = ModelSpec(vocab_size=11, context_length=4096, n_layers=1, d_model=32, n_heads=16, n_kv_heads=16, head_dim=32,
                     d_ff=32)  # fmt: skip
    model = model_of(spec)
    ids = torch.randint(11, (4096,), generator=torch.Generator().manual_seed(1)).tolist()
    found = []
    for size in (4096, 512):
        runner = Engine(model, settings=EngineSettings(backend="native", cache_tokens=4096, threads=2)).runner
        pieces = range(0, 4096, size)
        found.append([runner.logits([Chunk(ids[i : i + size], i, list(range(256)), 16)]) for i in pieces][-1])
    assert np.array_equal(*found)
