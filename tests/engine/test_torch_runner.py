"""The torch runner says what the model says, however a text is cut into steps and wherever its blocks lie."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model.test_lora import adapter_of
from torch import Tensor
from torch import from_numpy as as_tensor

from bimo import GPT, ModelSpec
from bimo.core.registry import REGISTRIES
from bimo.core.spec import RopeScaling
from bimo.engine.runner import Chunk
from bimo.engine.settings import EngineSettings
from bimo.engine.torch_runner import TorchRunner
from bimo.model.attention import Attention
from bimo.model.backends import AttnContext
from bimo.model.blocks import quantize
from bimo.model.formats import FORMATS
from bimo.model.lora import merge
from bimo.model.packed import PackedTensor

SMALL = ModelSpec(vocab_size=151, context_length=96, n_layers=3, d_model=32, n_heads=4, n_kv_heads=2, head_dim=8)
GEMMA = {"norm": "rmsnorm_1p", "norm_placement": "sandwich", "embedding_scale": 5.6, "feedforward": "geglu"}
LONGROPE = RopeScaling(
    "longrope",
    original_context=30,
    attention_factor=1.2,
    short_factors=(1.0, 1.1, 1.2, 1.3),
    long_factors=(1.0, 2.0, 3.0, 4.0),
)
SPECS = {
    "qwen3": SMALL,
    "llama, untied": replace(SMALL, qk_norm=False, tied_embeddings=False),
    "qwen2": replace(SMALL, qk_norm=False, biases="qkv"),
    "gpt2": replace(
        SMALL, n_kv_heads=4, norm="layernorm", feedforward="gelu", positions="learned", biases="all", qk_norm=False
    ),
    "neox": replace(
        SMALL,
        n_kv_heads=4,
        norm="layernorm",
        feedforward="gelu_erf",
        rotary_dim=2,
        parallel_blocks=True,
        biases="all",
        qk_norm=False,
    ),
    "olmo2": replace(SMALL, qk_norm_across_heads=True, norm_placement="post"),
    "mistral": replace(SMALL, window=7, qk_norm=False),
    "gemma2": replace(
        SMALL, **GEMMA, qk_norm=False, attention_softcap=0.7, logit_softcap=1.5, window=6, full_layers=(1,)
    ),
    "gemma3": replace(SMALL, **GEMMA, window=6, full_layers=(2,), rope_theta=1e6, window_rope_theta=1e4),
    "smollm3": replace(SMALL, unrotated_layers=(1,)),
    "no positions": replace(SMALL, positions="none"),
    "phi3, longrope": replace(SMALL, rope_scaling=LONGROPE, qk_norm=False),
    "phi3, longrope, window": replace(SMALL, rope_scaling=LONGROPE, qk_norm=False, window=5),
    "mixtral": replace(SMALL, n_experts=5, n_experts_per_token=2, d_expert=24, qk_norm=False),
    "qwen3 moe": replace(SMALL, n_experts=6, n_experts_per_token=3, d_expert=24, dense_layers=(0,)),
}


def make(spec: ModelSpec, seed: int = 0) -> GPT:
    """A model with weights far enough from their start that every part matters."""
    torch.manual_seed(seed)
    model = GPT(spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


MODELS = {name: make(spec) for name, spec in SPECS.items()}


class Texts:
    """Random texts with shuffled blocks of a runner, read in any pieces."""

    def __init__(self, runner: TorchRunner, lengths: list[int], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        vocab = runner.model.spec.vocab_size
        self.runner = runner
        self.ids = [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]
        free = torch.randperm(runner.n_blocks, generator=generator).tolist()
        size = runner.block_size
        self.blocks = [[free.pop() for _ in range(-(-n // size))] for n in lengths]
        self.read = [0] * len(lengths)
        self.logits: list[list[Tensor]] = [[] for _ in lengths]

    def step(self, counts: list[int], adapters: list[int] | None = None) -> None:
        """Read so many tokens of each text, all outputs wanted."""
        chunks, rows = [], []
        for row, count in enumerate(counts):
            ids, start = self.ids[row], self.read[row]
            count = min(count, len(ids) - start)
            if count:
                adapter = adapters[row] if adapters else 0
                chunks.append(Chunk(ids[start : start + count], start, self.blocks[row], count, adapter))
                rows.append(row)
                self.read[row] += count
        parts = as_tensor(self.runner.logits(chunks)).split([chunk.n_outputs for chunk in chunks]) if chunks else ()
        for row, part in zip(rows, parts, strict=True):
            self.logits[row].append(part)

    def finish(self) -> None:
        while any(read < len(ids) for read, ids in zip(self.read, self.ids, strict=True)):
            self.step([1] * len(self.ids))

    def difference(self, models: list[GPT] | None = None) -> float:
        """The largest difference from the model's own logits for the whole texts."""
        largest = 0.0
        for row, ids in enumerate(self.ids):
            model = models[row] if models else self.runner.model
            with torch.no_grad():
                expected = model(torch.tensor([ids]))[0]
            largest = max(largest, float((torch.cat(self.logits[row]) - expected).abs().max()))
        return largest


