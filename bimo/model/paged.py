"""Keys and values in blocks: a text's tokens lie wherever there was a free block, as in an operating system's memory.

A `PagedCache` holds the tensors of all layers (Kwon et al. 2023, PagedAttention). A `PagedView` is what attention sees
of it in one step: where the new keys go, and which tokens are looked at. Both are settled once per step, as rows of
slots; a slot is a token's place in the cache, block * block_size + offset. Eight-bit caches hold one scale for each
token and head, so that what a token reads does not depend on how the text was cut into steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bimo.core.spec import ModelSpec


class PagedCache:
    """Room for the keys and values of n_blocks * block_size tokens.

    Nothing is written at the start: memory that no text has used is not taken.

    Attributes:
        keys: (n_layers, slots, K, D); `values` likewise.
        key_scales: Of an int8 cache, float32, (n_layers, slots, K, 1); `value_scales` likewise. None for others.
    """

    def __init__(
        self, spec: ModelSpec, n_blocks: int, block_size: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.block_size = block_size
        shape = (spec.n_layers, n_blocks * block_size, spec.n_kv_heads, spec.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.key_scales = torch.empty(*shape[:-1], 1, device=device) if dtype == torch.int8 else None
        self.value_scales = None if self.key_scales is None else torch.empty_like(self.key_scales)

    @staticmethod
    def bytes_per_token(spec: ModelSpec, dtype: torch.dtype) -> int:
        """What a token takes, all layers."""
        head = spec.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)
        return 2 * spec.n_layers * spec.n_kv_heads * head

    def layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Keys, values and their scales of one layer."""
        if self.key_scales is None or self.value_scales is None:
            return self.keys[layer], self.values[layer], None, None
        return self.keys[layer], self.values[layer], self.key_scales[layer], self.value_scales[layer]

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of a block, all layers."""
        n = self.block_size
        for tensor in (self.keys, self.values, self.key_scales, self.value_scales):
            if tensor is not None:
                tensor[:, target * n : (target + 1) * n] = tensor[:, source * n : (source + 1) * n]


class PagedView:
    """What attention sees of the cache in one step: it appends and is given all that it looks at.

    Args:
        cache: The cache.
        new: Slots of the new tokens, int64, (B, T).
        seen: Slots of the tokens that are looked at, the new ones included, int64, (B, S); a row that looks at fewer
            repeats slots of its own, which the mask hides. Or the one run of slots of a single row, read in place.
    """

    def __init__(self, cache: PagedCache, new: Tensor, seen: Tensor | slice) -> None:
        self.cache, self.new, self.seen = cache, new.flatten(), seen

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v, (B, K, T, D), of the new tokens; return what is looked at, (B, K, S, D), in their dtype."""
        return LayerView(*self.cache.layer(layer), self.new, self.seen).append(layer, k, v)


class LayerView:
    """What attention sees of one layer: tensors alone, so that a compiler finds every layer alike.

    Args:
        keys: (slots, K, D); `values` likewise.
        key_scales: Of an int8 cache; `value_scales` likewise.
        new: Slots of the new tokens, (B T,).
        seen: As in `PagedView`.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        key_scales: Tensor | None,
        value_scales: Tensor | None,
        new: Tensor,
        seen: Tensor | slice,
    ) -> None:
        self.keys, self.values = keys, values
        self.key_scales, self.value_scales = key_scales, value_scales
        self.new, self.seen = new, seen

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """As in `PagedView`; the layer is settled."""
        return self._through(self.keys, self.key_scales, k), self._through(self.values, self.value_scales, v)

    def _through(self, tensor: Tensor, scales: Tensor | None, x: Tensor) -> Tensor:
        """Write into one layer's tensor, (slots, K, D), and read from it."""
        rows = x.transpose(1, 2).flatten(0, 1)  # (B T, K, D)
        if scales is None:
            tensor.index_copy_(0, self.new, rows.to(tensor.dtype))
        else:
            scale = rows.abs().amax(dim=-1, keepdim=True).float() / 127  # (B T, K, 1)
            scales.index_copy_(0, self.new, scale)
            levels = (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)).round()
            tensor.index_copy_(0, self.new, levels.to(torch.int8))
        read = self._gathered(tensor).to(x.dtype)
        if scales is not None:
            read = read * self._gathered(scales).to(x.dtype)
        return read.transpose(1, 2)  # (B, K, S, D)

    def _gathered(self, tensor: Tensor) -> Tensor:
        """(slots, K, n) to (B, S, K, n)."""
        if isinstance(self.seen, slice):
            return tensor[self.seen][None]
        read = tensor.flatten(1).index_select(0, self.seen.flatten())  # (B S, K n): whole tokens are copied faster
        return read.view(*self.seen.shape, *tensor.shape[1:])
