"""What is done with the outputs of a step, for each kind of request: write on, add up log-probabilities, pool.

A job is a request under way. The engine asks it for its texts, gives it the outputs of each step, and lets it settle
with the scheduler after the step. What has come of it so far can be read at any time by another thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from bimo.core.errors import UserError
from bimo.engine.answers import Completion, Writer
from bimo.engine.request import EngineError, Request
from bimo.engine.runner import Chunk, Rows
from bimo.engine.sampling import DAMAGED, Floats, Rules, check_finite, log_total, next_token
from bimo.engine.scheduler import Scheduler
from bimo.engine.sequence import Sequence


class Job:
    """A request under way.

    Args:
        request: What was asked.
        sequences: Its texts.

    Attributes:
        pieces: What can be shown and was not fetched yet: number of the answer, text.
        result: What came of it, when it is finished.
        error: Why nothing came of it.
        finished: Set when there is a result or an error, or it was cancelled.
        listener: Called, in the thread that runs the step, after something new can be fetched.
    """

    def __init__(self, request: Request, sequences: list[Sequence]) -> None:
        self.request, self.sequences = request, sequences
        self.pieces: deque[tuple[int, str]] = deque()
        self.result: Any = None
        self.error: UserError | None = None
        self.finished = threading.Event()
        self.listener: Callable[[], None] | None = None

    def take(self, sequence: Sequence, chunk: Chunk, rows: Rows) -> int:
        """Use the outputs of one chunk; returns how many of its tokens stay in the cache."""
        raise NotImplementedError

    def settle(self, scheduler: Scheduler) -> None:
        """After a step: texts that are finished leave, and with the last one the job is."""
        for sequence in [s for s in self.sequences if s.done]:
            self.sequences.remove(sequence)
            scheduler.remove(sequence)
        if not self.sequences and not self.finished.is_set():
            self.result = self.collect()
            self.finished.set()
        self.notify()

    def collect(self) -> Any:
        """The result, when all texts are finished."""
        raise NotImplementedError

    def stop(self, scheduler: Scheduler, error: UserError | None = None) -> None:
        """Give everything up: cancelled, or because of an error."""
        for sequence in self.sequences:
            scheduler.remove(sequence)
        self.sequences.clear()
        self.error = error
        self.finished.set()
        self.notify()

    def notify(self) -> None:
        """Tell the listener."""
        if self.listener is not None:
            self.listener()


class Generation(Job):
    """New tokens: `params.n` answers, each with rules, draws and a writer of its own.

    Args:
        request: What was asked.
        sequences: One text for each answer.
        rules: How each one's tokens are chosen.
        writers: What writes each one.
    """

    def __init__(self, request: Request, sequences: list[Sequence], rules: list[Rules], writers: list[Writer]) -> None:
        super().__init__(request, sequences)
        self.rules, self.writers = rules, writers

    def take(self, sequence: Sequence, chunk: Chunk, rows: Rows) -> int:
        """Choose a token from each row, as long as the guesses that were read are what is chosen."""
        if not chunk.n_outputs:
            return len(chunk.tokens)
        number = sequence.order[1]
        rules, writer = self.rules[number], self.writers[number]
        guesses = chunk.tokens[len(chunk.tokens) - chunk.n_outputs + 1 :]
        n_right = 0
        for row in rows:
            token = next_token(row, sequence.tokens, sequence.n_prompt, rules)
            sequence.tokens.append(token)
            piece = writer.push(token, row)
            if rules.constraint is not None and rules.constraint.finished and writer.reason is None:
                piece += writer.end()
            if piece:
                self.pieces.append((number, piece))
            if writer.reason is not None:
                sequence.done = True
                break
            if n_right == len(guesses) or token != guesses[n_right]:
                break
            n_right += 1
        sequence.guesses.clear()
        sequence.n_accepted = n_right
        return len(chunk.tokens) - len(guesses) + n_right

    def collect(self) -> Completion:
        """All answers."""
        return Completion(tuple(writer.choice() for writer in self.writers))


class Scoring(Job):
    """Log-probability of each token from `request.n_context` on, by the model alone."""

    def __init__(self, request: Request, sequences: list[Sequence]) -> None:
        super().__init__(request, sequences)
        self.logprobs: list[float] = []

    def take(self, sequence: Sequence, chunk: Chunk, rows: Rows) -> int:
        """Place p's output is about the token at p + 1."""
        end = chunk.start + len(chunk.tokens)
        for place, row in enumerate(rows, start=end - chunk.n_outputs):
            check_finite(float(row.max()))
            self.logprobs.append(float(row[sequence.tokens[place + 1]]) - log_total(row))
        sequence.output_from = max(sequence.first_wanted, end)
        sequence.done = end == sequence.end
        return len(chunk.tokens)

    def collect(self) -> tuple[float, ...]:
        """One for each token that was asked about."""
        return tuple(self.logprobs)


class Pooling(Job):
    """One vector for a text: the last hidden state, or the mean of all; the sum is kept in float64."""

    def __init__(self, request: Request, sequences: list[Sequence]) -> None:
        super().__init__(request, sequences)
        self.sum: Any = 0.0
        self.n_rows = 0

    def take(self, sequence: Sequence, chunk: Chunk, rows: Rows) -> int:
        """Add the wanted states."""
        end = chunk.start + len(chunk.tokens)
        own = rows.astype(np.float64).sum(axis=0)  # (C,)
        if not np.isfinite(own).all():
            raise EngineError("the model's states are NaN or infinite", mend=DAMAGED)
        self.sum = self.sum + own
        self.n_rows += len(rows)
        if sequence.output_from is not None:
            sequence.output_from = max(sequence.output_from, end)
        sequence.done = end == sequence.end
        return len(chunk.tokens)

    def collect(self) -> Floats:
        """The mean of the states, (C,)."""
        return np.asarray(self.sum / self.n_rows, dtype=np.float32)
