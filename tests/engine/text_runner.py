"""A runner without a model, so that policy is tested by itself.

Its cache holds hashes in place of keys, and its logits depend on all of them, as they are read back through the block
table: a block that was shared, freed or overwritten wrongly gives another text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bimo import ModelSpec, SamplingParams
from bimo.engine.adapters import AdapterShelf
from bimo.engine.intake import Intake
from bimo.engine.request import Request
from bimo.engine.runner import Chunk, Rows
from bimo.engine.sampling import Rules, next_token, seed_of
from bimo.engine.settings import EngineSettings
from bimo.engine.steps import StepLoop

V, CONTEXT = 24, 96
_RANDOM = np.random.default_rng(0)
_PAIRS = _RANDOM.normal(size=(V * V, V)).astype(np.float32) * 3  # what follows two tokens: texts repeat themselves
_TEXTS = _RANDOM.normal(size=(997, V)).astype(np.float32)  # and all of the text


class TextRunner:
    """See above.

    Args:
        n_blocks: Blocks of the cache.
        original_context: As with longrope, keys of a longer text cannot be used for a shorter one, nor the other way.
        taste: Another number gives another model.
    """

    name, block_size, token_bytes = "hashes in place of keys", 4, 8

    def __init__(self, n_blocks: int, original_context: int = CONTEXT, taste: int = 0) -> None:
        self.n_blocks, self.original_context, self.taste = n_blocks, original_context, taste
        self.memory: dict[tuple[int, int], tuple[int, int]] = {}
        self.n_read = 0

    def logits(self, chunks: Sequence[Chunk]) -> Rows:
        rows: list[np.ndarray] = []
        for chunk in reversed(chunks):  # a runner may take them in any order
            end = chunk.start + len(chunk.tokens)
            assert end <= min(CONTEXT, len(chunk.blocks) * self.block_size), "the table covers the text"
            key = self._first_key(chunk.adapter, self.stretch(end))
            text = [(0, key), *(self.memory.get(self._slot(chunk, p), (0, 0)) for p in range(chunk.start))]
            for place, token in enumerate(chunk.tokens, start=chunk.start):
                text.append((token, _next_key(text[-1][1], token)))
                self.memory[self._slot(chunk, place)] = text[-1]
            self.n_read += len(chunk.tokens)
            rows += [_row(text[1 : place + 1]) for place in range(end, end - chunk.n_outputs, -1)]
        return np.stack(rows[::-1]) if rows else np.empty((0, V), dtype=np.float32)

    def hidden(self, chunks: Sequence[Chunk]) -> Rows:
        return self.logits(chunks)

    def copy_block(self, source: int, target: int) -> None:
        for place in range(self.block_size):
            if (source, place) in self.memory:
                self.memory[target, place] = self.memory[source, place]

    def stretch(self, length: int) -> int:
        return int(length > self.original_context)

    def row(self, text: Sequence[int], adapter: int = 0) -> np.ndarray:
        """Logits of what follows a text."""
        entries = [(0, self._first_key(adapter, self.stretch(len(text))))]
        for token in text:
            entries.append((token, _next_key(entries[-1][1], token)))
        return _row(entries[1:])

    def _first_key(self, adapter: int, stretch: int) -> int:
        """What the keys depend on beside the text."""
        return 1 + self.taste + 10 * adapter + 100 * stretch

    def _slot(self, chunk: Chunk, place: int) -> tuple[int, int]:
        return chunk.blocks[place // self.block_size], place % self.block_size


def _next_key(key: int, token: int) -> int:
    """A key depends on the token and on all before it."""
    return (key * 31 + token + 1) % 1_000_003


def _row(entries: Sequence[tuple[int, int]]) -> np.ndarray:
    """Logits depend on all keys, most on the last two tokens."""
    before = entries[-2][0] if len(entries) > 1 else 0
    return _PAIRS[before * V + entries[-1][0]] + _TEXTS[sum(key for _, key in entries) % 997]


def loop(runner: TextRunner, settings: EngineSettings | None = None, ends: frozenset[int] = frozenset()) -> StepLoop:
    """An engine's steps on a runner; there are two adapters."""
    intake = Intake(ModelSpec(vocab_size=V, context_length=CONTEXT), None, AdapterShelf(["a", "b"]))
    intake.ends = ends
    return StepLoop(runner, intake, settings or EngineSettings())


def alone(request: Request, ends: frozenset[int] = frozenset(), runner: TextRunner | None = None) -> list[list[int]]:
    """The answers to a request by the obvious loop: no cache, no batch."""
    params, runner = request.params, runner or TextRunner(1)
    found = []
    for number in range(params.n):
        assert params.seed is not None, "only a seed can be compared"
        rules, text = Rules(params, seed_of(params.seed, number), ends), list(request.prompt)
        adapter = {"": 0, "a": 1, "b": 2}[request.adapter]
        while len(text) < len(request.prompt) + params.max_tokens and len(text) <= CONTEXT:
            text.append(next_token(runner.row(text, adapter), text, len(request.prompt), rules))
            if text[-1] in ends or text[-1] in params.stop_ids:
                break
        found.append(text[len(request.prompt) :])
    return found


def assert_nothing_leaks(steps: StepLoop) -> None:
    assert steps.pool.n_free == steps.pool.n_blocks, "a block is held by nobody"
    assert not any(steps.pool.references), "no text is left"
    assert not steps.jobs, "no job is left"
    assert not steps.scheduler.running, "no text runs"
    assert not steps.scheduler.waiting, "no text waits"


def ask(name: str, prompt: Sequence[int], adapter: str = "", **params: object) -> Request:
    """A request with a seed."""
    return Request(name, tuple(prompt), SamplingParams.from_dict({"seed": 0, **params}), adapter=adapter)
