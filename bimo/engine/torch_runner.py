"""A runner in plain torch: every model, every device, modules of the user's included.

Chunks that can share a forward pass are grouped as rows: newest tokens of many sequences, whatever their lengths, and
longer pieces of equal length. A group goes through the model's own blocks; what attention needs of the paged cache is
settled once per group and kind of block, as slots and a mask, and not again in every layer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bimo.core.errors import UserError
from bimo.core.machine import available_memory
from bimo.engine.decoding import Decoder, Way, reason_against, to_host
from bimo.engine.runner import Chunk, Rows
from bimo.engine.settings import EngineSettings, n_blocks
from bimo.engine.weights import weights_for
from bimo.model.backends import AttnContext
from bimo.model.gpt import GPT
from bimo.model.lora import Adapter, AdapterSet
from bimo.model.paged import PagedCache, PagedView
from bimo.model.weight_only import Levels

_SHORT = 16  # chunks up to this length share a pass with others that stand at other places
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


class TorchRunner:
    """Runs steps of a GPT through its own modules.

    A chunk's positions are turned as those of a text that ends with it: with longrope, whoever reads a text that is
    longer than the original context gives it a first chunk that is longer too.

    Args:
        model: A GPT; it is put into evaluation mode, and packed weights are unpacked: once per model, memory for speed,
            where the settings say nothing else.
        settings: Size and dtype of the cache, and of the weights; how decode steps run.
        adapters: What a chunk may ask for, by number from 1 on.

    Attributes:
        because: Why it runs the model, and not the native kernels.
        decoder: Runs steps of one token per text; None: they run as any other.
    """

    def __init__(self, model: GPT, settings: EngineSettings, adapters: Sequence[Adapter] = ()) -> None:
        self.model, self.block_size = weights_for(model, settings, with_adapters=bool(adapters)), settings.block_size
        first = next(self.model.norm.parameters(), None)  # a head may be packed
        weight = next(self.model.parameters()) if first is None else first
        self.device, self.adapters = weight.device, AdapterSet(self.model, adapters)
        dtype = DTYPES.get(settings.cache_dtype, weight.dtype)
        self.token_bytes = PagedCache.bytes_per_token(model.spec, dtype)
        self.n_blocks = n_blocks(model.spec, settings, _free_memory(self.device), self.token_bytes)
        self.because, self._against, self.decoder = "every model and every device", "", None
        way = self._way(settings)
        n_more = int(way != "plain")  # a block that belongs to no text
        self.cache = PagedCache(model.spec, self.n_blocks + n_more, self.block_size, device=self.device, dtype=dtype)
        if way != "plain":
            self.decoder = Decoder(self.model, self.cache, way, settings.max_running)

    def _way(self, settings: EngineSettings) -> Way | Literal["plain"]:
        """How decode steps run."""
        wanted = ("graph" if self.device.type == "cuda" else "plain") if settings.decode == "auto" else settings.decode
        if wanted == "plain":
            return "plain"
        self._against = reason_against(self.model)
        if not self._against and wanted == "graph" and self.device.type != "cuda":
            self._against = "graphs are CUDA's"
        return "plain" if self._against else wanted

    @property
    def name(self) -> str:
        """What it is, and why it runs."""
        words = f"torch on {self.device}, because {self.because}"
        if self._against:
            return f"{words}; decode steps are plain, because {self._against}"
        if self.decoder is None:
            return words
        return "; ".join((words, f"decode steps are {self.decoder.way}", *self.decoder.reasons))

    @torch.inference_mode()
    def logits(self, chunks: Sequence[Chunk]) -> Rows:
        """Run a step; logits of the wanted positions in order, float32, (sum of n_outputs, V)."""
        decoder = self.decoder
        if decoder is None or not any(map(decoder.takes, chunks)):
            return self._logits(chunks)
        if all(map(decoder.takes, chunks)):
            return decoder.logits(chunks)
        taken = [decoder.takes(chunk) for chunk in chunks]
        parts = [[chunk for chunk, fast in zip(chunks, taken, strict=True) if fast == wanted] for wanted in (0, 1)]
        rows = iter(self._logits(parts[0])), iter(decoder.logits(parts[1]))
        found = [next(rows[fast]) for chunk, fast in zip(chunks, taken, strict=True) for _ in range(chunk.n_outputs)]
        return np.stack(found)

    def _logits(self, chunks: Sequence[Chunk]) -> Rows:
        """As `logits`, chunks of any length."""
        hidden = self._run(chunks)
        if not len(hidden):
            return torch.empty(0, self.model.spec.vocab_size).numpy()
        numbers = [chunk.adapter for chunk in chunks for _ in range(chunk.n_outputs)]
        with self.adapters.chosen(numbers):
            return to_host(self.model.logits(hidden).float())

    @torch.inference_mode()
    def hidden(self, chunks: Sequence[Chunk]) -> Rows:
        """Run a step; last hidden states of the wanted positions in order, float32, (sum of n_outputs, C)."""
        return self._run(chunks).float().cpu().numpy()

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of a block, all layers."""
        self.cache.copy_block(source, target)

    def prepare_adapter(self, adapter: Adapter) -> Adapter:
        """See whether an adapter fits.

        Raises:
            UserError: It does not, or the weights are packed.
        """
        if any(isinstance(module, Levels) for module in self.model.modules()):
            mend = "Start the engine with dtype float32, float16 or bfloat16, or merge the adapter."
            raise UserError("adapters do not go with packed weights", where=f"adapter {adapter.name!r}", mend=mend)
        adapter.check(self.model)
        return adapter

    def change_adapters(self, added: Mapping[int, Adapter], dropped: Collection[int]) -> None:
        """From the next step on, chunks may name other adapters."""
        self.adapters.change(added, dropped)

    def stretch(self, length: int) -> int:
        """Which set of rotary frequencies a text of so many tokens has."""
        return int(self.model.embed_positions.stretch(length))

    def _run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Last hidden states of the wanted positions in order, (sum of n_outputs, C)."""
        if self.model.training:
            self.model.eval()
        wanted: list[Tensor] = [torch.empty(0)] * len(chunks)
        for places in self._groups(chunks):
            group = [chunks[place] for place in places]
            with self.adapters.chosen([chunk.adapter for chunk in group]):
                x = self._forward(_Rows.of(group, self.block_size, self.device))  # (B, T, C)
            for row, place in enumerate(places):
                wanted[place] = x[row, x.shape[1] - chunks[place].n_outputs :]
        if not any(chunk.n_outputs for chunk in chunks):
            return torch.empty(0, self.model.spec.d_model)
        return self.model.norm(torch.cat(wanted))

    def _groups(self, chunks: Sequence[Chunk]) -> list[list[int]]:
        """Which chunks go through the model together, by their places in the list."""
        groups: dict[tuple[int, int, int], list[int]] = {}
        for place, chunk in enumerate(chunks):
            assert 0 <= chunk.n_outputs <= len(chunk.tokens), f"{chunk.n_outputs} outputs of {len(chunk.tokens)} tokens"
            length = len(chunk.tokens)
            start = -1 if length <= _SHORT else chunk.start
            groups.setdefault((length, start, self.stretch(chunk.start + length)), []).append(place)
        return list(groups.values())

    def _forward(self, rows: _Rows) -> Tensor:
        """Output of the last block, before the norm, (B, T, C)."""
        model = self.model
        x = model.embed_tokens(rows.ids)  # (B, T, C)
        if model.spec.embedding_scale != 1:
            x = x * model.spec.embedding_scale
        x = model.embed_positions(x, rows.steps)
        new = rows.slots(rows.steps)
        contexts = {kind: self._context(rows, new, *kind) for kind in {block.kind for block in model.blocks()}}
        for block in model.blocks():
            x = block(x, contexts[block.kind])
        return x

    def _context(self, rows: _Rows, new: Tensor, windowed: bool, rotated: bool) -> AttnContext:
        """What attention needs in one kind of block; new: slots of the tokens that are read, (B, T)."""
        spec = self.model.spec
        rotation = self.model.embed_positions.rotation(rows.steps, windowed=windowed) if rotated else None
        cos, sin = (None, None) if rotation is None else rotation
        seen, mask = rows.seen(spec.window if windowed else 0)
        return AttnContext(
            cos=cos,
            sin=sin,
            mask=mask,
            causal=rows.steps.shape[1] > 1,
            cache=PagedView(self.cache, new, seen),
            scale=spec.attention_scale or None,
            softcap=spec.attention_softcap,
        )


@dataclass(frozen=True, slots=True)
class _Rows:
    """A group of chunks as tensors.

    Attributes:
        ids: (B, T).
        steps: Places of the tokens, (B, T).
        tables: Block tables, (B, blocks of the longest).
        starts: Of the chunks.
        block_size: Tokens in a block.
        run: First slot of a single row whose blocks follow each other; -1: it is not so.
    """

    ids: Tensor
    steps: Tensor
    tables: Tensor
    starts: Sequence[int]
    block_size: int
    run: int

    @classmethod
    def of(cls, chunks: Sequence[Chunk], block_size: int, device: torch.device) -> _Rows:
        """The rows of chunks of equal length."""
        length, starts = len(chunks[0].tokens), [chunk.start for chunk in chunks]
        counts = [-(-(start + length) // block_size) for start in starts]
        most = max(counts)
        tables = [[*chunk.blocks[:count], *[0] * (most - count)] for chunk, count in zip(chunks, counts, strict=True)]
        steps = torch.tensor(starts)[:, None] + torch.arange(length)
        ids = torch.tensor([list(chunk.tokens) for chunk in chunks])
        first = tables[0][0]
        follow = len(chunks) == 1 and tables[0] == list(range(first, first + most))
        run = first * block_size if follow else -1
        return cls(ids.to(device), steps.to(device), torch.tensor(tables).to(device), starts, block_size, run)

    def slots(self, places: Tensor) -> Tensor:
        """Where tokens at some places, (B, n), lie in the cache, (B, n)."""
        blocks = self.tables.gather(1, places // self.block_size)
        return blocks * self.block_size + places % self.block_size

    def seen(self, window: int) -> tuple[Tensor | slice, Tensor | None]:
        """Slots of the tokens that are looked at, (B, S), and which query may see which, bool, (B, 1, T, S)."""
        length = self.steps.shape[1]
        first = [max(0, start - window + 1) if window else 0 for start in self.starts]
        counts = [start + length - begin for start, begin in zip(self.starts, first, strict=True)]
        most = max(counts)
        places = torch.tensor(first)[:, None] + torch.arange(most)  # (B, S)
        places = places.to(self.steps.device)
        if self.run >= 0:
            slots: Tensor | slice = slice(self.run + first[0], self.run + first[0] + most)
        else:
            slots = self.slots(places.minimum(self.steps[:, -1:]))  # a shorter row looks at its last token again
        even = min(counts) == most
        if even and (length == 1 or (most == length and not 0 < window < length)):
            return slots, None  # all that was gathered, or plainly causal
        behind = self.steps[:, :, None] - places[:, None, :]  # (B, T, S)
        mask = (behind >= 0) & (behind < window) if window else behind >= 0
        return slots, mask[:, None]


def _free_memory(device: torch.device) -> int:
    """Bytes that can still be had; 0 when unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()
