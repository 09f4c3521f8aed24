"""A small model that was really trained: it translates, labels and summarises sentences of twelve words."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bimo import LM, EngineSettings, ModelSpec, Tokenizer, TrainingSettings, load, new
from bimo.tasks.classification import Classification, label_request
from bimo.tasks.summarization import Summarization, summary_request
from bimo.tasks.task import Message
from bimo.tasks.translation import Translation, translation_request

ENGLISH = ["The", "cat", "dog", "sees", "eats", "old", "red", "house", "tree", "and", "small", "big"]
GERMAN = ["Die", "Katze", "Hund", "sieht", "frisst", "alte", "rote", "Haus", "Baum", "und", "kleine", "grosse"]
WORDS = dict(zip(ENGLISH, GERMAN, strict=True))
ANIMALS = {"cat", "dog"}


def sentence(rng: random.Random) -> str:
    return "The " + " ".join(rng.choices(ENGLISH[1:], k=rng.randint(2, 4))) + "."


def german(text: str) -> str:
    """What the model should say."""
    return " ".join(WORDS[word.rstrip(".")] + "." * word.count(".") for word in text.split())


def label(text: str) -> str:
    return "animal" if ANIMALS & set(text.replace(".", "").split()) else "thing"


def _rows() -> list[dict[str, object]]:
    rng = random.Random(0)

    def row(messages: tuple[Message, ...], answer: str) -> dict[str, object]:
        return {"messages": [*messages, {"role": "assistant", "content": answer}]}

    rows = [row(translation_request(text, "de"), german(text)) for text in (sentence(rng) for _ in range(900))]
    rows += [row(label_request(text), label(text)) for text in (sentence(rng) for _ in range(300))]
    for _ in range(300):
        texts = [sentence(rng) for _ in range(rng.randint(1, 3))]
        rows.append(row(summary_request(" ".join(texts)), texts[0]))
    rng.shuffle(rows)
    return rows


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = _rows()
    texts = [message["content"] for row in rows for message in row["messages"]]  # type: ignore[index, attr-defined]
    tokenizer = Tokenizer.train(texts, vocab_size=380)
    spec = ModelSpec(
        vocab_size=tokenizer.vocab_size, context_length=96, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=16, d_model=64
    )
    settings = TrainingSettings(
        batch_size=16, learning_rate=5e-3, warmup_steps=10, precision="fp32", device="cpu", threads=1
    )
    lm = new(spec, tokenizer, seed=1).fit(rows, epochs=3, settings=settings)
    lm.tasks = [Translation(), Classification(labels=["animal", "thing"]), Summarization(max_tokens=16)]
    return lm.save(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="session")
def toy(toy_folder: Path) -> LM:
    lm = load(toy_folder)
    lm.engine_settings = EngineSettings(threads=1)  # tests share their machine
    return lm
