"""Rounding to blocks: what is written is what was chosen, and compensation beats the nearest level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bimo.model.blocks import assemble, dequantize, quantize
from bimo.model.formats import FORMATS
from bimo.model.rounding import GRIDS, compensated, inverse_factor, searched


def correlated(n: int, width: int, seed: int = 0) -> Tensor:
    """Inputs of few directions and many sizes, as those of real layers, (n, width)."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, width // 4, generator=generator) @ torch.randn(width // 4, width, generator=generator)
    return mixed + 0.3 * torch.randn(n, width, generator=generator) * torch.logspace(-1, 1, width)


@pytest.mark.parametrize("name", GRIDS)
def test_the_bytes_stand_for_the_numbers_that_were_chosen(name: str) -> None:
    matrix = torch.randn(96, 7, generator=torch.Generator().manual_seed(1))
    factor = inverse_factor(torch.eye(96))
    for levels in (searched(matrix, torch.ones(96), GRIDS[name]), compensated(matrix, factor, GRIDS[name])):
        assert torch.equal(dequantize(levels.packed(), FORMATS[name]), levels.numbers().T), "every bit"


@pytest.mark.parametrize("name", GRIDS)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_levels_of_the_nearest_rounding_are_put_together_to_its_bytes(name: str, seed: int) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(seed))
    rows = quantize(x, FORMATS[name])
    blocks = rows.view(-1, FORMATS[name].block_bytes)
    scales = blocks[:, :2].clone().view(torch.float16).float().view(3, -1)
    levels = (dequantize(rows, FORMATS[name]).view(3, -1, 32) / scales[..., None]).round().flatten(1)
    assert torch.equal(assemble(levels, scales, FORMATS[name]), rows), "every byte"


def test_without_correlations_compensation_is_the_search() -> None:
    matrix = torch.randn(64, 50, generator=torch.Generator().manual_seed(2))
    plain = searched(matrix, torch.ones(64), GRIDS["Q4_0"])
    assert torch.equal(compensated(matrix, inverse_factor(torch.eye(64)), GRIDS["Q4_0"]).levels, plain.levels)


def test_compensation_loses_less_than_the_search_and_the_search_less_than_the_nearest_level() -> None:
    matrix = torch.randn(256, 64, generator=torch.Generator().manual_seed(3))
    x, fresh = correlated(2000, 512)[:, :256], correlated(2000, 512)[1000:, :256]
    gram, grid = x[:1000].T @ x[:1000], GRIDS["Q4_0"]

    def error(numbers: Tensor) -> float:
        return float((fresh @ (numbers - matrix)).norm() / (fresh @ matrix).norm())

    nearest = error(dequantize(quantize(matrix.T.contiguous(), FORMATS["Q4_0"]), FORMATS["Q4_0"]).T)
    found = error(searched(matrix, gram.diagonal().clone(), grid).numbers())
    gptq = error(compensated(matrix, inverse_factor(gram), grid).numbers())
    assert gptq < 0.7 * found < 0.7 * nearest, f"nearest {nearest:.4f}, search {found:.4f}, GPTQ {gptq:.4f}"


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-30, 6e4])
def test_constant_and_extreme_groups_stay_finite(value: float) -> None:
    matrix = torch.full((32, 2), value)
    for levels in (
        searched(matrix, torch.ones(32), GRIDS["Q4_0"]),
        compensated(matrix, inverse_factor(torch.zeros(32, 32)), GRIDS["Q4_0"]),
    ):
        numbers = levels.numbers()
        assert torch.isfinite(numbers).all(), "no division by nothing"
        assert torch.allclose(numbers, matrix, rtol=0.2, atol=1e-7), "near what it was"
