"""The n-gram floor stays a distribution on any text; test_figures.py compares it with a slow twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bimo.evaluation.floors import NGramModel, held_out, xz_bits_per_byte

PHRASE = b"the cat sat on a mat. "


def gram(context: bytes, order: int) -> np.ndarray:
    """The 256 grams that continue a context of order - 1 bytes."""
    start = 0
    for symbol in context[-(order - 1) :] if order > 1 else b"":
        start = start * 257 + symbol
    return np.uint64(start * 257) + np.arange(256, dtype=np.uint64)


@given(
    text=st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=5),
    repeats=st.integers(1, 9),
    context=st.binary(min_size=6, max_size=6),
    order=st.integers(1, 7),
)
@settings(max_examples=150, deadline=None)
def test_any_text_gives_a_distribution_that_rules_nothing_out(
    text: list[bytes], repeats: int, context: bytes, order: int
) -> None:
    model = NGramModel(text * repeats, order)
    for before in (context, (b"\0" * 6 + text[0])[:-1]):
        probabilities = model.probabilities(gram(before[-6:], order))
        assert probabilities.min() > 0, "every byte is possible"
        assert probabilities.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("repeats", range(1, 9))
def test_text_that_repeats_leaves_a_finite_price_for_surprise(repeats: int) -> None:
    bits = NGramModel([PHRASE] * repeats).bits_per_byte([b"the dog xyz"])
    assert math.isfinite(bits), "a discount of zero would leave nothing for the unseen"


def test_cutting_the_lookup_into_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, valid = NGramModel([PHRASE * 3]), [b"the mat sat", b"on a cat"]
    whole = model.bits_per_byte(valid)
    monkeypatch.setattr(held_out, "_AT_ONCE", 4)
    assert model.bits_per_byte(valid) == pytest.approx(whole, rel=1e-12)


def test_without_text_nothing_is_known_and_nothing_is_measured() -> None:
    empty = NGramModel([b""])
    assert empty.bits_per_byte([b"abc"]) == 8, "every byte is equally likely"
    assert math.isnan(empty.bits_per_byte([b""])), "no figure, rather than a made-up one"
    assert math.isnan(xz_bits_per_byte([PHRASE], [])), "no figure for xz either"


def test_a_gram_that_does_not_fit_into_64_bits_is_refused() -> None:
    with pytest.raises(AssertionError, match="order must lie in"):
        NGramModel([PHRASE], order=8)
