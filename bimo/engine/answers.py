"""What comes out of the engine, and how an answer is written: token by token, text by whole characters."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bimo.core.errors import UserError
from bimo.engine.request import SamplingParams
from bimo.engine.sampling import Floats, log_total
from bimo.engine.stops import StopStrings
from bimo.tokenizer import Tokenizer

FinishReason = Literal["end", "stop", "max_tokens", "context", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was by the model alone, before any rule.

    Attributes:
        token: The id that was chosen.
        logprob: Its natural logarithm of probability.
        top: The likeliest ids with theirs, likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer.

    Attributes:
        text: The new text.
        tokens: The new ids; the one that ended it is among them.
        finish_reason: end (the model said so), stop (a stop string or a stop id), max_tokens, context (the model sees
            no further), or error.
        logprobs: One for each token, when they were asked for.
        score: Of beam search: log-probability / length ** length_penalty.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The answers to a prompt; text, tokens and all that are those of the first.

    Attributes:
        choices: `params.n` answers, the best first with beams; empty when there is an error.
        error: Why there is no answer.
    """

    choices: tuple[Choice, ...]
    error: UserError | None = None

    @property
    def text(self) -> str:
        """The new text."""
        return self.choices[0].text if self.choices else ""

    @property
    def tokens(self) -> tuple[int, ...]:
        """The new ids."""
        return self.choices[0].tokens if self.choices else ()

    @property
    def n_tokens(self) -> int:
        """How many tokens it took."""
        return len(self.tokens)

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended."""
        return self.choices[0].finish_reason if self.choices else "error"

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """One for each token, when they were asked for."""
        return self.choices[0].logprobs if self.choices else ()


class Writer:
    """Writes one answer.

    Args:
        tokenizer: Ids to text; None: there are ids only.
        params: When to stop, and what to report.
        ends: Ids that end an answer.
        room: New tokens that the model's context has room for.
    """

    def __init__(self, tokenizer: Tokenizer | None, params: SamplingParams, ends: Collection[int], room: int) -> None:
        self.params, self.ends, self.room = params, ends, room
        self.decoder = None if tokenizer is None else tokenizer.decoder()
        self.stops = StopStrings(params.stop)
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.pieces: list[str] = []
        self.reason: FinishReason | None = None

    def push(self, token: int, logits: Floats) -> str:
        """Take the next token, and the logits that it was chosen from; return the text that is certain now.

        `reason` is set when the answer is finished.
        """
        self.tokens.append(token)
        if self.params.logprobs is not None:
            self.logprobs.append(logprob_of(token, logits, self.params.logprobs))
        if token in self.ends or token in self.params.stop_ids:
            self.reason = "end" if token in self.ends else "stop"
            return self._keep(self._rest())
        piece = self._decoded(token)
        if self.stops.found:
            self.reason = "stop"
        elif len(self.tokens) >= min(self.params.max_tokens, self.room):
            self.reason = "max_tokens" if len(self.tokens) == self.params.max_tokens else "context"
            piece += self._rest()
        return self._keep(piece)

    def end(self) -> str:
        """The answer is over although no token said so; return the rest of the text."""
        self.reason = "end"
        return self._keep(self._rest())

    def choice(self, score: float | None = None) -> Choice:
        """The finished answer."""
        assert self.reason is not None, "the answer is not finished"
        return Choice("".join(self.pieces), tuple(self.tokens), self.reason, tuple(self.logprobs), score)

    def _decoded(self, token: int) -> str:
        return "" if self.decoder is None else self.stops.push(self.decoder.push(token))

    def _rest(self) -> str:
        """What was held back."""
        if self.decoder is None:
            return ""
        rest = self.stops.push(self.decoder.finish()) + self.stops.finish()
        if self.stops.found:
            self.reason = "stop"
        return rest

    def _keep(self, piece: str) -> str:
        if piece:
            self.pieces.append(piece)
        return piece


def logprob_of(token: int, logits: Floats, n_top: int) -> TokenLogprob:
    """The log-probability of a token and of the likeliest ones."""
    total = log_total(logits)
    top: list[int] = []
    if n_top:
        n_top = min(n_top, len(logits))
        largest = np.argpartition(logits, -n_top)[-n_top:]
        top = largest[np.lexsort((largest, -logits[largest]))].tolist()
    return TokenLogprob(token, float(logits[token]) - total, tuple((i, float(logits[i]) - total) for i in top))
