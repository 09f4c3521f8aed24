"""The native runner: a step of the whole model, for all its sequences, is one call into C++.

Float weights are computed with where they lie, block formats are packed once. Activations of block formats become 8-bit
integers in groups of 32, as in llama.cpp. What a row becomes does not depend on what else is in the step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from bimo.core.machine import available_memory
from bimo.engine.kernels import layout
from bimo.engine.kernels.library import Kernels
from bimo.engine.kernels.memory import lazy_memory
from bimo.engine.native_model import LaidOut, NativeModel
from bimo.engine.runner import Chunk, Rows, Stage
from bimo.engine.settings import EngineSettings, n_blocks
from bimo.model.stored import StoredModel

if TYPE_CHECKING:
    from bimo.model.gpt import GPT
    from bimo.model.lora import Adapter

_NUMBER_BYTES = {"float32": 4, "float16": 2, "int8": 1}
_MOST_MARKS = 2**16  # of one step: 8 for each layer and thread, almost


class NativeRunner:
    """A `Runner` on the CPU's native kernels.

    Args:
        model: A model that `native_model.reason_against` has nothing against.
        settings: Memory and batch.
        kernels: Instruction set and threads.
        adapters: LoRA adapters, numbered from 1.
    """

    def __init__(
        self, model: GPT | StoredModel, settings: EngineSettings, kernels: Kernels, adapters: Sequence[Adapter] = ()
    ) -> None:
        self.kernels, self.block_size = kernels, settings.block_size
        self.name = f"native, {kernels.name}, {kernels.threads} threads"
        self.native = NativeModel(model, kernels, adapters)
        self.vocab_size, self.d_model = model.spec.vocab_size, model.spec.d_model
        self.cache_dtype = self._cache_dtype() if settings.cache_dtype == "auto" else settings.cache_dtype
        spec, struct = model.spec, self.native.struct
        head_bytes = spec.head_dim * _NUMBER_BYTES[self.cache_dtype] + 4 * (self.cache_dtype == "int8")  # and its scale
        self.token_bytes = 2 * spec.n_layers * spec.n_kv_heads * head_bytes
        self.n_blocks = n_blocks(spec, settings, available_memory(), self.token_bytes)
        struct.cache = layout.Cache(
            layout.CACHE_TYPES[self.cache_dtype],
            self.block_size,
            self.n_blocks,
            struct.n_layers,
            spec.n_kv_heads,
            spec.head_dim,
        )
        self._memory = lazy_memory(kernels.call.bimo_cache_bytes(ctypes.byref(struct.cache)))
        struct.cache.data = self._memory.ctypes.data

    def logits(self, chunks: Sequence[Chunk]) -> Rows:
        """Logits of the wanted positions in order, (sum of n_outputs, V)."""
        return self._step(chunks, self.vocab_size, want_hidden=False)

    def hidden(self, chunks: Sequence[Chunk]) -> Rows:
        """Last hidden states of the wanted positions, after the final norm, (sum of n_outputs, C)."""
        return self._step(chunks, self.d_model, want_hidden=True)

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of a block, all layers."""
        self.kernels.call.bimo_copy_block(ctypes.byref(self.native.struct.cache), source, target)

    def prepare_adapter(self, adapter: Adapter) -> LaidOut:
        """Lay an adapter out."""
        return self.native.lay_out(adapter)

    def change_adapters(self, added: Mapping[int, LaidOut], dropped: Collection[int]) -> None:
        """From the next step on, chunks may name other adapters."""
        self.native.change_adapters(added, dropped)

    def stretch(self, length: int) -> int:
        """Always the same: texts whose frequencies change are not run natively."""
        return 0

    def trace(self) -> list[Stage]:
        """What each thread did since the last call, which is forgotten now; the first call has the recording begin."""
        marks = (layout.Mark * _MOST_MARKS)()
        count = self.kernels.call.bimo_trace(self.kernels.machine, 1, marks, _MOST_MARKS)
        return [Stage(layout.STAGES[mark.stage], mark.thread, mark.start, mark.end) for mark in marks[:count]]

    def _cache_dtype(self) -> str:
        """As coarse as the weights: what it costs shall drown in what they cost.

        Keys with a bias (Qwen 2) can have a few numbers that are hundreds of times the others, which a scale that all
        of a key share would round away.
        """
        layers, keys = self.native.layers, layout.PLACES.index("k_proj")
        formats = {matrix.format for layer in layers for matrix in layer.matrices if matrix.data}
        biased = any(layer.matrices[keys].bias for layer in layers)
        if formats == {layout.FORMATS["F32"]}:
            return "float32"
        coarse = formats & {layout.FORMATS[name] for name in layout.FOUR_BITS}
        return "int8" if coarse and not biased else "float16"

    def _step(self, chunks: Sequence[Chunk], width: int, *, want_hidden: bool) -> Rows:
        self.native.need_positions(max(chunk.start + len(chunk.tokens) for chunk in chunks))
        ends = list(accumulate(len(chunk.tokens) for chunk in chunks))
        tables = list(accumulate((len(chunk.blocks) for chunk in chunks), initial=0))
        outputs = [row for chunk, end in zip(chunks, ends, strict=True) for row in range(end - chunk.n_outputs, end)]
        out = np.empty((len(outputs), width), dtype=np.float32)
        numbers = [
            _int32([token for chunk in chunks for token in chunk.tokens]),
            _int32([chunk.start + i for chunk in chunks for i in range(len(chunk.tokens))]),
            _int32(ends),
            _int32([block for chunk in chunks for block in chunk.blocks]),
            _int32(tables[:-1]),
            _int32([self.native.places[chunk.adapter] for chunk in chunks]),
            _int32(outputs),
        ]
        step = layout.Step(
            ends[-1], len(chunks), len(outputs), int(want_hidden), *(a.ctypes.data for a in numbers), out.ctypes.data
        )
        failed = self.kernels.call.bimo_step(
            self.kernels.machine, self.kernels.table, ctypes.byref(self.native.struct), ctypes.byref(step)
        )
        if failed:
            raise MemoryError("no memory for a step of the native kernels")
        return out


def _int32(numbers: list[int]) -> Any:
    return np.array(numbers, dtype=np.int32)
