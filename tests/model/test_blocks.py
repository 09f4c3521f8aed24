"""Block formats: the same bits as the gguf package, any offset, and errors that name the format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bimo import UserError
from bimo.model.blocks import dequantize, quantize
from bimo.model.formats import FORMATS

gguf = pytest.importorskip("gguf", reason="the reference")

WRITTEN = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]


def packed(name: str, rows: int, blocks: int, seed: int = 0) -> torch.Tensor:
    """Random bytes; the scales of each block are finite."""
    format = FORMATS[name]
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(256, (rows, blocks, format.block_bytes), generator=generator, dtype=torch.uint8)
    places = {"Q4_1": (1, 3), "Q5_1": (1, 3), "Q4_K": (1, 3), "Q5_K": (1, 3), "Q6_K": (209,), "F32": (3,)}
    for place in places.get(name, (1,)):
        data[..., place] &= 0b10111011  # no exponent of all ones
    return data.flatten(1)


def theirs(rows: torch.Tensor, name: str) -> torch.Tensor:
    kind = gguf.GGMLQuantizationType[name]
    if name in ("F32", "F16"):
        return torch.from_numpy(rows.numpy().copy().view(np.dtype(f"f{FORMATS[name].block_bytes}")).astype(np.float32))
    return torch.from_numpy(gguf.quants.dequantize(rows.numpy(), kind))


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_are_the_same_bits_as_in_the_gguf_package(name: str) -> None:
    rows = packed(name, 7, 300 if FORMATS[name].block_size < 256 else 9)
    assert torch.equal(dequantize(rows, FORMATS[name]), theirs(rows, name)), "every bit"


@pytest.mark.parametrize("name", FORMATS)
def test_rows_beyond_a_chunk_of_three_dimensions_at_an_odd_offset(name: str) -> None:
    rows = packed(name, 6, 2**19 // FORMATS[name].block_size // 6)
    shifted = torch.cat((torch.zeros(1, dtype=torch.uint8), rows.flatten()))[1:].view(2, 3, -1)
    assert torch.equal(dequantize(shifted, FORMATS[name]).flatten(0, 1), theirs(rows, name)), "the same numbers"
    assert dequantize(rows[:0], FORMATS[name]).shape[0] == 0, "no rows give no rows"


@pytest.mark.parametrize("name", FORMATS)
def test_a_mapped_file_is_never_written_to(name: str, tmp_path: Path) -> None:
    rows = packed(name, 3, 2)
    (tmp_path / "rows").write_bytes(rows.numpy().tobytes())
    mapped = torch.from_numpy(np.memmap(tmp_path / "rows", dtype=np.uint8, mode="c")).view_as(rows)
    dequantize(mapped, FORMATS[name])
    assert torch.equal(mapped, rows), "as it was"


@pytest.mark.parametrize("name", WRITTEN)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-30, 1e-6, 1.0, 100.0]))
def test_packing_gives_the_same_bytes_as_the_gguf_package(name: str, seed: int, scale: float) -> None:
    x = scale * torch.randn(3, 96, generator=torch.Generator().manual_seed(seed))
    x[0, :32], x[1, 3] = 0.0, -scale * 9
    want = gguf.quants.quantize(x.numpy(), gguf.GGMLQuantizationType[name])
    assert np.array_equal(quantize(x, FORMATS[name]).numpy(), np.ascontiguousarray(want).view(np.uint8)), "every byte"


def error(x: torch.Tensor, name: str) -> float:
    return float((dequantize(quantize(x, FORMATS[name]), FORMATS[name]) - x).square().mean().sqrt() / x.std())


def test_q4_k_loses_less_than_q4_0() -> None:
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    assert error(x, "Q8_0") < 0.006 < error(x, "Q4_K") < 0.075 < error(x, "Q4_0") < 0.1, "as llama.cpp's own"


@pytest.mark.parametrize("x", [torch.zeros(1, 256), torch.full((1, 256), 3.0), torch.full((1, 256), -3.0)])
def test_q4_k_keeps_constant_rows(x: torch.Tensor) -> None:
    assert torch.allclose(dequantize(quantize(x, FORMATS["Q4_K"]), FORMATS["Q4_K"]), x, rtol=1e-2), (
        "no search gets lost"
    )


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_K"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_where_it_would_ruin_a_block(name: str, bad: float) -> None:
    x = torch.zeros(1, 256)
    x[0, 7] = bad
    with pytest.raises(UserError, match=name):
        quantize(x, FORMATS[name])
    assert not torch.isfinite(dequantize(quantize(x, FORMATS["F32"]), FORMATS["F32"])).all(), "floats pass"


def test_widths_and_formats_that_cannot_be_written_are_named() -> None:
    with pytest.raises(UserError, match="100 numbers is not a whole number of Q4_0 blocks of 32"):
        quantize(torch.zeros(1, 100), FORMATS["Q4_0"])
    with pytest.raises(UserError, match="Q6_K cannot be written"):
        quantize(torch.zeros(1, 256), FORMATS["Q6_K"])
