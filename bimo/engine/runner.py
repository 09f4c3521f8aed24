"""The seam between policy and arrays: what a step reads, and what can run it.

A step is a ragged batch: every sequence that takes part contributes a `Chunk`, a whole prompt, a piece of one, or its
newest token. All of them go through the model together. A `Runner` owns the paged cache: keys and values lie in blocks
of `block_size` tokens, and the block table of a chunk says which blocks are its sequence's. Who owns which block, and
when it is free again, is policy (`blocks.py`) and none of the runner's business.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bimo.model.lora import Adapter

Rows = NDArray[np.float32]
"""Outputs of a step, one row for each position: logits (n, V) or hidden states (n, C)."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one sequence contributes to a step.

    Attributes:
        tokens: Ids to read now, at places `start`, `start + 1`, …; at least one.
        start: How many tokens of the sequence are in the cache already.
        blocks: The sequence's block table: block i holds places i * block_size … ; covers `start + len(tokens)`.
        n_outputs: How many of the last positions' outputs are wanted: 0 inside a prompt, 1 to go on, more to check
            guesses or to score a text.
        adapter: Which LoRA adapter its rows go through, counted from 1; 0: none.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    n_outputs: int = 1
    adapter: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a step.

    Attributes:
        name: For a person.
        thread: Of the runner, counted from 0.
        start_ns: By the clock of `time.perf_counter_ns` (in C++: `std::chrono::steady_clock`).
        end_ns: By the same clock.
    """

    name: str
    thread: int
    start_ns: int
    end_ns: int


class Runner(Protocol):
    """Runs steps of one model, on one device.

    Attributes:
        name: What it is and why it was chosen, for a person to read.
        block_size: Tokens in a block of the cache.
        n_blocks: Blocks that there are.
        token_bytes: What a token takes in the cache.
    """

    block_size: int
    n_blocks: int
    token_bytes: int

    @property
    def name(self) -> str:
        """As above."""
        ...

    def logits(self, chunks: Sequence[Chunk]) -> Rows:
        """Run a step; logits of the wanted positions in order, (sum of n_outputs, V)."""
        ...

    def hidden(self, chunks: Sequence[Chunk]) -> Rows:
        """Run a step; last hidden states, after the final norm, of the wanted positions, (…, C)."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy the keys and values of a block, all layers: two sequences that shared it go separate ways."""
        ...

    def prepare_adapter(self, adapter: Adapter) -> Any:
        """Lay a LoRA adapter out for `change_adapters`. From any thread, also while a step runs.

        Raises:
            UserError: It does not fit the model, or this runner cannot run it.
        """
        ...

    def change_adapters(self, added: Mapping[int, Any], dropped: Collection[int]) -> None:
        """From the next step on, chunks may name other adapters. Between steps only.

        Args:
            added: What `prepare_adapter` made, by numbers that no adapter had before.
            dropped: Numbers that no chunk will name any more.
        """
        ...

    def stretch(self, length: int) -> int:
        """Which set of rotary frequencies a text of so many tokens has (longrope): where it changes, the sequence's
        cache is worthless and its text must be read again."""
        ...
