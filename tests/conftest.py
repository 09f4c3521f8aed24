"""Small real things that many tests share, made once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from bimo import LM, ModelSpec, Tokenizer, TrainingSettings, new

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "一只",
    "猫",
    "坐在",
    "垫子",
    "上",
    "while",
    "der",
    "Hund",
    "schlief",
    "under",
    "an",
    "old",
    "tree",
    "by",
    "water",
]


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Two hundred short texts in three languages."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 40))) + "。\n" for _ in range(200)]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Tokenizer:
    return Tokenizer.train(texts, vocab_size=400)


@pytest.fixture(scope="session")
def spec(tokenizer: Tokenizer) -> ModelSpec:
    return ModelSpec(
        vocab_size=tokenizer.vocab_size, context_length=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_model=48
    )


@pytest.fixture(scope="session")
def settings() -> TrainingSettings:
    """Quick training in fp32."""
    return TrainingSettings(batch_size=8, learning_rate=3e-3, warmup_steps=5, precision="fp32", device="cpu", threads=2)


@pytest.fixture(scope="session")
def lm(spec: ModelSpec, tokenizer: Tokenizer, texts: list[str], settings: TrainingSettings) -> LM:
    """A tiny model that has seen the texts."""
    return new(spec, tokenizer, seed=1).fit(texts, epochs=3, settings=settings)


@pytest.fixture
def text_file(tmp_path: Path, texts: list[str]) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    return path
