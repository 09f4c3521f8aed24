"""A text under way: what the scheduler and the samplers know of it. No tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

from bimo.engine.blocks import BlockTable
from bimo.engine.request import Want


@dataclass(slots=True, eq=False)
class Sequence:
    """One text that grows, or is read.

    Attributes:
        job: Who asked for it: the request's id.
        order: Who comes first: number of arrival, and which answer to the same request.
        tokens: The prompt and what was chosen since.
        n_prompt: Tokens of the prompt.
        limit: Tokens that the text has at most, the last one included, which is not read again.
        want: What its outputs are for.
        adapter: Number of its LoRA adapter; 0: none.
        tenant: Whose text it is.
        read_to: Tokens to read; None: all there are, which grow.
        output_from: The place of the first output that is wanted and was not taken yet; None: the last one only.
        table: Its blocks; None while it waits.
        cached: Tokens whose keys and values are in the blocks.
        keys: Digests of its full blocks.
        stretch: Which set of frequencies its keys were turned by.
        guesses: Tokens that may come next; they are read and checked with the newest one.
        n_accepted: Guesses of the last step that were right.
        idle: Its output was taken, and it waits for the other beams of its search.
        done: Nothing more is to be read.
    """

    job: str
    order: tuple[int, int]
    tokens: list[int]
    n_prompt: int
    limit: int = 0
    want: Want = "generate"
    adapter: int = 0
    tenant: str = ""
    read_to: int | None = None
    output_from: int | None = None
    table: BlockTable | None = None
    cached: int = 0
    keys: list[bytes] = field(default_factory=list)
    stretch: int = 0
    guesses: list[int] = field(default_factory=list)
    n_accepted: int = 0
    idle: bool = False
    done: bool = False

    @property
    def end(self) -> int:
        """Tokens to read, as far as they are known."""
        return len(self.tokens) if self.read_to is None else self.read_to

    @property
    def pending(self) -> int:
        """Tokens to read that are not in the cache yet."""
        return self.end - self.cached

    @property
    def first_wanted(self) -> int:
        """The place of the first output that is wanted: what stands before it may come from other texts' blocks."""
        return self.end - 1 if self.output_from is None else self.output_from

    @property
    def n_new(self) -> int:
        """Tokens after the prompt."""
        return len(self.tokens) - self.n_prompt
