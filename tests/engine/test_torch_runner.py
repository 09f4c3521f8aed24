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

from bimo import GPT, ModelSpec
from bimo.core.spec import RopeScaling
from bimo.engine.runner import Chunk
from bimo.engine.settings import EngineSettings
from bimo.engine.torch_runner import TorchRunner
from bimo.model.lora import merge

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
        parts = self.runner.logits(chunks).split([chunk.n_outputs for chunk in chunks]) if chunks else ()
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
    return TorchRunner(model, EngineSettings(cache_tokens=16 * 64, **options))  # type: ignore[arg-type]  # by name


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
