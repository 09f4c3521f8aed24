"""Every native kernel against float64, on every instruction set of this machine, over ragged and unaligned shapes."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bimo.engine.kernels import layout, load_kernels
from bimo.engine.kernels.library import Kernels, instruction_sets
from bimo.model.blocks import dequantize
from bimo.model.formats import FORMATS

pytestmark = pytest.mark.skipif(not instruction_sets(), reason="the kernels were not compiled")
SETS = instruction_sets()
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.fixture(params=SETS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return load_kernels(2, request.param)


def random_blocks(name: str, rows: int, columns: int, rng: np.random.Generator) -> Tensor:
    """Rows of blocks whose every bit is random, but for the scales, which are ordinary numbers."""
    format = FORMATS[name]
    n_blocks = rows * columns // format.block_size
    blocks = rng.integers(0, 256, (n_blocks, format.block_bytes), dtype=np.uint8)
    places = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}[name]
    for place in places:
        halves = (rng.standard_normal(n_blocks) * 0.02).astype(np.float16)
        blocks[:, place : place + 2] = halves.view(np.uint8).reshape(-1, 2)
    return torch.from_numpy(blocks.reshape(rows, -1))


def packed(kernels: Kernels, name: str, rows: Tensor, columns: int) -> tuple[layout.Matrix, Tensor]:
    number = layout.FORMATS[name]
    size = kernels.call.bimo_panel_bytes(number, columns, kernels.width) * -(-len(rows) // kernels.width)
    out = torch.empty(size, dtype=torch.uint8)
    kernels.call.bimo_pack(kernels.machine, number, rows.data_ptr(), len(rows), columns, kernels.width, out.data_ptr())
    return layout.Matrix(number, len(rows), columns, out.data_ptr(), None), out


def quantized(kernels: Kernels, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """8-bit numbers, scales and half sums of rows of activations."""
    M, k = x.shape
    q = torch.empty(M, k, dtype=torch.int8)
    scale, sums = torch.empty(M, k // 32), torch.empty(M, k // 16, dtype=torch.int32)
    for m in range(M):
        kernels.call.bimo_quantize(
            kernels.table, x[m].data_ptr(), k, q[m].data_ptr(), scale[m].data_ptr(), sums[m].data_ptr()
        )
    return q, scale, sums


def product(kernels: Kernels, matrix: layout.Matrix, x: Tensor, *, add_to: Tensor | None = None) -> Tensor:
    M, k = x.shape
    y = torch.full((M, matrix.rows), math.nan) if add_to is None else add_to.clone()
    a = layout.Activations(x=x.data_ptr(), k=k)
    kept: list[Any] = []
    if matrix.format > layout.FORMATS["BF16"]:
        kept = list(quantized(kernels, x))
        a.q, a.scale, a.sum = (tensor.data_ptr() for tensor in kept)
    kernels.call.bimo_matmul(
        kernels.table, ctypes.byref(matrix), ctypes.byref(a), M, y.data_ptr(), matrix.rows, int(add_to is not None)
    )
    return y


@pytest.mark.parametrize("name", list(FLOATS))
@pytest.mark.parametrize(("M", "rows", "columns"), [(1, 1, 1), (1, 37, 96), (3, 33, 31), (7, 16, 65), (40, 70, 129)])
def test_float_products(kernels: Kernels, name: str, M: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    memory = torch.randn(rows * columns + 1, generator=generator).to(FLOATS[name])[1:]  # not aligned to anything
    w, x = memory.view(rows, columns), torch.randn(M, columns, generator=generator)
    bias = torch.randn(rows, generator=generator)
    matrix = layout.Matrix(layout.FORMATS[name], rows, columns, w.data_ptr(), bias.data_ptr())
    expected = x.double() @ w.double().T + bias.double()
    assert (product(kernels, matrix, x) - expected).abs().max() < 1e-5 * math.sqrt(columns), "as in float64"
    before = torch.randn(M, rows, generator=generator)
    added = product(kernels, matrix, x, add_to=before)
    assert (added - before - expected).abs().max() < 2e-5 * math.sqrt(columns), "added to what is there"


@pytest.mark.parametrize("name", layout.BLOCKS)
def test_rows_of_blocks_are_what_the_file_says(kernels: Kernels, name: str) -> None:
    columns = 512 if "_K" in name else 96
    rows = random_blocks(name, 37, columns, np.random.default_rng(1))
    matrix, _kept = packed(kernels, name, rows, columns)
    out = torch.empty(columns)
    expected = dequantize(rows, FORMATS[name])
    for row in (0, 5, 17, 36):
        kernels.call.bimo_dequantize_row(kernels.table, ctypes.byref(matrix), row, out.data_ptr())
        assert torch.equal(out, expected[row]) or torch.allclose(out, expected[row], rtol=1e-6, atol=0), f"row {row}"


@pytest.mark.parametrize("name", layout.BLOCKS)
@pytest.mark.parametrize(
    ("M", "rows", "groups"), [(1, 1, 1), (1, 50, 3), (3, 16, 2), (5, 33, 5), (13, 64, 2), (40, 24, 3)]
)
def test_block_products(kernels: Kernels, name: str, M: int, rows: int, groups: int) -> None:
    columns = groups * FORMATS[name].block_size
    blocks = random_blocks(name, rows, columns, np.random.default_rng(groups))
    matrix, _kept = packed(kernels, name, blocks, columns)
    x = torch.randn(M, columns, generator=torch.Generator().manual_seed(M)) * 3
    q, scale, _ = quantized(kernels, x)
    rounded = (q.view(M, -1, 32).double() * scale.double()[:, :, None]).view(M, -1)
    expected = rounded @ dequantize(blocks, FORMATS[name]).double().T
    size = (rounded.abs() @ dequantize(blocks, FORMATS[name]).double().abs().T).clamp(min=1e-9)
    assert ((product(kernels, matrix, x) - expected).abs() / size).max() < 1e-6, "exact but for float32 sums"


@pytest.mark.parametrize("name", ["F32", "BF16", *layout.BLOCKS])
def test_a_row_has_the_same_bits_in_any_batch(kernels: Kernels, name: str) -> None:
    rows, columns = 50, 256
    if name in FLOATS:
        w = torch.randn(rows, columns).to(FLOATS[name])
        matrix = layout.Matrix(layout.FORMATS[name], rows, columns, w.data_ptr(), None)
    else:
        matrix, _kept = packed(kernels, name, random_blocks(name, rows, columns, np.random.default_rng(0)), columns)
    x = torch.randn(33, columns)
    whole = product(kernels, matrix, x)
    for M in (1, 2, 5, 12, 17):
        assert torch.equal(product(kernels, matrix, x[:M]), whole[:M]), f"{M} rows"
        assert torch.equal(product(kernels, matrix, x[-M:].contiguous()), whole[-M:]), f"the last {M} rows"


def test_activations_are_rounded_to_the_nearest_of_255_levels(kernels: Kernels) -> None:
    x = torch.randn(4, 96) * torch.tensor([1e-3, 1.0, 50.0, 0.0])[:, None]
    q, scale, sums = quantized(kernels, x)
    back = q.view(4, 3, 32) * scale[:, :, None]
    assert ((back - x.view(4, 3, 32)).abs() <= scale[:, :, None] * 0.5001).all(), "half a level"
    assert torch.equal(sums, q.view(4, 6, 16).sum(-1).int()), "their sums"


@pytest.mark.parametrize("n", [1, 7, 48, 65, 576])
def test_norms(kernels: Kernels, n: int) -> None:
    x, weight, bias, out = torch.randn(n) * 3 + 1, torch.randn(n), torch.randn(n), torch.empty(n)
    call = kernels.call
    call.bimo_rms_norm(kernels.table, x.data_ptr(), weight.data_ptr(), 1e-5, n, out.data_ptr())
    expected = F.rms_norm(x.double(), (n,), weight.double(), 1e-5)
    assert torch.allclose(out.double(), expected, rtol=1e-5, atol=1e-6), "RMSNorm"
    call.bimo_layer_norm(kernels.table, x.data_ptr(), weight.data_ptr(), bias.data_ptr(), 1e-5, n, out.data_ptr())
    expected = F.layer_norm(x.double(), (n,), weight.double(), bias.double(), 1e-5)
    assert torch.allclose(out.double(), expected, rtol=1e-5, atol=1e-5), "LayerNorm"


@pytest.mark.parametrize("pairs", [1, 3, 8, 20, 32])
def test_rotation(kernels: Kernels, pairs: int) -> None:
    x, angles = torch.randn(2 * pairs), torch.randn(pairs) * 10
    left, right = x[:pairs].double(), x[pairs:].double()
    c, s = angles.double().cos(), angles.double().sin()
    expected = torch.cat((left * c - right * s, right * c + left * s))
    cosine, sine = c.float(), s.float()
    kernels.call.bimo_rotate(kernels.table, x.data_ptr(), cosine.data_ptr(), sine.data_ptr(), pairs)
    assert torch.allclose(x.double(), expected, atol=1e-6), "as in RoFormer"


@pytest.mark.parametrize("name", list(layout.ACTIVATIONS))
@pytest.mark.parametrize("n", [1, 13, 64])
def test_activations(kernels: Kernels, name: str, n: int) -> None:
    functions = {
        "silu": F.silu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "gelu_erf": F.gelu,
        "relu": F.relu,
    }
    x, up = torch.linspace(-30, 30, n), torch.randn(n)
    expected = functions[name](x.double())
    gate, alone = x.clone(), x.clone()
    kernels.call.bimo_activate(kernels.table, layout.ACTIVATIONS[name], gate.data_ptr(), up.data_ptr(), n)
    kernels.call.bimo_activate(kernels.table, layout.ACTIVATIONS[name], alone.data_ptr(), None, n)
    assert torch.allclose(gate.double(), expected * up.double(), rtol=1e-5, atol=1e-6), "gated"
    assert torch.allclose(alone.double(), expected, rtol=1e-5, atol=1e-6), "alone"


CASES = [  # heads, kv heads, head_dim, tokens before, new tokens, window, softcap
    (1, 1, 1, 0, 1, 0, 0.0),
    (6, 2, 20, 0, 9, 0, 0.0),
    (3, 3, 64, 200, 1, 0, 0.0),
    (9, 3, 64, 70, 5, 0, 30.0),
    (8, 1, 33, 100, 3, 17, 0.0),
    (4, 2, 128, 300, 40, 64, 0.0),
]


@pytest.mark.parametrize("dtype", list(layout.CACHE_TYPES))
@pytest.mark.parametrize(("H", "K", "D", "start", "T", "window", "softcap"), CASES)
def test_paged_attention(
    kernels: Kernels, dtype: str, H: int, K: int, D: int, start: int, T: int, window: int, softcap: float
) -> None:
    S, size = start + T, 16
    generator = torch.Generator().manual_seed(S)
    q, k, v = (torch.randn(n, h, D, generator=generator) for n, h in ((T, H), (S, K), (S, K)))
    n_blocks = -(-S // size) + 3
    table = torch.randperm(n_blocks, generator=generator).int()
    cache = layout.Cache(layout.CACHE_TYPES[dtype], size, n_blocks, 2, K, D)
    memory = torch.full((kernels.call.bimo_cache_bytes(ctypes.byref(cache)),), 255, dtype=torch.uint8)  # NaN
    cache.data = memory.data_ptr()
    for place in range(S):
        block, offset = int(table[place // size]), place % size
        for head in range(K):
            kernels.call.bimo_store(
                kernels.table,
                ctypes.byref(cache),
                1,
                block,
                head,
                offset,
                k[place, head].data_ptr(),
                v[place, head].data_ptr(),
            )
    out = torch.empty(T, H, D)
    for head in range(K):
        group = H // K
        partial = torch.empty(T * group, D + 2)
        task = layout.AttentionTask(
            ctypes.pointer(cache), table.data_ptr(), 1, head, group, T, start, window, 0, 1 << 20,
            D**-0.5, softcap, q[0, head * group].data_ptr(), H * D, partial.data_ptr(),
        )  # fmt: skip
        kernels.call.bimo_attend(kernels.table, ctypes.byref(task))
        out[:, head * group : (head + 1) * group] = (partial[:, 2:] / partial[:, 1:2]).view(T, group, D)
    expected = attended(q.double(), k.double(), v.double(), window, softcap)
    tolerance = {"float32": 2e-6, "float16": 2e-3, "int8": 3e-2}[dtype]
    assert (out - expected).abs().max() < tolerance, "as the formula in float64"


def attended(q: Tensor, k: Tensor, v: Tensor, window: int, softcap: float) -> Tensor:
    """The formula: (T, H, D) queries at the end of (S, K, D) keys."""
    T, S, group = len(q), len(k), q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    behind = torch.arange(S - T, S)[:, None] - torch.arange(S)
    seen = (behind >= 0) & (behind < window) if window else behind >= 0
    return torch.einsum("hts,shd->thd", scores.masked_fill(~seen, -math.inf).softmax(-1), v)
