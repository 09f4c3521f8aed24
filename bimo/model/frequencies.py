"""Rotary positions in NumPy, for those who compute without torch: `positions.py` says what they are.

Powers and cosines are rounded from float64, so that they are the nearest float32; angles are float32, as there. No
longrope, whose frequencies change with the length of a text.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from bimo.core.spec import ModelSpec, RopeScaling

Floats = NDArray[np.float32]


def rotation(spec: ModelSpec, count: int, *, windowed: bool) -> tuple[Floats, Floats]:
    """Cosines and sines of the places 0 … count - 1, (count, pairs) each; windowed: in layers with a window."""
    local = windowed and bool(spec.window and spec.window_rope_theta)
    angles = np.arange(count, dtype=np.float32)[:, None] * frequencies(spec, local=local)  # (count, pairs)
    factor = np.float32(1.0 if local or spec.rope_scaling.kind == "none" else spec.rope_scaling.attention_factor)
    exact = angles.astype(np.float64)
    return np.cos(exact).astype(np.float32) * factor, np.sin(exact).astype(np.float32) * factor


def frequencies(spec: ModelSpec, *, local: bool = False) -> Floats:
    """The frequency of each pair, (pairs,).

    Args:
        spec: A model with rotary positions.
        local: Those of layers with a window, which have a base of their own.

    Raises:
        ArithmeticError, ValueError: The spec's numbers go with no others.
    """
    theta, scaling = spec.window_rope_theta if local else spec.rope_theta, spec.rope_scaling
    plain = np.float32(1) / _powers(theta, spec.rotary_dim)
    if local:
        return plain
    if scaling.kind == "linear":
        return plain / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        return _llama3(plain, scaling)
    return _yarn(plain, spec) if scaling.kind == "yarn" else plain


def _powers(theta: float, dim: int) -> Floats:
    """theta^(2i / dim) for each pair."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)


def _llama3(plain: Floats, scaling: RopeScaling) -> Floats:
    waves = np.float32(2 * math.pi) / plain
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((np.float32(scaling.original_context) / waves - np.float32(low)) / np.float32(high - low)).clip(0, 1)
    return ((1 - kept) * plain / np.float32(scaling.factor) + kept * plain).astype(np.float32)


def _yarn(plain: Floats, spec: ModelSpec) -> Floats:
    scaling, dim = spec.rope_scaling, spec.rotary_dim

    def dimension(turns: float) -> float:
        return dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(spec.rope_theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    last += 0.001 * (first == last)
    places = np.arange(len(plain), dtype=np.float32)
    slowed = ((places - np.float32(first)) / np.float32(last - first)).clip(0, 1)
    return np.float32(1) / (np.float32(scaling.factor) * _powers(spec.rope_theta, dim)) * slowed + plain * (1 - slowed)
