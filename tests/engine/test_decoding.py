"""Decode steps of fixed shapes say what other steps say, whatever rows fill them up; recording is tested on GPUs."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from engine.test_torch_runner import MODELS, SMALL, SPECS, Halved, Texts, make
from torch import Tensor, nn
from torch import from_numpy as as_tensor

from bimo import Engine, EngineSettings, SamplingParams
from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES
from bimo.engine import decoding
from bimo.engine.runner import Chunk
from bimo.engine.torch_runner import TorchRunner
from bimo.model.gpt import GPT
from bimo.model.joining import join
from bimo.model.packed import twin

PLAIN = [name for name, spec in SPECS.items() if not spec.n_experts and spec.rope_scaling.kind != "longrope"]
GREEDY = SamplingParams(max_tokens=12, temperature=0, min_tokens=12)


def runner_of(model: GPT, **options: object) -> TorchRunner:
    """A runner of steps with fixed shapes, whose cache is full of what must never be looked at."""
    told = {"decode": "static", "cache_tokens": 16 * 64, **options}
    runner = TorchRunner(model, EngineSettings(**told))  # type: ignore[arg-type]  # by name
    for tensor in (runner.cache.keys, runner.cache.values):
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    return runner


def static(runner: TorchRunner) -> decoding.Decoder:
    assert runner.decoder is not None, runner.name
    return runner.decoder


@pytest.mark.parametrize("name", PLAIN)
def test_steps_of_fixed_shapes_equal_the_whole_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_SHORTEST", 32)  # so that lengths pass from one shape to the next
    runner = runner_of(copy.deepcopy(MODELS[name]))
    texts = Texts(runner, [60, 33, 18, 1, 47], seed=3)
    texts.step([30, 31, 16, 1, 0])
    texts.finish()
    assert texts.difference() < 1e-4, "whatever rows fill the step up"
    assert len(static(runner)._steps) >= 4, "several numbers of rows and lengths came up"


def test_the_rows_that_fill_a_step_up_write_to_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def difference(scratch: int | None) -> float:
        runner = runner_of(copy.deepcopy(MODELS["qwen3"]))
        if scratch is not None:
            static(runner).scratch = scratch
        texts = Texts(runner, [40, 40, 40])
        texts.blocks = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
        texts.step([20, 20, 20])
        texts.finish()
        return texts.difference()

    assert difference(None) < 1e-4, "they have a block of their own"
    assert not difference(3) < 1e-2, "the control: they write into a block of the second text"


def test_no_row_looks_behind_its_own_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_of(copy.deepcopy(MODELS["gemma3"]))
    ids = list(range(20))
    for start in (0, 2, 4):
        runner.logits([Chunk(ids, 0, [start, start + 1])])
    runner.cache.values[:, 16 * 2 : 16 * 4] = float("nan")
    whole, broken, other = as_tensor(runner.logits([Chunk([7], 20, [2 * n, 2 * n + 1]) for n in range(3)]))
    assert broken.isnan().all(), "the control: it is broken"
    with torch.no_grad():
        expected = runner.model(torch.tensor([[*ids, 7]]))[0, -1]
    for row in (whole, other):
        assert torch.allclose(row, expected, atol=1e-4), "a text of broken numbers does not spoil its neighbours"


def test_numbers_of_rows_are_powers_of_two_and_lengths_double_up_to_the_context() -> None:
    runner = runner_of(copy.deepcopy(make(replace(SMALL, context_length=1000, n_layers=1))), cache_tokens=2000)
    shape = static(runner).shape
    assert [shape(n, 1)[0] for n in (1, 2, 3, 4, 5, 33, 64)] == [1, 2, 4, 4, 8, 64, 64]
    assert [shape(1, n)[1] * 16 for n in (1, 256, 257, 512, 513, 1000)] == [256, 256, 512, 512, 1008, 1008]


def test_more_rows_than_fit_a_step_run_in_parts() -> None:
    runner = runner_of(copy.deepcopy(MODELS["qwen3"]), max_running=3)
    texts = Texts(runner, [9, 12, 20, 30, 7, 16, 17])
    texts.finish()
    assert texts.difference() < 1e-4, "in order"
    assert max(rows for rows, _ in static(runner)._steps) == 4, "of three texts, filled up"


def test_wanted_outputs_of_mixed_steps_come_back_in_order() -> None:
    plain, fixed = (runner_of(copy.deepcopy(MODELS["qwen3"]), decode=way) for way in ("plain", "static"))
    first = [Chunk([5, 6, 7], 0, [0]), Chunk([8, 9], 0, [1])]
    mixed = [Chunk([1, 2, 3], 0, [2], 2), Chunk([3], 3, [0]), Chunk([4, 4], 0, [3], 0), Chunk([6], 2, [1])]
    for runner in (plain, fixed):
        runner.logits(first)
    assert torch.allclose(as_tensor(plain.logits(mixed)), as_tensor(fixed.logits(mixed)), atol=1e-5), "2 + 1 + 1 rows"


def tokens(model: GPT, prompts: list[list[int]], **options: object) -> list[tuple[int, ...]]:
    engine = Engine(model, None, EngineSettings(backend="torch", **options))  # type: ignore[arg-type]
    answers = engine.generate(prompts, GREEDY)
    return [answer.choices[0].tokens for answer in answers]


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gpt2"])
def test_texts_through_the_engine_are_those_of_plain_steps(name: str) -> None:
    shared = list(range(40))
    prompts = [[n, n + 1, 3] for n in range(5)] + [[*shared, n] for n in range(4)]
    model = MODELS[name]
    plain = tokens(model, prompts, decode="plain")
    assert tokens(copy.deepcopy(model), prompts, decode="static") == plain, "prompts that begin alike among them"
    small = tokens(copy.deepcopy(model), prompts, decode="static", cache_tokens=16 * 9)
    assert small == plain, "and where texts have to give up their blocks and are read again"


def test_a_cancelled_text_leaves_the_others_as_they_are() -> None:
    model = MODELS["qwen3"]
    engine = Engine(copy.deepcopy(model), None, EngineSettings(backend="torch", decode="static"))
    jobs = [engine.submit(engine.request([n, 2, 3], GREEDY)) for n in range(5)]
    for _ in range(4):
        engine.step()
    engine.cancel(jobs[1].request.id)
    while engine.step():
        pass
    kept = [job.result.choices[0].tokens for number, job in enumerate(jobs) if number != 1]
    assert kept == tokens(model, [[n, 2, 3] for n in (0, 2, 3, 4)], decode="plain")


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_smaller_caches_hold_the_same_numbers_in_both(dtype: str) -> None:
    found = []
    for way in ("plain", "static"):
        texts = Texts(runner_of(copy.deepcopy(MODELS["llama, untied"]), cache_dtype=dtype, decode=way), [40, 21])
        texts.step([20, 20])
        texts.finish()
        found.append(torch.cat([part for row in texts.logits for part in row]))
    assert torch.allclose(found[0], found[1], atol=1e-3)


def test_what_cannot_have_fixed_shapes_says_why_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRIES["attention"].registered, "halved", Halved)
    own = make(replace(SMALL, attention="halved"))
    hooked = copy.deepcopy(MODELS["qwen3"])
    hooked.layers[0].register_forward_hook(lambda module, inputs, output: output)
    cases = (own, "Halved"), (MODELS["mixtral"], "MixtureOfExperts"), (MODELS["phi3, longrope"], "longrope")
    for model, word in (*cases, (hooked, "hook")):
        runner = runner_of(model)
        assert runner.decoder is None, "they run as before"
        assert word in runner.name, "and it says why"
        texts = Texts(runner, [20])
        texts.finish()
        assert texts.difference() < 1e-4
    assert "graphs are CUDA's" in runner_of(MODELS["qwen3"], decode="graph").name, "not on a CPU"


def test_a_compiler_that_fails_is_done_without_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    runner = runner_of(copy.deepcopy(MODELS["qwen3"]), decode="compiled")
    texts = Texts(runner, [9, 12])
    with pytest.warns(UserWarning, match="no compiler here"):
        texts.finish()
    assert "not compiled (RuntimeError: no compiler here)" in runner.name
    assert texts.difference() < 1e-4, "the text goes on"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gpt2"])
def test_compiled_steps_say_the_same_and_layers_share_what_was_compiled(name: str) -> None:
    model = copy.deepcopy(MODELS[name])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    runner = runner_of(model, decode="compiled")
    texts = Texts(runner, [20, 33])
    texts.step([10, 20])
    texts.finish()
    assert texts.difference() < 1e-4
    assert static(runner).way == "compiled", runner.name
    shapes, kinds = len(static(runner)._steps), len({block.kind for block in model.blocks()})
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled <= shapes * (2 + kinds), "not one for each layer"


def test_joined_projections_are_views_of_one_matrix_and_hooks_are_kept() -> None:
    model = copy.deepcopy(MODELS["qwen2"])
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = model(ids)
        joined = join(model)
        attention = joined.layers[0].self_attn
        assert torch.allclose(joined(ids), before, atol=1e-5), "one product for three"
        assert torch.equal(model(ids), before), "the model itself computes as before"
        whole, parts = attention.q_proj.whole.weight, [attention.q_proj, attention.k_proj, attention.v_proj]
        assert whole.data_ptr() == parts[0].weight.data_ptr(), "nothing lies in memory twice"
        place = model.layers[0].self_attn.v_proj.weight.data_ptr()
        assert join(model).layers[0].self_attn.v_proj.weight.data_ptr() == place, "a second time, nothing moves"
        parts[2].register_forward_hook(lambda module, inputs, output: output * 0)
        hooked = joined(ids)
    assert not torch.allclose(hooked, before, atol=1e-3), "a hook on one of them counts"


def test_a_parameter_that_two_layers_share_is_not_moved() -> None:
    model = copy.deepcopy(MODELS["qwen3"])
    model.layers[1].self_attn.k_proj.weight = model.layers[0].self_attn.k_proj.weight
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = model(ids)
        joined = join(model)
        assert torch.allclose(joined(ids), before, atol=1e-5)
    assert joined.layers[1].self_attn.k_proj.weight is joined.layers[0].self_attn.k_proj.weight
    assert not hasattr(joined.layers[0].self_attn.q_proj, "whole"), "and not joined"


def words(model: GPT) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


WIDE = replace(SMALL, d_model=64, n_heads=4, head_dim=16, d_ff=96, tied_embeddings=False)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_dtype_is_the_engines_own_and_the_model_stays(dtype: str) -> None:
    model = make(WIDE)
    runner = TorchRunner(model, EngineSettings(dtype=dtype, cache_tokens=256))  # type: ignore[arg-type]
    assert set(words(model).values()) == {torch.float32}, "the model is as it was"
    assert set(words(runner.model).values()) == {getattr(torch, dtype)}
    assert runner.model.embed_positions.frequencies.dtype == torch.float32, "angles need them"
    row = as_tensor(runner.logits([Chunk([3, 4, 5], 0, [0])]))
    with torch.no_grad():
        expected: Tensor = twin(model).to(getattr(torch, dtype))(torch.tensor([[3, 4, 5]]))[0, -1:].float()
    assert torch.allclose(row, expected, atol=0.1 if dtype != "float32" else 1e-4)


@pytest.mark.parametrize("decode", ["plain", "static"])
@pytest.mark.parametrize(("dtype", "bound"), [("int8", 0.15), ("int4", 2.0)])
def test_packed_weights_give_the_logits_of_the_unpacked(dtype: str, bound: float, decode: str) -> None:
    model = make(WIDE)
    runner = runner_of(model, dtype=dtype, decode=decode)
    assert not any(isinstance(module, (nn.Linear, nn.Embedding)) for module in runner.model.modules()), "all are packed"
    texts = Texts(runner, [20, 9])
    texts.step([10, 5])
    texts.finish()
    assert texts.difference() < 1e-4, "as the packed model itself"
    assert 0 < texts.difference([model, model]) < bound, "and near the one it was"


def test_what_does_not_go_together_is_said_in_words() -> None:
    from model.test_lora import adapter_of

    model = make(WIDE)
    with pytest.raises(UserError, match="adapters do not go with dtype=int8"):
        TorchRunner(model, EngineSettings(dtype="int8", cache_tokens=256), [adapter_of(model, "a", 3, seed=1)])
    engine = Engine(model, None, EngineSettings(backend="torch", dtype="int4", cache_tokens=256))
    with pytest.raises(UserError, match=r"adapters do not go with packed weights.*Start the engine with dtype"):
        engine.add_adapter(adapter_of(model, "a", 3, seed=1))
    with pytest.raises(UserError, match="no device 'gpu'"):
        TorchRunner(model, EngineSettings(device="gpu", cache_tokens=256))
    with pytest.raises(UserError, match=r"cannot run this model: dtype is int4"):
        Engine(model, None, EngineSettings(backend="native", dtype="int4"))
