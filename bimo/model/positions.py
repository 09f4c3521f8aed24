"""How a token knows its place: a position module adds to the embeddings, turns queries and keys, or does neither.

Rotary positions (Su et al. 2021, RoFormer) with every stretching of the frequencies that checkpoints use. Angles are
computed in float32, as in the models that these weights were trained in: at far positions the rounding is part of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bimo.core.spec import ModelSpec, RopeScaling

Rotation = tuple[Tensor, Tensor]
_CPU = torch.device("cpu")  # frequencies are numbers also in a model that has no weights yet


class NoPositions(nn.Module):
    """The contract of a position module, and the module without any positions.

    A module of your own inherits from this and overrides one of the two methods.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        """What the first block reads: the embeddings x, (B, T, C), at places `steps`, int64, (B or 1, T)."""
        return x

    def rotation(self, steps: Tensor, *, windowed: bool) -> Rotation | None:
        """Cosines and sines, (B or 1, T, 1, pairs) each, by which queries and keys are turned; None: not at all.

        Args:
            steps: Places of the tokens, (B or 1, T).
            windowed: Whether it is for the layers with a window.
        """
        return None

    def stretch(self, length: int) -> int:
        """Which set of frequencies a text of so many tokens has: keys of another set cannot be used any more."""
        return 0


class Learned(NoPositions):
    """One learned vector per position (GPT-2)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.weight = nn.Parameter(torch.zeros(spec.context_length, spec.d_model))

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return x + self.weight[steps]


class Rotary(NoPositions):
    """Pairs (i, i + pairs) of each query and key are turned by position x frequency."""

    frequencies: Tensor  # (sets, pairs)

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.scaling, self.local = spec.rope_scaling, bool(spec.window and spec.window_rope_theta)
        self.spec = spec
        self.register_buffer("frequencies", self._sets(), persistent=False)

    def _sets(self) -> Tensor:
        """Frequencies of ordinary layers; of long texts; of layers with a window: equal where nothing differs."""
        spec = self.spec
        plain = base_frequencies(spec.rope_theta, spec.rotary_dim)
        short, long = (scaled_frequencies(plain, spec, long=long) for long in (False, True))
        local = base_frequencies(spec.window_rope_theta, spec.rotary_dim) if self.local else short
        return torch.stack((short, long, local))

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Any:
        """Angles stay in float32 whatever the dtype of the weights becomes: bf16 cannot count to 257."""
        super()._apply(fn, recurse)
        if self.frequencies.dtype != torch.float32:
            self.frequencies = self._sets().to(self.frequencies.device)
        return self

    def stretch(self, length: int) -> int:
        return int(self.scaling.kind == "longrope" and length > self.scaling.original_context)

    def rotation(self, steps: Tensor, *, windowed: bool) -> Rotation:
        local = windowed and self.local
        # Only longrope has to look at the numbers, which makes a GPU wait.
        long = self.scaling.kind == "longrope" and self.stretch(int(steps.max()) + 1)
        frequencies = self.frequencies[2 if local else 1 if long else 0]
        angles = steps[..., None, None].float() * frequencies  # (B or 1, T, 1, pairs)
        factor = 1.0 if local or self.scaling.kind == "none" else self.scaling.attention_factor
        return angles.cos() * factor, angles.sin() * factor


def base_frequencies(theta: float, dim: int) -> Tensor:
    """theta^(-2i / dim) for each pair, float32, (⌈dim / 2⌉,)."""
    return 1.0 / powers(theta, dim)


def powers(theta: float, dim: int) -> Tensor:
    """theta^(2i / dim) for each pair, float32."""
    return torch.pow(theta, torch.arange(0, dim, 2, device=_CPU).float() / dim)


def scaled_frequencies(plain: Tensor, spec: ModelSpec, *, long: bool) -> Tensor:
    """The frequencies after the spec's stretching; `long`: for a text longer than the original context."""
    scaling = spec.rope_scaling
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(plain, scaling)
    if scaling.kind == "yarn":
        return _yarn(plain, scaling, spec.rope_theta, spec.rotary_dim)
    if scaling.kind == "longrope":
        factors = torch.tensor(scaling.long_factors if long else scaling.short_factors, device=_CPU)
        return 1.0 / (factors * powers(spec.rope_theta, spec.rotary_dim))
    return plain


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Long waves are slowed down, short ones kept, those between are mixed (Llama 3.1's reference code)."""
    waves = 2 * math.pi / plain
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((scaling.original_context / waves - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(plain: Tensor, scaling: RopeScaling, theta: float, dim: int) -> Tensor:
    """Dimensions that turn often enough in the original context are kept, slow ones slowed (YaRN, section 3.2)."""

    def dimension(turns: float) -> float:
        return dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    last += 0.001 * (first == last)
    slowed = ((torch.arange(len(plain), device=_CPU).float() - first) / (last - first)).clamp(0, 1)
    return 1.0 / (scaling.factor * powers(theta, dim)) * slowed + plain * (1 - slowed)
