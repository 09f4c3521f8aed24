"""GGUF's block formats: rows of numbers as blocks of a few bits with a scale (ggml's quants, MIT).

`dequantize` gives the same float32 bits as the `gguf` package; so does `quantize`, but for Q4_K, where the package has
none: there each group's scale and minimum come from a weighted least-squares search, as in llama.cpp's reference.
Everything works through chunks of rows that fit into the cache, and never writes to its input, which may be a mapped
file.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bimo.core.errors import UserError
from bimo.model.formats import BlockFormat

_CHUNK = 2**18  # numbers at once: 1 MB of float32
_SUPER = 256  # numbers in a block of the K formats
_SEARCH = torch.arange(-1.0, 1.05, 0.1).tolist()  # how far around 15 levels the search for a scale goes


@torch.no_grad()
def dequantize(rows: Tensor, format: BlockFormat, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers of packed rows.

    Args:
        rows: uint8, (…, bytes of a row).
        format: What they are.
        dtype: Of the result.

    Returns:
        (…, width), contiguous.
    """
    assert rows.dtype == torch.uint8, f"packed rows are uint8, are {rows.dtype}"
    assert rows.shape[-1] % format.block_bytes == 0, f"{rows.shape[-1]} bytes are no whole {format.name} blocks"
    width = rows.shape[-1] // format.block_bytes * format.block_size
    flat = rows.reshape(-1, rows.shape[-1])  # (n, row bytes)
    out = torch.empty(len(flat), width, dtype=dtype, device=rows.device)
    step = max(1, _CHUNK // max(width, 1))
    for start in range(0, len(flat), step):
        chunk = flat[start : start + step].reshape(-1, format.block_bytes)  # (blocks, bytes)
        target = out[start : start + step].view(-1, format.block_size)
        if dtype == torch.float32:
            _UNPACK[format.name](chunk, target)
        else:
            values = torch.empty(target.shape, dtype=torch.float32, device=rows.device)
            _UNPACK[format.name](chunk, values)
            target.copy_(values)
    return out.view(*rows.shape[:-1], width)


_LARGEST_HALF = torch.finfo(torch.float16).max
_LARGEST = {"F16": _LARGEST_HALF, "Q8_0": 127 * _LARGEST_HALF, "Q4_0": 8 * _LARGEST_HALF, "Q4_K": 63 * _LARGEST_HALF}
"""Numbers that each format can hold: its scales are halves."""


@torch.no_grad()
def quantize(x: Tensor, format: BlockFormat) -> Tensor:
    """Numbers as packed rows.

    Args:
        x: Floating point, (…, width).
        format: F32, F16, BF16, Q8_0, Q4_0 or Q4_K.

    Returns:
        uint8, (…, bytes of a row).

    Raises:
        UserError: The format cannot be written, the width does not fit, a number to be quantised is not finite, or one
            is so large that it would become infinite.
    """
    if format.name not in _PACK:
        raise UserError(f"{format.name} cannot be written", mend=f"Use one of {', '.join(_PACK)}.")
    n_bytes = format.row_bytes(x.shape[-1])
    if format.block_size > 1 and not torch.isfinite(x).all():
        raise UserError(f"NaN or infinity cannot be written as {format.name}", mend="Find it: bimo doctor --model …")
    largest = _LARGEST.get(format.name, float("inf"))
    if (x.isfinite() & (x.abs() > largest)).any():
        raise UserError(f"a number above {largest:.0f} does not fit {format.name}", mend="Use BF16 or F32.")
    flat = x.reshape(-1, x.shape[-1])
    out = torch.empty(len(flat), n_bytes, dtype=torch.uint8, device=x.device)
    step = max(1, _CHUNK // max(x.shape[-1], 1))
    for start in range(0, len(flat), step):
        blocks = flat[start : start + step].float().reshape(-1, format.block_size)
        out[start : start + step] = _PACK[format.name](blocks).reshape(-1, n_bytes)
    return out.view(*x.shape[:-1], n_bytes)


def assemble(levels: Tensor, scales: Tensor, format: BlockFormat) -> Tensor:
    """Packed rows out of levels that somebody else has chosen.

    Args:
        levels: Whole numbers: -127 … 127 for Q8_0, -8 … 7 for Q4_0; (rows, width).
        scales: (rows, width / 32).
        format: Q8_0 or Q4_0; each number becomes its level times its group's scale, a half.

    Returns:
        uint8, (rows, bytes of a row).
    """
    assert format.name in ("Q8_0", "Q4_0"), f"{format.name} has other levels"
    blocks = levels.reshape(-1, format.block_size)
    if format.name == "Q8_0":
        packed = blocks.to(torch.int8).view(torch.uint8)
    else:
        shifted = (blocks + 8).to(torch.uint8)
        packed = shifted[:, :16] | shifted[:, 16:] << 4
    return torch.cat((_bytes_of(scales.reshape(-1, 1)), packed), dim=1).reshape(len(levels), -1)


def _half(blocks: Tensor, place: int) -> Tensor:
    """The float16 at a place of each block, as float32, (blocks, 1)."""
    return blocks[:, place : place + 2].clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def _bits(packed: Tensor) -> Tensor:
    """(n, bytes) to bits of 0 or 1, lowest first, uint8, (n, 8 bytes)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> shifts) & 1).flatten(1)


def _unpack_float(dtype: torch.dtype) -> Callable[[Tensor, Tensor], None]:
    def unpack(blocks: Tensor, out: Tensor) -> None:
        out.copy_(blocks.clone(memory_format=torch.contiguous_format).view(dtype))

    return unpack


def _nibbles(packed: Tensor, out: Tensor) -> None:
    """Low halves of the bytes first, then high halves: (n, 16) to (n, 32)."""
    out[:, :16] = packed & 15
    out[:, 16:] = packed >> 4


def _unpack_q4_0(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 2:], out)
    out.sub_(8).mul_(_half(blocks, 0))


def _unpack_q4_1(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 4:], out)
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _unpack_q5_0(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 6:], out)
    out.add_(_bits(blocks[:, 2:6]), alpha=16).sub_(16).mul_(_half(blocks, 0))


def _unpack_q5_1(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 8:], out)
    out.add_(_bits(blocks[:, 4:8]), alpha=16).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _unpack_q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(_half(blocks, 0))


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Twelve bytes to eight scales and eight minima of six bits, float32, (n, 8, 1) each."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((low & 63, (high & 15) | (low >> 6) << 4), dim=1)
    minima = torch.cat((middle & 63, (high >> 4) | (middle >> 6) << 4), dim=1)
    return scales.float()[:, :, None], minima.float()[:, :, None]


def _groups_of_nibbles(packed: Tensor, out: Tensor) -> Tensor:
    """128 bytes to eight groups of 32: in each 32 bytes the low halves are one group, the high halves the next."""
    quads, groups = packed.unflatten(1, (4, 32)), out.view(-1, 4, 2, 32)
    groups[:, :, 0] = quads & 15
    groups[:, :, 1] = quads >> 4
    return out.view(-1, 8, 32)


def _unpack_q4_k(blocks: Tensor, out: Tensor) -> None:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    groups = _groups_of_nibbles(blocks[:, 16:], out)
    groups.mul_(scales * _half(blocks, 0)[:, :, None]).sub_(minima * _half(blocks, 2)[:, :, None])


def _unpack_q5_k(blocks: Tensor, out: Tensor) -> None:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    groups = _groups_of_nibbles(blocks[:, 48:], out)
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    groups.add_((blocks[:, None, 16:48] >> shifts) & 1, alpha=16)
    groups.mul_(scales * _half(blocks, 0)[:, :, None]).sub_(minima * _half(blocks, 2)[:, :, None])


def _unpack_q6_k(blocks: Tensor, out: Tensor) -> None:
    low = blocks[:, :128].unflatten(1, (2, 1, 2, 32))  # halves of a block, then pairs of 32
    shifts = torch.tensor([0, 4], dtype=torch.uint8, device=blocks.device)[:, None, None]
    high = blocks[:, 128:192].unflatten(1, (2, 1, 32))
    pairs = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
    out.view(-1, 2, 4, 32).copy_(((low >> shifts) & 15).flatten(2, 3) | ((high >> pairs) & 3) << 4)
    scales = blocks[:, 192:208].view(torch.int8).float() * _half(blocks, 208)  # (n, 16)
    out.view(-1, 16, 16).sub_(32).mul_(scales[:, :, None])


_UNPACK: dict[str, Callable[[Tensor, Tensor], None]] = {
    "F32": _unpack_float(torch.float32),
    "F16": _unpack_float(torch.float16),
    "BF16": _unpack_float(torch.bfloat16),
    "Q4_0": _unpack_q4_0,
    "Q4_1": _unpack_q4_1,
    "Q5_0": _unpack_q5_0,
    "Q5_1": _unpack_q5_1,
    "Q8_0": _unpack_q8_0,
    "Q4_K": _unpack_q4_k,
    "Q5_K": _unpack_q5_k,
    "Q6_K": _unpack_q6_k,
}


def _pack_float(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda blocks: blocks.to(dtype).view(torch.uint8)


def _bytes_of(x: Tensor) -> Tensor:
    """Float16 bytes of numbers, (n, 1) to (n, 2)."""
    return x.half().view(torch.uint8)


def _inverse(x: Tensor) -> Tensor:
    """1 / x, 0 for 0."""
    return torch.where(x == 0, 0.0, 1.0 / x)


def _rounded(x: Tensor) -> Tensor:
    """To the nearest whole number, halves away from zero, as C's roundf."""
    whole = x.abs().floor()
    return (whole + (2 * (x.abs() - whole)).floor()).copysign(x)


def _pack_q8_0(blocks: Tensor) -> Tensor:
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    values = _rounded(blocks * _inverse(scale)).to(torch.int8)
    return torch.cat((_bytes_of(scale), values.view(torch.uint8)), dim=1)


def _pack_q4_0(blocks: Tensor) -> Tensor:
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scale = largest / -8
    levels = (blocks.double() * _inverse(scale).double() + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    return torch.cat((_bytes_of(scale), levels[:, :16] | levels[:, 16:] << 4), dim=1)


def _pack_q4_k(blocks: Tensor) -> Tensor:
    groups = blocks.view(-1, 8, 32)
    scales, minima = _searched(groups)  # (n, 8) each
    top_scale, top_minimum = scales.amax(dim=1, keepdim=True), minima.amax(dim=1, keepdim=True)  # (n, 1)
    s = (scales * 63 * _inverse(top_scale)).round().clamp(0, 63)
    m = (minima * 63 * _inverse(top_minimum)).round().clamp(0, 63)
    d, d_minimum = (top_scale / 63).half(), (top_minimum / 63).half()
    step, shift = (s * d.float())[:, :, None], (m * d_minimum.float())[:, :, None]
    levels = ((groups + shift) * _inverse(step)).round().clamp(0, 15).to(torch.uint8).view(-1, 4, 2, 32)
    s, m = s.to(torch.uint8), m.to(torch.uint8)
    low = s[:, :4] | (s[:, 4:] >> 4) << 6
    middle = m[:, :4] | (m[:, 4:] >> 4) << 6
    high = (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    nibbles = (levels[:, :, 0] | levels[:, :, 1] << 4).flatten(1)
    return torch.cat((d.view(torch.uint8), d_minimum.view(torch.uint8), low, middle, high, nibbles), dim=1)


def _searched(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the minimum (as a positive shift) that fit each group of 32 best, (n, 8) each.

    Large numbers weigh more. For some scales around the obvious one, numbers are rounded to levels, and the line
    through (level, number) is fitted by weighted least squares; the one with the least squared error stays.
    """
    weights = groups.square().mean(dim=-1, keepdim=True).sqrt() + groups.abs()
    low, high = groups.amin(dim=-1, keepdim=True).clamp(max=0), groups.amax(dim=-1, keepdim=True)
    span = high - low
    sum_w, sum_x = weights.sum(-1, keepdim=True), (weights * groups).sum(-1, keepdim=True)

    def error(scale: Tensor, minimum: Tensor, levels: Tensor) -> Tensor:
        return (weights * (scale * levels + minimum - groups).square_()).sum(-1, keepdim=True)

    scale, minimum = span / 15, low
    best = error(scale, minimum, ((groups - low) * _inverse(scale)).round().clamp(0, 15))
    for delta in _SEARCH:
        levels = ((groups - low) * ((15 + delta) * _inverse(span))).round().clamp(0, 15)
        weighted = weights * levels
        sum_l, sum_ll = weighted.sum(-1, keepdim=True), (weighted * levels).sum(-1, keepdim=True)
        sum_xl = (weighted * groups).sum(-1, keepdim=True)
        determinant = sum_w * sum_ll - sum_l * sum_l
        slope = (sum_w * sum_xl - sum_x * sum_l) * _inverse(determinant)
        start = (sum_ll * sum_x - sum_l * sum_xl) * _inverse(determinant)
        slope = torch.where(start > 0, sum_xl * _inverse(sum_ll), slope)  # a minimum above 0 cannot be written
        start = start.clamp(max=0)
        found = error(slope, start, levels)
        better = (found < best) & (determinant > 0) & (slope >= 0)
        best, scale = torch.where(better, found, best), torch.where(better, slope, scale)
        minimum = torch.where(better, start, minimum)
    return scale.squeeze(-1), -minimum.squeeze(-1)


_PACK: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": _pack_float(torch.float32),
    "F16": _pack_float(torch.float16),
    "BF16": _pack_float(torch.bfloat16),
    "Q8_0": _pack_q8_0,
    "Q4_0": _pack_q4_0,
    "Q4_K": _pack_q4_k,
}
