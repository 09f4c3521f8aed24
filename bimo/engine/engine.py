"""The engine: a model and a tokenizer that answer one request at a time, with a KV cache.

`new_tokens` is the loop: run the model on what is new, choose a token, hand it out. Text is cut from tokens by the
tokenizer's incremental decoder, which never splits a character, and by the stop strings. Control tokens other than the
ends are never generated.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bimo.core.errors import UserError
from bimo.engine.request import SamplingParams, StopStrings
from bimo.engine.sampling import next_token
from bimo.model.cache import KVCache
from bimo.model.gpt import GPT
from bimo.model.packed import unpack
from bimo.tokenizer import Tokenizer

FinishReason = Literal["end", "stop", "max_tokens", "context"]


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer.

    Attributes:
        text: The new text.
        n_tokens: How many tokens it took.
        finish_reason: end (the model said so), stop (a stop string), max_tokens, or context (the model sees no
        further).
    """

    text: str
    n_tokens: int
    finish_reason: FinishReason


class Engine:
    """Generates with one model.

    Args:
        model: A GPT; it is put into evaluation mode for each request, and packed weights are unpacked: once per model,
            memory for speed.
        tokenizer: The tokenizer it was trained with.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = unpack(model), tokenizer

    def generate(self, prompts: Iterable[str], params: SamplingParams | None = None) -> list[Completion]:
        """An answer to each prompt, in order."""
        return [self.complete(self.prompt_ids(prompt), params) for prompt in prompts]

    def complete(self, prompt: Sequence[int], params: SamplingParams | None = None) -> Completion:
        """The whole answer to a prompt of token ids."""
        pieces: list[str] = []
        stream = self.stream(prompt, params or SamplingParams())
        try:
            while True:
                pieces.append(next(stream))
        except StopIteration as end:
            n_tokens, reason = end.value
        return Completion("".join(pieces), n_tokens, reason)

    def prompt_ids(self, text: str) -> list[int]:
        """A prompt's ids: what the tokenizer puts before a prompt (the beginning of a document), then the text."""
        return [*self.tokenizer.prefix_ids, *self.tokenizer.encode(text)]

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Generator[str, None, tuple[int, FinishReason]]:
        """Pieces of the answer as they become whole characters; returns the count of tokens and the reason to stop."""
        decoder, stops = self.tokenizer.decoder(), StopStrings(params.stop)
        n_tokens, reason = 0, "max_tokens"
        ends = self.tokenizer.end_ids
        room = room_after(self.model, prompt)
        for token in self.tokens(prompt, params):
            n_tokens += 1
            if token in ends:
                reason = "end"
                break
            piece = stops.push(decoder.push(token))
            if piece:
                yield piece
            if stops.found:
                return n_tokens, "stop"
        rest = stops.push(decoder.finish())
        rest += stops.finish()
        if rest:
            yield rest
        if reason == "max_tokens" and n_tokens == room < params.max_tokens:
            reason = "context"
        return n_tokens, "stop" if stops.found else reason  # type: ignore[return-value]  # a literal by construction

    def tokens(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[int]:
        """New token ids, one by one, until an end token, `max_tokens` or the end of the context."""
        return new_tokens(self.model, prompt, params, forbidden=self._forbidden(), ends=self.tokenizer.end_ids)

    def _forbidden(self) -> Tensor:
        """Ids that must not appear inside an answer: control tokens, and ids beyond the tokenizer."""
        beyond = range(self.tokenizer.vocab_size, self.model.spec.vocab_size)
        return torch.tensor(
            sorted({*self.tokenizer.control_tokens.values(), *beyond} - self.tokenizer.end_ids), dtype=torch.long
        )


def new_tokens(
    model: GPT,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    forbidden: Tensor | None = None,
    ends: frozenset[int] = frozenset(),
) -> Iterator[int]:
    """The loop: ids that follow a prompt, one by one, until one of `ends`, `max_tokens` or the end of the context.

    Args:
        model: The model; it is put into evaluation mode.
        prompt: Token ids.
        params: How each token is chosen.
        forbidden: Ids that are never chosen, int64 (n,).
        ends: Ids after which nothing follows.
    """
    capacity = len(prompt) + min(params.max_tokens, room_after(model, prompt))
    weight = model.lm_head.weight
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    text = torch.zeros(capacity, dtype=torch.long)
    text[: len(prompt)] = torch.tensor(prompt)
    cache = KVCache(model.spec, 1, capacity, device=weight.device, dtype=weight.dtype)
    model.eval()
    for end in range(len(prompt), capacity):
        start = model.starting_point(cache, end)
        with torch.inference_mode():
            hidden = model.hidden(text[None, start:end].to(weight.device), cache=cache)  # (1, T, C)
            logits = model.logits(hidden[0, -1]).float().cpu()  # (V,)
            if forbidden is not None:
                logits[forbidden] = float("-inf")
            token = next_token(logits, text[:end], params, generator)
        yield token
        if token in ends:
            return
        text[end] = token


def room_after(model: GPT, prompt: Sequence[int]) -> int:
    """How many tokens can follow a prompt: the last one is not read again, so one more than the context has.

    Raises:
        UserError: The prompt is empty, or longer than the context.
    """
    limit = model.spec.context_length
    if not prompt:
        raise UserError("the prompt has no tokens", mend="Give at least one.")
    if len(prompt) > limit:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, the model sees at most {limit}", mend="Shorten the prompt."
        )
    return limit - len(prompt) + 1
