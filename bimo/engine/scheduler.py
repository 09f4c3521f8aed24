"""Who takes part in the next step, with which tokens. No tensors.

- Texts that are being written go first, so that a long prompt never makes them wait; what is left of `step_tokens` goes
  to prompts, in pieces, in the order of arrival.
- A text is let in when there are blocks for all that is known of it. When those that write need more blocks than there
  are, the youngest gives up its own and waits; it is read again later, which gives the same text.
- A text whose beginning is just being read by another waits until it can share it.
- A text that does not fit alone fails alone.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field

from bimo.core.errors import UserError
from bimo.engine.blocks import BlockPool
from bimo.engine.runner import Chunk
from bimo.engine.sequence import Sequence
from bimo.engine.settings import EngineSettings

_MOST_OUTPUTS = 128
"""Rows of logits that one text may ask for in a step: 128 rows of 150,000 take 77 MB."""


@dataclass(slots=True)
class Plan:
    """A step.

    Attributes:
        chunks: What is read, and for whom.
        copies: Blocks to copy before, (source, target), in this order.
        failed: Texts that can never be read, and why.
    """

    chunks: list[tuple[Sequence, Chunk]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    failed: list[tuple[Sequence, UserError]] = field(default_factory=list)


class Scheduler:
    """Keeps the texts under way.

    Args:
        pool: The cache's blocks.
        settings: How many texts and tokens a step has.
        stretch: Which set of frequencies a text of so many tokens has.

    Attributes:
        waiting: Texts without blocks, in order.
        running: Texts with blocks, in order.
        n_preempted: How often a text gave up its blocks.
    """

    def __init__(self, pool: BlockPool, settings: EngineSettings, stretch: Callable[[int], int]) -> None:
        self.pool, self.settings, self.stretch = pool, settings, stretch
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.n_preempted = 0

    def add(self, sequence: Sequence) -> None:
        """A new text."""
        insort(self.waiting, sequence, key=_order)

    def add_running(self, sequence: Sequence) -> None:
        """A text that begins as a fork of another and has blocks already."""
        insort(self.running, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """The text is finished, or nobody wants it any more."""
        if sequence.table is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.pool.close(sequence.table)
        sequence.table = None

    def schedule(self) -> Plan:
        """The next step; it has no chunks when there is nothing to do."""
        plan = Plan()
        for sequence in tuple(self.running):
            if sequence.table is not None and sequence.pending == 1:
                self._write(sequence, plan)
        # Where more texts write than a step has tokens, prompts still get a block's length: all of them end one day.
        room = max(self.settings.step_tokens - len(plan.chunks), self.pool.block_size)
        for sequence in self.running:
            if sequence.pending > 1 and room > 0:
                room -= self._read(sequence, room, plan)
        if self.waiting:
            self._admit(room, plan)
        if not plan.chunks and not plan.failed and self.waiting and self.running:
            # All that run wait for one that waits (beams): they give up their blocks for it.
            for sequence in tuple(self.running):
                self._preempt(sequence)
            self._admit(room, plan)
        return plan

    def advance(self, sequence: Sequence, n_tokens: int) -> None:
        """So many more tokens of the text are in its blocks."""
        assert sequence.table is not None, "only a text with blocks was read"
        sequence.cached += n_tokens
        full = sequence.cached // self.pool.block_size
        if full > sequence.table.n_known:
            self._extend_keys(sequence)
            self.pool.publish(sequence.table, sequence.keys, full)

    def fork(self, sequence: Sequence, child: Sequence) -> None:
        """The child goes on from what was read of another text; it shares the blocks, or waits as the other does."""
        if sequence.table is None:
            return self.add(child)
        child.table = self.pool.fork(sequence.table)
        child.cached, child.stretch, child.keys = sequence.cached, sequence.stretch, list(sequence.keys)
        return self.add_running(child)

    def _write(self, sequence: Sequence, plan: Plan) -> None:
        """Take a text's newest token and its guesses into the step."""
        assert sequence.table is not None, "only a text with blocks writes"
        if self.stretch(sequence.end) != sequence.stretch:
            return self._preempt(sequence)  # its keys are worthless
        guesses = sequence.guesses
        while guesses and self.stretch(sequence.end + len(guesses)) != sequence.stretch:
            guesses.pop()
        copies = self.pool.grow(sequence.table, sequence.cached, sequence.end + len(guesses))
        if copies is None and guesses:
            guesses.clear()
            copies = self.pool.grow(sequence.table, sequence.cached, sequence.end)
        while copies is None:
            youngest = self.running[-1]  # it stands behind this one, so it has no part in the step yet
            if youngest is sequence and len(self.running) == 1:
                plan.failed.append((sequence, self._too_long(sequence)))
                return None
            self._preempt(youngest)
            if youngest is sequence:
                return None
            copies = self.pool.grow(sequence.table, sequence.cached, sequence.end)
        plan.copies += copies
        tokens = sequence.tokens[sequence.cached : sequence.end] + guesses
        n_outputs = 1 + len(guesses)
        chunk = Chunk(tokens, sequence.cached, sequence.table.blocks, n_outputs, sequence.adapter)
        plan.chunks.append((sequence, chunk))
        return None

    def _read(self, sequence: Sequence, room: int, plan: Plan) -> int:
        """Take the next piece of a longer text into the step; returns its length."""
        assert sequence.table is not None, "only a text with blocks is read"
        start, wanted = sequence.cached, sequence.first_wanted
        stop = min(sequence.end, start + room)
        if sequence.want == "score":
            stop = min(stop, max(wanted, start) + _MOST_OUTPUTS)
        # Of a text beyond longrope's original context, no piece may look like a short text: the first one is longer.
        while self.stretch(stop) != sequence.stretch:
            stop += 1
        n_outputs = max(stop - max(wanted, start), 0)
        chunk = Chunk(sequence.tokens[start:stop], start, sequence.table.blocks, n_outputs, sequence.adapter)
        plan.chunks.append((sequence, chunk))
        return stop - start

    def _admit(self, room: int, plan: Plan) -> None:
        """Let waiting texts in, in order, while there is room; none overtakes one for which there are no blocks."""
        reading = {key for s in self.running if s.pending > 1 and s.table for key in s.keys[s.table.n_known :]}
        for sequence in tuple(self.waiting):
            if room <= 0 or len(self.running) >= self.settings.max_running:
                return
            if sequence.idle:
                continue
            if self.pool.blocks_for(sequence.end) > self.pool.n_blocks:
                plan.failed.append((sequence, self._too_long(sequence)))
                continue
            self._extend_keys(sequence)
            usable = sequence.keys[: min(sequence.first_wanted, sequence.end - 1) // self.pool.block_size]
            n_found = self.pool.n_found(usable)
            if n_found < len(usable) and usable[n_found] in reading:
                continue
            # Those that write soon need a block each; without that, the newest would be thrown out right away.
            table = self.pool.open(usable, sequence.end, spare=len(self.running))
            if table is None:
                return
            self.waiting.remove(sequence)
            sequence.table, sequence.cached = table, table.n_known * self.pool.block_size
            self.add_running(sequence)
            room -= self._read(sequence, room, plan)
            reading.update(sequence.keys[table.n_known :])

    def _extend_keys(self, sequence: Sequence) -> None:
        """The digests of all full blocks; those of another set of frequencies are thrown away."""
        stretch = self.stretch(sequence.end) if sequence.table is None else sequence.stretch
        if stretch != sequence.stretch:
            sequence.stretch, sequence.keys = stretch, []
        salt = f"{sequence.adapter} {stretch} {sequence.tenant}".encode()
        self.pool.extend_keys(sequence.keys, sequence.tokens, salt)

    def _preempt(self, sequence: Sequence) -> None:
        """Take a text's blocks; it waits in its place of the order and is read again."""
        assert sequence.table is not None, "only a text with blocks can give them up"
        self.running.remove(sequence)
        self.pool.close(sequence.table)
        sequence.table, sequence.cached = None, 0
        sequence.guesses.clear()
        self.n_preempted += 1
        self.add(sequence)

    def _too_long(self, sequence: Sequence) -> UserError:
        room = self.pool.n_blocks * self.pool.block_size
        return UserError(
            f"the text has {sequence.end} tokens, the engine's cache has room for {room}",
            mend="Raise cache_tokens in the engine's settings, or shorten the text.",
        )


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