def runner_of(model: GPT, **options: object) -> TorchRunner:
    """A runner whose cache is full of what must never be looked at."""
    runner = TorchRunner(model, EngineSettings(cache_tokens=16 * 64, **options))  # type: ignore[arg-type]  # by name
    for tensor in (runner.cache.keys, runner.cache.values, runner.cache.key_scales, runner.cache.value_scales):
        if tensor is not None and tensor.is_floating_point():
            tensor.fill_(float("nan"))
    return runner


@pytest.mark.parametrize("name", SPECS)
def test_ragged_steps_equal_the_whole_text(name: str) -> None:
    @given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5), data=st.data())
    @settings(max_examples=8, deadline=None)
    def check(lengths: list[int], data: st.DataObject) -> None:
        texts = Texts(runner_of(MODELS[name]), lengths, seed=sum(lengths))
        stretched = [MODELS[name].embed_positions.stretch(n) for n in lengths]
        texts.step([n if s else data.draw(st.integers(0, n)) for n, s in zip(lengths, stretched, strict=True)])
        for _ in range(data.draw(st.integers(0, 4))):
            texts.step([data.draw(st.integers(0, 20)) for _ in lengths])
        texts.finish()
        assert texts.difference() < 1e-4, "a text must not notice how it is read, or with whom"

    check()


@pytest.mark.parametrize("name", ["qwen3", "llama, untied", "qwen3 moe"])
def test_adapters_of_several_rows_equal_merged_models(name: str) -> None:
    model = MODELS[name]
    adapters = [adapter_of(model, "a", 3, seed=1), adapter_of(model, "b", 2, seed=2)]
    merged = [model, *(merge(copy.deepcopy(model), adapter) for adapter in adapters)]
    runner = TorchRunner(model, EngineSettings(cache_tokens=16 * 64), adapters)
    texts = Texts(runner, [20, 31, 20, 40, 12])
    numbers = [1, 0, 2, 2, 1]
    texts.step([10, 10, 20, 30, 1], numbers)
    while any(read < len(ids) for read, ids in zip(texts.read, texts.ids, strict=True)):
        texts.step([1] * 5, numbers)
    assert texts.difference([merged[number] for number in numbers]) < 1e-4, "each row has its own adapter"
    assert texts.difference() > 1e-2, "the control: adapters change the model"


def test_a_text_that_outgrows_longrope_is_read_again() -> None:
    runner = runner_of(MODELS["phi3, longrope"])
    assert [runner.stretch(n) for n in (1, 30, 31)] == [0, 0, 1], "the frequencies change behind the original context"
    texts = Texts(runner, [40])
    texts.step([30])
    short = texts.logits[0].pop()
    with torch.no_grad():
        expected = runner.model(torch.tensor([texts.ids[0][:30]]))[0]
    assert torch.allclose(short, expected, atol=1e-4), "short texts have short frequencies"
    texts.read = [0]
    texts.step([31])
    texts.finish()
    assert texts.difference() < 1e-4, "long ones have long frequencies from the first token on"


def test_a_lone_row_whose_blocks_follow_each_other_is_read_in_place() -> None:
    for name in ("qwen3", "gemma3"):
        runner = runner_of(MODELS[name])
        texts = Texts(runner, [70])
        texts.blocks = [list(range(7, 12))]
        texts.step([33])
        texts.finish()
        assert texts.difference() < 1e-4, "without copies, and the same"


def test_only_wanted_outputs_come_back_in_order() -> None:
    runner = runner_of(MODELS["qwen3"])
    model = runner.model
    texts, wanted = [torch.arange(n) + n for n in (9, 30, 1, 9)], (1, 3, 1, 0)
    tables = [[2 * i, 2 * i + 1] for i in range(4)]
    chunks = [Chunk(t.tolist(), 0, blocks, n) for t, blocks, n in zip(texts, tables, wanted, strict=True)]
    with torch.no_grad():
        expected = torch.cat([model(ids[None])[0, len(ids) - n :] for ids, n in zip(texts, wanted, strict=True)])
        hidden = torch.cat([model.hidden(ids[None])[0, len(ids) - n :] for ids, n in zip(texts, wanted, strict=True)])
    assert torch.allclose(as_tensor(runner.logits(chunks)), expected, atol=1e-5), "1 + 3 + 1 rows"
    assert torch.allclose(as_tensor(runner.hidden(chunks)), hidden, atol=1e-5), "the same of the states before the head"
    inside = [Chunk([1, 2], 0, [9], 0)]
    assert as_tensor(runner.logits(inside)).shape == (0, SMALL.vocab_size), "the inside of a prompt has no outputs"
    assert as_tensor(runner.hidden(inside)).shape == (0, SMALL.d_model), "nor states"


