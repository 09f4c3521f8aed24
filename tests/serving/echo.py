"""A runner that repeats what the user said, so that answers are known to the byte; everything around it is real."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bimo import LM
from bimo.engine import Engine, EngineSettings
from bimo.engine.runner import Chunk, Rows
from bimo.serving.models import ServedModel
from bimo.tokenizer.special import END_OF_TURN


class EchoRunner:
    """Says the last message again, then ends the turn.

    Args:
        lm: Whose ids they are.
        before: Called before each step, for example to wait or to fail.
    """

    name, block_size = "repeats the user", 16

    def __init__(self, lm: LM, before: Callable[[Sequence[Chunk]], None], n_blocks: int = 4096) -> None:
        self.n_blocks, self._before = n_blocks, before
        self.vocab_size = lm.model.spec.vocab_size
        control = lm.tokenizer.control_tokens
        self._end, self._user = control[END_OF_TURN], control["<|user|>"]
        self._assistant = control["<|assistant|>"]
        self._memory: dict[tuple[int, int], int] = {}
        self.n_read = 0

    def logits(self, chunks: Sequence[Chunk]) -> Rows:
        """One row for each wanted place: the next token for certain."""
        self._before(chunks)
        rows = []
        for chunk in chunks:
            for place, token in enumerate(chunk.tokens, start=chunk.start):
                self._memory[self._slot(chunk, place)] = token
            self.n_read += len(chunk.tokens)
            end = chunk.start + len(chunk.tokens)
            text = [self._memory[self._slot(chunk, place)] for place in range(end)]
            for last in range(end - chunk.n_outputs, end):
                row = np.zeros(self.vocab_size, dtype=np.float32)
                row[self._next(text[: last + 1])] = 50
                rows.append(row)
        return np.stack(rows) if rows else np.empty((0, self.vocab_size), dtype=np.float32)

    def hidden(self, chunks: Sequence[Chunk]) -> Rows:
        """Vectors that say how much was read."""
        return np.ones((sum(chunk.n_outputs for chunk in chunks), 48), dtype=np.float32)

    def copy_block(self, source: int, target: int) -> None:
        """See `Runner`."""
        for place in range(self.block_size):
            if (source, place) in self._memory:
                self._memory[target, place] = self._memory[source, place]

    def stretch(self, length: int) -> int:
        """See `Runner`."""
        return 0

    def _next(self, text: list[int]) -> int:
        if self._assistant not in text:
            return self._end
        n_said = len(text) - 1 - (len(text) - 1 - text[::-1].index(self._assistant))
        start = len(text) - text[::-1].index(self._user)
        words = text[start : text.index(self._end, start)]
        return words[n_said] if n_said < len(words) else self._end

    def _slot(self, chunk: Chunk, place: int) -> tuple[int, int]:
        return chunk.blocks[place // self.block_size], place % self.block_size


class Echo(ServedModel):
    """A model that repeats what it is told.

    Args:
        lm: Its tokenizer and its shape.
        before: Called before each step.
    """

    def __init__(
        self, lm: LM, before: Callable[[Sequence[Chunk]], None] = lambda chunks: None, **settings: int
    ) -> None:
        self.before = before
        super().__init__("echo", lm, EngineSettings(**settings))

    def _engine(self) -> Engine:
        self.runner = EchoRunner(self.lm, lambda chunks: self.before(chunks))
        return Engine(self.lm, settings=self._settings, runner=self.runner)
