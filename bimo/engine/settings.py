"""How an engine runs: settings without tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bimo.core.settings import Settings
from bimo.core.spec import ModelSpec


@dataclass(frozen=True)
class EngineSettings(Settings):
    """How an engine runs: its memory, its batch and its arithmetic."""

    backend: Literal["auto", "native", "torch"] = "auto"
    """native: the C++ kernels for CPUs; torch: everything, everywhere; auto: native where it can, with a reason."""
    threads: int = 0
    """Threads of the native kernels; 0: one for each core."""
    cache_tokens: int = 0
    """Tokens that the key/value cache has room for, over all requests; 0: enough for `max_running` texts, within a
    quarter of the free memory."""
    cache_dtype: Literal["auto", "float32", "float16", "int8"] = "auto"
    """Of keys and values; auto on the native backend: float32 for a float32 model, int8 for one with weights of 4 bits
    whose keys have no bias, float16 for others; auto in torch: that of the weights."""
    device: str = ""
    """Where torch computes: cpu, cuda, mps; empty: where the weights are. The native kernels compute on the CPU."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] = "auto"
    """Of the weights in torch: int8 and int4 are Q8_0 and Q4_0 blocks, unpacked while they are multiplied; auto: as
    they are, but packed ones become float32 on a CPU."""
    decode: Literal["auto", "plain", "static", "graph", "compiled"] = "auto"
    """Steps of one token per text, in torch: plain: as any other; static: of few fixed shapes; graph: recorded as CUDA
    graphs; compiled: by torch's compiler, too, half a minute at first; auto: graph on CUDA, else plain."""
    block_size: int = 16
    """Tokens in a block of the cache."""
    max_running: int = 64
    """Sequences in a step, at most."""
    step_tokens: int = 512
    """Tokens that a step reads at most: longer prompts are read in pieces, between which others go on."""
    share_prefixes: bool = True
    """Texts that begin alike share the blocks of their beginning."""
    guess_tokens: int = 0
    """Speculation: tokens guessed per step and checked in one; 0: none. The text stays the same."""

    def problems(self) -> list[str]:
        at_least = {"threads": 0, "cache_tokens": 0, "block_size": 1, "max_running": 1, "step_tokens": 1}
        at_least["guess_tokens"] = 0
        found = [
            f"{n} must be at least {m}, is {getattr(self, n)}" for n, m in at_least.items() if getattr(self, n) < m
        ]
        if self.threads > 1024:
            found.append(f"threads must be at most 1024, is {self.threads}")
        if self.block_size % 16:
            found.append(f"block_size must be a multiple of 16, is {self.block_size}")
        return found


def n_blocks(spec: ModelSpec, settings: EngineSettings, free_bytes: int, token_bytes: int) -> int:
    """How many blocks the cache has: as told, or for `max_running` texts within a quarter of the free memory.

    Args:
        spec: The model.
        settings: What was asked for.
        free_bytes: Memory that can still be had; 0: unknown.
        token_bytes: What a token takes in the cache.
    """
    tokens = settings.cache_tokens or settings.max_running * spec.context_length
    if not settings.cache_tokens and free_bytes:
        tokens = min(tokens, free_bytes // 4 // token_bytes)
    return max(1, -(-tokens // settings.block_size))
