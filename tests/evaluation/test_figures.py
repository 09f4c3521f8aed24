"""Bits per byte and the floors, against slow and obvious twins."""

from __future__ import annotations

import lzma
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bimo import LM
from bimo.evaluation import metrics
from bimo.evaluation.floors import NGramModel, xz_bits_per_byte
from bimo.evaluation.metrics import bits_per_byte

TEXT = [b"the cat sat on the mat", b"a cat and a hat", "猫坐在垫子上".encode(), b"", b"the the the"]


def code(context: bytes, byte: int, order: int) -> int:
    """A gram as a number in base 257, boundaries before the text."""
    symbols = [256] * max(0, order - 1 - len(context)) + list(context[-(order - 1) :]) + [byte]
    value = 0
    for symbol in symbols:
        value = value * 257 + symbol
    return value


def slow_kneser_ney(documents: list[bytes], context: tuple[int, ...], byte: int, order: int) -> float:
    """Chen & Goodman 1998, equations 26 to 29, with dictionaries."""
    grams = Counter()
    for document in documents:
        padded = [256] * (order - 1) + list(document)
        grams.update(tuple(padded[i : i + order]) for i in range(len(document)))
    levels = {order: grams}
    for length in range(order - 1, 0, -1):
        levels[length] = Counter(gram[1:] for gram in levels[length + 1])

    def discount(counts: Counter[tuple[int, ...]], c: int) -> float:
        n = [max(1, sum(v == i for v in counts.values())) for i in (1, 2, 3, 4)]
        y, i = n[0] / (n[0] + 2 * n[1]), min(c, 3)
        return min(float(i), max(0.0, i - (i + 1) * y * n[i] / n[i - 1])) if c else 0.0

    def probability(context: tuple[int, ...], length: int) -> float:
        if length == 0:
            return 1 / 256
        lower = probability(context[1:], length - 1)
        counts = levels[length]
        following = {g[-1]: c for g, c in counts.items() if g[:-1] == context}
        if not following:
            return lower
        total = sum(following.values())
        left_over = sum(discount(counts, c) for c in following.values())
        c = following.get(byte, 0)
        return (c - discount(counts, c) + left_over * lower) / total

    return probability(context, order)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_n_grams_equal_the_slow_twin(order: int) -> None:
    model = NGramModel(TEXT, order)
    for context in (b"", b"th", b"the ", b"at", b"zzzz", "猫".encode()):
        padded = tuple(([256] * order + list(context))[-(order - 1) :]) if order > 1 else ()
        for byte in b"eta z\xe7":
            ours = model.probabilities(np.array([code(context, byte, order)], np.uint64))[0]
            assert ours == pytest.approx(slow_kneser_ney(TEXT, padded, byte, order)), (context, byte)


@pytest.mark.parametrize("context", [b"", b"the ", b"zzzz", b"\xff\xfe\x00\x01", "猫坐".encode()])
def test_n_gram_probabilities_sum_to_one(context: bytes) -> None:
    model = NGramModel(TEXT)
    grams = np.array([code(context, byte, 5) for byte in range(256)], np.uint64)
    assert model.probabilities(grams).sum() == pytest.approx(1.0), "a distribution over all bytes"


def test_n_grams_learn_and_stay_finite_on_the_unseen() -> None:
    model = NGramModel(TEXT)
    seen, unseen = model.bits_per_byte([b"the cat"]), model.bits_per_byte([bytes(range(200, 250))])
    assert seen < 3 < unseen < 20, "known text is cheap, foreign text costs about eight bits"


def test_xz_is_what_the_library_needs_for_the_rest() -> None:
    train, valid = [b"some words of text that come again " * 30], [b"some words of text that come again " * 3]
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**26}]
    sizes = [len(lzma.compress(t, lzma.FORMAT_RAW, filters=filters)) for t in (train[0], train[0] + valid[0])]
    assert xz_bits_per_byte(train, valid) == 8 * (sizes[1] - sizes[0]) / len(valid[0])
    assert xz_bits_per_byte(train, valid) < xz_bits_per_byte([b"x"], valid), "it learns from the training text"


def test_bits_per_byte_by_hand(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_CHUNK_LOGITS", 7 * lm.model.spec.vocab_size)
    texts = ["the cat sat on a mat", "一只 猫"]
    batches = lm.batches(texts, None, batch_size=2, seed=0)
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[lm.tokenizer.begin_id, *lm.tokenizer.encode(text), lm.tokenizer.end_id]])
        with torch.inference_mode():
            nats += float(F.cross_entropy(lm.model(ids[:, :-1])[0], ids[0, 1:], reduction="sum"))
    by_hand = nats / math.log(2) / sum(len(text.encode()) for text in texts)
    ours = bits_per_byte(lm.model, batches, torch.from_numpy(lm.tokenizer.token_bytes()))
    assert ours["bits_per_byte"] == pytest.approx(by_hand, rel=1e-5), "every byte and every end counts once"


def test_no_text_has_no_figure(lm: LM) -> None:
    assert math.isnan(bits_per_byte(lm.model, [], torch.from_numpy(lm.tokenizer.token_bytes()))["bits_per_byte"])