def test_copied_blocks_are_independent() -> None:
    runner = runner_of(MODELS["qwen3"])
    ids = list(range(20))
    runner.logits([Chunk(ids, 0, [3, 4])])
    runner.copy_block(4, 8)
    a, b = as_tensor(runner.logits([Chunk([7], 20, [3, 4]), Chunk([9], 20, [3, 8])]))
    again = as_tensor(runner.logits([Chunk([5], 21, [3, 4]), Chunk([5], 21, [3, 8])]))
    with torch.no_grad():
        for row, token, first in ((0, 7, a), (1, 9, b)):
            expected = runner.model(torch.tensor([[*ids, token, 5]]))[0]
            assert torch.allclose(first, expected[-2], atol=1e-4), "the copy holds what the block held"
            assert torch.allclose(again[row], expected[-1], atol=1e-4), "and each goes its own way"


def test_a_text_of_broken_numbers_does_not_spoil_its_neighbours() -> None:
    runner = runner_of(MODELS["gemma3"])
    ids = list(range(20))
    runner.logits([Chunk(ids, 0, [0, 1]), Chunk(ids, 0, [2, 3]), Chunk(ids[:9], 0, [4, 5])])
    runner.cache.values[:, 16 * 2 : 16 * 4] = float("nan")
    whole, broken, short = as_tensor(
        runner.logits([Chunk([7], 20, [0, 1]), Chunk([7], 20, [2, 3]), Chunk([7], 9, [4, 5])])
    )
    assert broken.isnan().all(), "the control: it is broken"
    with torch.no_grad():
        for row, before in ((whole, ids), (short, ids[:9])):
            expected = runner.model(torch.tensor([[*before, 7]]))[0, -1]
            assert torch.allclose(row, expected, atol=1e-4), "in the same pass, and shorter than it"


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 5e-3), ("int8", 0.2)])
def test_smaller_caches_stay_close_and_do_not_depend_on_the_steps(dtype: str, bound: float) -> None:
    logits = []
    for counts in ([[60, 60]], [[60, 5], [0, 20]], [[13, 60]]):
        texts = Texts(runner_of(MODELS["llama, untied"], cache_dtype=dtype), [60, 60])
        for count in counts:
            texts.step(count)
        texts.finish()
        assert 0 < texts.difference() < bound, "some rounding, not more"
        logits.append(torch.cat([part for row in texts.logits for part in row]))
    assert torch.allclose(logits[0], logits[1], atol=1e-2 * bound), "what was read does not depend on the steps"
    assert torch.allclose(logits[0], logits[2], atol=1e-2 * bound), "what was read does not depend on the steps"


def test_the_cache_is_as_large_as_told_or_as_needed_within_a_quarter_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MODELS["qwen3"]
    assert TorchRunner(model, EngineSettings(cache_tokens=100)).n_blocks == 7, "rounded up to blocks"
    assert TorchRunner(model, EngineSettings(max_running=3)).n_blocks == 18, "3 texts of 96 tokens"
    per_token = 2 * 3 * 2 * 8 * 4
    monkeypatch.setattr("bimo.engine.torch_runner.available_memory", lambda: 4 * 64 * per_token)
    assert TorchRunner(model, EngineSettings()).n_blocks == 4, "a quarter of the free memory has 64 tokens"


class Halved(Attention):
    """An attention module of a user's."""

    def forward(self, x: Tensor, ctx: AttnContext) -> Tensor:
        return super().forward(x, ctx) / 2


def test_modules_of_the_user_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRIES["attention"].registered, "halved", Halved)
    model = make(replace(SMALL, attention="halved", window=9))
    texts = Texts(runner_of(model), [40, 50])
    texts.step([20, 3])
    texts.finish()
    assert texts.difference() < 1e-4, "whatever the attention module is"


def test_packed_weights_are_unpacked_once() -> None:
    model = make(replace(SMALL, tied_embeddings=False))
    format = FORMATS["Q8_0"]
    for linear in [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.in_features % 32 == 0]:
        packed = PackedTensor(quantize(linear.weight.data, format), format, linear.in_features)
        linear.weight = torch.nn.Parameter(packed, requires_grad=False)
    texts = Texts(runner_of(model), [20])
    assert not any(isinstance(p, PackedTensor) for p in model.parameters()), "memory for speed"
    texts.finish()
    assert texts.difference() < 1e-4, "and the same numbers"


def test_a_training_model_is_run_without_dropout() -> None:
    model = make(replace(SMALL, dropout=0.5)).train()
    chunk = Chunk([1, 2, 3], 0, [0])
    assert torch.equal(as_tensor(runner_of(model).logits([chunk])), as_tensor(runner_of(model).logits([chunk]))), (
        "nothing is drawn"
    )
