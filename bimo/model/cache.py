"""Keys and values of the tokens seen so far, so that a new token costs one step and not the whole text again.

Dense: one tensor per layer with room for `capacity` tokens, all rows equally long. Attention calls `append` once per
layer; the model calls `advance` once per step, after the last layer.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bimo.core.spec import ModelSpec


class Cache(Protocol):
    """What attention needs of a cache, dense or paged."""

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v, (B, K, T, D), of the next T tokens; return all that is looked at, (B, K, S, D) each."""
        ...


class KVCache:
    """Room for the keys and values of `rows` texts of at most `capacity` tokens.

    Attributes:
        length: Tokens already held in each row.
        keys: (n_layers, B, K, capacity, D); `values` likewise.
    """

    def __init__(self, spec: ModelSpec, rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype) -> None:
        shape = (spec.n_layers, rows, spec.n_kv_heads, capacity, spec.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v, (B, K, T, D), of the next T tokens; return all keys and values, (B, K, length + T, D)."""
        end = self.length + k.shape[2]
        assert end <= self.capacity, f"the cache has room for {self.capacity} tokens, not for {end}"
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def clear(self) -> None:
        """Forget all tokens."""
        self.length = 0

    def advance(self, n_tokens: int) -> None:
        """Count the tokens that every layer has appended."""
        self.length += n_tokens
