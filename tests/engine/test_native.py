"""The native runner says what the model says, with the same bits whatever else it does; and it says when it cannot."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from engine.test_torch_runner import SMALL, SPECS
from hypothesis import given, settings
from hypothesis import strategies as st
from model.test_lora import adapter_of
from torch import Tensor
from torch import from_numpy as as_tensor

from bimo import GPT, LM, Engine, SamplingParams, UserError
from bimo.core.spec import RopeScaling
from bimo.engine.choosing import choose_runner
from bimo.engine.kernels import load_kernels
from bimo.engine.kernels.library import instruction_sets
from bimo.engine.native import NativeRunner
from bimo.engine.native_model import reason_against
from bimo.engine.runner import Chunk
from bimo.engine.settings import EngineSettings
from bimo.model.blocks import quantize
from bimo.model.formats import FORMATS
from bimo.model.lora import merge
from bimo.model.packed import PackedTensor, unpack

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the kernels were not compiled")
SETTINGS = EngineSettings(cache_tokens=1024, block_size=16)
NATIVE = {name: spec for name, spec in SPECS.items() if not spec.n_experts and spec.rope_scaling.kind != "longrope"}


def model_of(spec: object, seed: int = 0) -> GPT:
    model = GPT(spec).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.7, generator=generator)
    return model


def runner_of(model: GPT, threads: int = 2, **options: object) -> NativeRunner:
    return NativeRunner(model, replace(SETTINGS, **options), load_kernels(threads))


def ids_of(model: GPT, length: int, seed: int = 1) -> list[int]:
    return torch.randint(model.spec.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def read(
    runner: NativeRunner, ids: Sequence[int], cuts: Sequence[int], blocks: Sequence[int], adapter: int = 0
) -> Tensor:
    """Logits of a text that is read in pieces, (T, V)."""
    places = [0, *cuts, len(ids)]
    pieces = [(a, b) for a, b in itertools.pairwise(places) if b > a]
    return torch.cat([as_tensor(runner.logits([Chunk(ids[a:b], a, blocks, b - a, adapter)])) for a, b in pieces])


def packed(model: GPT, format: str) -> GPT:
    """The model with matrices as blocks, where they fit."""
    done: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dim() == 2 and parameter.shape[1] % FORMATS[format].block_size == 0:
                rows = quantize(parameter.data, FORMATS[format])
                tensor = PackedTensor(rows, FORMATS[format], parameter.shape[1])
                module._parameters[name] = done.setdefault(
                    id(parameter), torch.nn.Parameter(tensor, requires_grad=False)
                )
    return model


@pytest.mark.parametrize("name", NATIVE)
def test_logits_of_every_kind_of_model(name: str) -> None:
    model = model_of(NATIVE[name])
    ids = ids_of(model, 80)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    found = read(runner_of(model), ids, [33, 34, 50], [9, 3, 11, 4, 0])
    assert (found - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max())), "as the model"


@pytest.mark.parametrize(
    ("format", "biased", "expected"),
    [("", False, "float32"), ("Q8_0", False, "float16"), ("Q4_0", False, "int8"), ("Q4_0", True, "float16")],
)
def test_the_cache_is_as_coarse_as_the_weights(format: str, biased: bool, expected: str) -> None:
    spec = replace(SMALL, d_model=64, d_ff=64, n_heads=4, n_kv_heads=2, head_dim=16, biases="qkv" if biased else "none")
    model = model_of(spec)
    assert runner_of(packed(model, format) if format else model).cache_dtype == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_two_bytes_are_computed_with_where_they_lie(dtype: torch.dtype) -> None:
    model = model_of(SMALL).to(dtype)
    ids = ids_of(model, 40)
    runner = runner_of(model, cache_dtype="float32")
    assert runner.native.struct.head.data == model.lm_head.weight.data_ptr(), "no copy"
    with torch.no_grad():
        expected = model.float()(torch.tensor([ids]))[0]
    assert (read(runner, ids, [], [0, 1, 2]) - expected).abs().max() < 1e-3, "exact but for the order of sums"


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q4_K"])
def test_block_formats_differ_by_rounded_activations_only(format: str) -> None:
    spec = replace(SMALL, d_model=256, d_ff=512, n_heads=8, head_dim=32, n_kv_heads=4)
    model = packed(GPT(spec).eval(), format)
    runner, ids = runner_of(model), ids_of(model, 50)
    found = read(runner, ids, [20], [4, 2, 0, 1])
    with torch.no_grad():
        expected = unpack(model)(torch.tensor([ids]))[0]
    error = (found - expected).norm() / expected.norm()
    assert error < 0.03, f"eight bits of activations cost {error:.4f}"
    assert found.argmax(-1).eq(expected.argmax(-1)).float().mean() > 0.8, "mostly the same likeliest token"


def test_five_bits_are_widened_exactly() -> None:
    rows = torch.randint(256, (4, 22 * 2), dtype=torch.uint8)
    rows[:, [1, 23]] = 40  # ordinary scales
    from bimo.engine.native_model import _widened
    from bimo.model.blocks import dequantize

    assert torch.equal(dequantize(_widened(rows), FORMATS["Q8_0"]), dequantize(rows, FORMATS["Q5_0"])), "same numbers"


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 89), max_size=6),
    threads=st.integers(1, 4),
    format=st.sampled_from(["", "Q8_0", "Q4_0"]),
)
def test_same_bits_however_a_text_is_cut_and_by_any_number_of_threads(
    cuts: list[int], threads: int, format: str
) -> None:
    model = model_of(SMALL)
    if format:
        packed(model, format)
    ids = ids_of(model, 90)
    whole = read(runner_of(model, 1), ids, [], [0, 1, 2, 3, 4, 5])
    cut = read(runner_of(model, threads), ids, sorted(cuts), [5, 7, 1, 3, 0, 2])
    assert torch.equal(whole, cut), "bit for bit"


@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
def test_same_bits_alone_and_among_others(cache: str) -> None:
    model = packed(model_of(SMALL), "Q8_0")
    texts = [ids_of(model, 5 + 7 * i, seed=i) for i in range(9)]
    runner = runner_of(model, cache_dtype=cache)
    tables = [[6 * i + j for j in range(6)] for i in range(9)]
    together = as_tensor(runner.logits([Chunk(text, 0, table, 1) for text, table in zip(texts, tables, strict=True)]))
    for text, table, row in zip(texts, tables, together, strict=True):
        assert torch.equal(as_tensor(runner_of(model, cache_dtype=cache).logits([Chunk(text, 0, table, 1)]))[0], row), (
            "a batch changes nothing"
        )


def test_what_lies_in_a_block_before_does_not_matter() -> None:
    model = model_of(SMALL)
    ids, runner = ids_of(model, 20), runner_of(model)
    clean = read(runner, ids, [9], [0, 1])
    runner._memory[:] = 255  # NaN everywhere, as a broken request may have left it
    assert torch.equal(read(runner, ids, [9], [0, 1]), clean), "only what was written is read"


def test_long_texts_are_joined_from_splits() -> None:
    model = model_of(replace(SMALL, context_length=1500))
    ids, runner = ids_of(model, 1400), runner_of(model, cache_tokens=2048)
    found = read(runner, ids, [700, 1399], list(range(88)))
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    assert (found[-300:] - expected[-300:]).abs().max() < 1e-4 * float(expected.abs().max()), "over several splits"


def test_adapters_row_by_row_equal_merged_models() -> None:
    model = model_of(SMALL)
    adapters = [adapter_of(model, "one", 3, seed=1), adapter_of(model, "two", 5, seed=2)]
    runner = NativeRunner(model, SETTINGS, load_kernels(2), adapters)
    texts = [ids_of(model, 20, seed=i) for i in range(3)]
    chunks = [Chunk(text, 0, [2 * i, 2 * i + 1], 20, adapter=i) for i, text in enumerate(texts)]
    found = as_tensor(runner.logits(chunks)).split(20)
    for number, text in enumerate(texts):
        alone = model_of(SMALL)
        if number:
            merge(alone, adapters[number - 1])
        with torch.no_grad():
            expected = alone(torch.tensor([text]))[0]
        assert (found[number] - expected).abs().max() < 1e-4 * float(expected.abs().max()), f"adapter {number}"
    assert not torch.equal(found[1], as_tensor(runner.logits([replace_adapter(chunks[1], 0)]))), (
        "they do change something"
    )


def replace_adapter(chunk: Chunk, adapter: int) -> Chunk:
    return Chunk(chunk.tokens, chunk.start, chunk.blocks, chunk.n_outputs, adapter)


def test_hidden_states_are_those_after_the_norm() -> None:
    model = model_of(SMALL)
    ids = ids_of(model, 12)
    with torch.no_grad():
        expected = model.hidden(torch.tensor([ids]))[0]
    assert torch.allclose(as_tensor(runner_of(model).hidden([Chunk(ids, 0, [3], 12)])), expected, atol=1e-5), (
        "what heads read"
    )


def test_copied_block_holds_the_same_text() -> None:
    model = model_of(SMALL)
    ids, runner = ids_of(model, 17), runner_of(model)
    runner.logits([Chunk(ids[:16], 0, [5])])
    runner.copy_block(5, 8)
    a, b = (as_tensor(runner.logits([Chunk(ids[16:], 16, [block, 9])])) for block in (5, 8))
    assert torch.equal(a, b), "all layers were copied"


def test_a_forked_process_has_threads_of_its_own() -> None:
    model = model_of(SMALL)
    ids, runner = ids_of(model, 12), runner_of(model)
    expected = as_tensor(runner.logits([Chunk(ids, 0, [0])]))
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(as_tensor(runner.logits([Chunk(ids, 0, [1])])), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0, "it does not wait for threads that it does not have"


def hooked(model: GPT) -> GPT:
    model.layers[1].register_forward_hook(lambda *_: None)
    return model


LONGROPE = RopeScaling("longrope", original_context=30, short_factors=(1.0,) * 4, long_factors=(2.0,) * 4)
AGAINST: dict[str, tuple[Callable[[], GPT], str]] = {
    "experts": (lambda: GPT(replace(SMALL, n_experts=4)), "MixtureOfExperts"),
    "longrope": (lambda: GPT(replace(SMALL, rope_scaling=LONGROPE)), "longrope"),
    "float64": (lambda: GPT(SMALL).double(), "float64"),
    "hooks": (lambda: hooked(GPT(SMALL)), "hook"),
}


@pytest.mark.parametrize("name", AGAINST)
def test_what_cannot_be_run_goes_to_torch_and_the_reason_is_said(name: str) -> None:
    make, reason = AGAINST[name]
    model = make().eval()
    assert reason in reason_against(model), "why not"
    assert reason in choose_runner(model, SETTINGS).name, "the runner tells"
    with pytest.raises(UserError, match="native"):
        choose_runner(model, replace(SETTINGS, backend="native"))


def test_greedy_text_is_the_same_natively_and_in_torch(lm: LM) -> None:
    prompts = ["the cat", "一只", "der Hund schlief", "and"]
    greedy = SamplingParams(max_tokens=40, temperature=0)
    native, plain = (
        Engine(lm, settings=EngineSettings(backend=backend, cache_tokens=1024))
        for backend in ("native", "torch")  # type: ignore[arg-type]
    )
    ours, theirs = (engine.generate(prompts, greedy) for engine in (native, plain))
    assert [a.text for a in ours] == [b.text for b in theirs], "without a compiler the same text comes, slower"


def test_a_trace_holds_each_stage_of_each_thread() -> None:
    model = model_of(SMALL)
    runner = runner_of(model, 2)
    runner.trace()
    runner.logits([Chunk(ids_of(model, 9), 0, [0])])
    stages = runner.trace()
    assert len(stages) == 2 * (2 + 6 * SMALL.n_layers), "embed and output once, six stages in each layer"
    assert {stage.thread for stage in stages} == {0, 1}, "both threads"
    assert all(0 <= stage.start_ns <= stage.end_ns for stage in stages), "in order"
    assert not runner.trace(), "what was fetched is forgotten"
