"""What a caller may ask of the engine. Policy only: no tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bimo.core.errors import UserError
from bimo.core.settings import Settings

Want = Literal["generate", "score", "mean", "last"]
_MOST_ANSWERS = 1024  # to one request: each is a text of its own


class EngineError(UserError):
    """A request came to nothing, and whoever asked has no part in it: damaged weights, a runner that failed."""


@dataclass(frozen=True)
class SamplingParams(Settings):
    """How the next token is chosen, and when to stop.

    The rules act in this order: bias, what is forbidden or constrained, penalties, min_tokens, temperature, top_k,
    top_p, min_p.
    """

    max_tokens: int = 128
    """At most this many new tokens."""
    min_tokens: int = 0
    """At least this many new tokens: until then no end and none of `stop_ids` is chosen."""
    temperature: float = 0.8
    """Divides the logits: 0 is greedy (always the likeliest token), 1 the model's own distribution."""
    top_k: int = 0
    """Draw from the k likeliest tokens only; 0: no limit."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with at least this probability together (Holtzman et al. 2019)."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one (Nguyen et al. 2024)."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that already stand in the text become less likely (Keskar et al. 2019, CTRL)."""
    presence_penalty: float = 0.0
    """Taken from the logit of each token that the answer holds already (as in OpenAI's interface)."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit as often as the answer holds it already (as in OpenAI's interface)."""
    logit_bias: dict = field(default_factory=dict)
    """Added to the logits of single tokens: {id: number}; -100 bars a token, 100 forces it."""
    seed: int | None = None
    """The same seed gives the same text; none: a new one each time."""
    n: int = 1
    """Answers to each prompt; with beams, so many of the best."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation; they are not part of the answer."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the generation, beside the model's own end; their text is not part of the answer."""
    logprobs: int | None = None
    """Report the log-probability of each token and of so many of the likeliest ones, by the model alone, before any
    rule; none: nothing is reported."""
    beams: int = 1
    """Above 1: beam search for the likeliest text with so many beams; nothing is drawn then."""
    length_penalty: float = 1.0
    """Of beam search: texts are compared by log-probability / length ** length_penalty; above 0 favours long ones."""
    regex: str = ""
    """The whole answer matches this regular expression."""
    choices: tuple[str, ...] = ()
    """The answer is one of these texts."""
    json_schema: str = ""
    """The answer is JSON that this JSON schema (as text) allows; {} allows any JSON."""

    @property
    def constrained(self) -> bool:
        """Whether the answer must have a form."""
        return bool(self.regex or self.choices or self.json_schema)

    def problems(self) -> list[str]:
        found = [] if self.max_tokens >= 1 else [f"max_tokens must be at least 1, is {self.max_tokens}"]
        if not 0 <= self.min_tokens <= self.max_tokens:
            found.append(f"min_tokens must lie in 0 … max_tokens, is {self.min_tokens}")
        if not 0 <= self.temperature < float("inf"):
            found.append(f"temperature must be 0 or more, is {self.temperature}")
        if self.top_k < 0:
            found.append(f"top_k must be 0 or more, is {self.top_k}")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p must lie in 0 … 1 and not be 0, is {self.top_p}")
        if not 0 <= self.min_p <= 1:
            found.append(f"min_p must lie in 0 … 1, is {self.min_p}")
        if not 1e-3 <= self.repetition_penalty <= 1e3:
            found.append(f"repetition_penalty must lie in 0.001 … 1000, is {self.repetition_penalty}")
        for name in ("presence_penalty", "frequency_penalty", "length_penalty"):
            if not abs(getattr(self, name)) <= 1e3:
                found.append(f"{name} must lie in -1000 … 1000, is {getattr(self, name)}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            found.append(f"seed must have at most 64 bits, is {self.seed}")
        if any(not text for text in self.stop):
            found.append("stop must not hold an empty text")
        if self.logprobs is not None and not 0 <= self.logprobs <= 100:
            found.append(f"logprobs must lie in 0 … 100, is {self.logprobs}")
        return [*found, *self._problems_of_ids(), *self._problems_together()]

    def _problems_of_ids(self) -> Iterator[str]:
        """What is wrong with the ids that are named; whether the model has them only the engine knows."""
        for key, value in self.logit_bias.items():
            number = isinstance(value, (int, float)) and abs(value) <= 1e6
            if not number or not (isinstance(key, int) or (isinstance(key, str) and key.isdecimal())) or int(key) < 0:
                yield f"logit_bias must be ids with finite numbers, has {key!r}: {value!r}"
        if any(token < 0 for token in self.stop_ids):
            yield f"stop_ids must be ids, are {self.stop_ids}"

    def _problems_together(self) -> Iterator[str]:
        """What does not go together."""
        forms = [name for name in ("regex", "choices", "json_schema") if getattr(self, name)]
        if len(forms) > 1:
            yield f"regex, choices and json_schema exclude each other, given are {' and '.join(forms)}"
        for name in ("n", "beams"):
            if not 1 <= getattr(self, name) <= _MOST_ANSWERS:
                yield f"{name} must lie in 1 … {_MOST_ANSWERS}, is {getattr(self, name)}"
        if self.beams > 1:
            if self.n > self.beams:
                yield f"n must be at most beams ({self.beams}), is {self.n}"
            if forms or self.stop:
                yield "beams go without stop, regex, choices and json_schema"
            if self.logprobs is not None:
                yield "beams go without logprobs: each answer has its score"


@dataclass(frozen=True, slots=True)
class Request:
    """One thing asked of the engine.

    Attributes:
        id: A name of the caller's; no two requests under way have the same.
        prompt: Token ids that are read.
        params: How tokens are chosen, when some are generated.
        want: New tokens; log-probabilities of the tokens from `n_context` on; the mean of the hidden states, or the
            last one.
        adapter: Name of the LoRA adapter to use; "": none.
        n_context: Tokens at the beginning that are read and not asked about.
        tenant: Whose it is. Blocks of the cache are shared within a tenant only, so that nobody can tell from the time
            to the first token what another one has sent.
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    want: Want = "generate"
    adapter: str = ""
    n_context: int = 0
    tenant: str = ""


def room_after(context_length: int, prompt: Sequence[int]) -> int:
    """How many tokens can follow a prompt: the last one is not read again, so one more than the context has.

    Raises:
        UserError: The prompt is empty, or longer than the context.
    """
    if not prompt:
        raise UserError("the prompt has no tokens", mend="Give at least one.")
    if len(prompt) > context_length:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, the model sees at most {context_length}", mend="Shorten the prompt."
        )
    return context_length - len(prompt) + 1
