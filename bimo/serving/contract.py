"""What a gateway may ask of an engine service, and of a guard service; in this process or over a wire it is the same.

Calls and answers are frozen messages that go to and from plain JSON. `generate` gives events; whoever closes it cancels
the request, and its place is free after the step that is running. What goes wrong is a `ServiceError` (in a stream of
events: `Failed`) of a kind that has one HTTP status.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from bimo.core.errors import UserError
from bimo.serving.messages import Message

Kind = Literal["invalid", "not_found", "busy", "unavailable", "timeout", "internal"]
"""400, 404, 429, 503, 504 and 500."""
Task = Literal["translate", "summarize", "classify"]


class ServiceError(Exception):
    """Why a service did not do what it was asked.

    Args:
        kind: Whose fault it is.
        what: The sentence, without text of the request.
        where: Which field of the request.
        mend: What to do about it.
        retry_after_s: When it is worth trying again; 0: unknown.
    """

    def __init__(self, kind: Kind, what: str, where: str = "", mend: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(what)
        self.kind, self.what, self.where, self.mend, self.retry_after_s = kind, what, where, mend, retry_after_s

    @classmethod
    def of(cls, error: Exception, kind: Kind = "invalid") -> ServiceError:
        """As a caller gets it: a `UserError` is the caller's fault, anything else ours, and its words stay here."""
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, UserError):
            return cls(kind, error.what, error.where, error.mend)
        return cls("internal", f"the server failed ({type(error).__name__})", mend="Tell whoever runs it.")


@dataclass(frozen=True, slots=True)
class ModelCard(Message):
    """A model that can be asked for by its name.

    Attributes:
        name: As requests name it.
        base: Of a LoRA adapter: the model that it belongs to.
        context_length: Tokens that it sees.
        vocab_size: Its ids.
        d_model: Width of its embeddings.
        n_layers: Of it.
        n_heads: In each layer.
        chat: Whether it knows conversations.
        tasks: What it was trained for.
        labels: Of its classification.
        created: When it was opened, in seconds since 1970.
    """

    name: str
    base: str = ""
    context_length: int = 0
    vocab_size: int = 0
    d_model: int = 0
    n_layers: int = 0
    n_heads: int = 0
    chat: bool = False
    tasks: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    created: int = 0


@dataclass(frozen=True, slots=True)
class ChatMessage(Message):
    """What somebody said."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class GenerateCall(Message):
    """New text.

    Attributes:
        id: Of the request; in logs.
        model: A name out of `models()`.
        prompt: How the text begins, as text or ids; not used when there are messages.
        messages: A conversation that the model answers.
        params: Fields of `SamplingParams`.
        tenant: Whose it is; no tenant can tell from the speed what another has sent.
        report_logprobs: Whether pieces come with the tokens they are made of (`params["logprobs"]` says how many more).
    """

    id: str
    model: str
    prompt: str | tuple[int, ...] = ""
    messages: tuple[ChatMessage, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)
    tenant: str = ""
    report_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class TokenInfo(Message):
    """A token of an answer.

    Attributes:
        token: Its text; bytes that are no whole character are U+FFFD.
        logprob: Natural logarithm of its probability by the model alone.
        bytes: Its bytes.
        top: The likeliest tokens in its place, without their own `top`.
    """

    token: str
    logprob: float
    bytes: tuple[int, ...] = ()
    top: tuple[TokenInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Started(Message):
    """The request is right, and waits for its first token.

    Attributes:
        prompt_tokens: Ids that are read.
    """

    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Piece(Message):
    """New text of one of the answers; it ends with a whole character.

    Attributes:
        choice: Which answer.
        text: The text.
        logprobs: The tokens since the piece before, when they were asked for.
        tokens: How many tokens all answers have by now.
    """

    choice: int
    text: str
    logprobs: tuple[TokenInfo, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class ChoiceEnd(Message):
    """How one of the answers ended.

    Attributes:
        finish_reason: end, stop, max_tokens or context, as in the engine.
        tokens: Its tokens.
    """

    finish_reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Finished(Message):
    """All answers are there; nothing follows.

    Attributes:
        choices: The end of each.
        prompt_tokens: Ids that were read.
        completion_tokens: Ids that were chosen, of all answers.
    """

    choices: tuple[ChoiceEnd, ...]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Failed(Message):
    """The request came to nothing; nothing follows."""

    kind: Kind
    what: str
    where: str = ""
    mend: str = ""
    retry_after_s: float = 0.0

    @classmethod
    def of(cls, error: Exception) -> Failed:
        """What an error says."""
        known = ServiceError.of(error)
        return cls(known.kind, known.what, known.where, known.mend, known.retry_after_s)

    @property
    def error(self) -> ServiceError:
        """To be raised."""
        return ServiceError(self.kind, self.what, self.where, self.mend, self.retry_after_s)


Event = Started | Piece | Finished | Failed


@dataclass(frozen=True, slots=True)
class EmbedCall(Message):
    """A vector of length 1 for each text, which may be given as ids."""

    id: str
    model: str
    texts: tuple[str | tuple[int, ...], ...]
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Embedded(Message):
    """The vectors, in order."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ApplyCall(Message):
    """Texts that are translated, summarised or classified.

    Attributes:
        task: What is done.
        texts: One by one.
        source: Of a translation: the language of the texts; "": whatever it is.
        target: Of a translation: the language to translate into.
        labels: Of a classification: those to choose from; none: those that the model was trained with.
        tenant: Whose it is.
    """

    id: str
    model: str
    task: Task
    texts: tuple[str, ...]
    source: str = ""
    target: str = ""
    labels: tuple[str, ...] = ()
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class AppliedText(Message):
    """What came of one text.

    Attributes:
        text: The translation, the summary, or the label.
        probabilities: Of labels.
        warnings: What is to be said about it.
    """

    text: str
    probabilities: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied(Message):
    """What came of the texts, in order."""

    results: tuple[AppliedText, ...]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class AttentionCall(Message):
    """Which tokens of a short text a head looks at."""

    id: str
    model: str
    text: str
    layer: int
    head: int
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Attention(Message):
    """The weights of a head: row t holds those of token t, over all tokens."""

    tokens: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    n_layers: int
    n_heads: int


@dataclass(frozen=True, slots=True)
class EngineStats(Message):
    """What one engine is doing.

    Attributes:
        model: Its name.
        state: starting, ready, restarting, stopped.
        running: Texts with blocks.
        waiting: Texts without.
        free_blocks: Blocks that no text holds.
        n_blocks: All blocks.
        tokens_per_s: Of the last steps.
        n_tokens: Chosen so far.
        n_restarts: How often the engine died and was made anew.
        step_s: Seconds since the step that is running began; 0: none is.
    """

    model: str
    state: Literal["starting", "ready", "restarting", "stopped"]
    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    n_blocks: int = 0
    tokens_per_s: float = 0.0
    n_tokens: int = 0
    n_restarts: int = 0
    step_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServiceStats(Message):
    """What a service is doing.

    Attributes:
        engines: One for each model; adapters share that of theirs.
        memory_bytes: Of the service's process.
    """

    engines: tuple[EngineStats, ...]
    memory_bytes: int = 0

    @property
    def ready(self) -> bool:
        """Whether all of it can work."""
        return bool(self.engines) and all(engine.state == "ready" for engine in self.engines)


class EngineService(Protocol):
    """Models at work. Every method may raise a `ServiceError`; a call that is cancelled frees its place."""

    async def models(self) -> tuple[ModelCard, ...]:
        """What can be asked for."""
        ...

    def generate(self, call: GenerateCall) -> AsyncGenerator[Event, None]:
        """Started, then pieces, then Finished; or Failed, at any time. Closing it cancels the request."""
        ...

    async def embed(self, call: EmbedCall) -> Embedded:
        """A vector for each text."""
        ...

    async def apply(self, call: ApplyCall) -> Applied:
        """What the application makes of each text."""
        ...

    async def attention(self, call: AttentionCall) -> Attention:
        """The weights of a head."""
        ...

    async def stats(self) -> ServiceStats:
        """Of this moment."""
        ...

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Take nothing new, let what is under way come to its end for so long, then stop."""
        ...


@dataclass(frozen=True, slots=True)
class GuardVerdict(Message):
    """What a rule of the guard says; see `bimo.guard.Verdict`."""

    rule: str
    score: float
    action: Literal["note", "mask", "refuse"]
    start: int
    end: int


class GuardService(Protocol):
    """The guard."""

    async def check(self, texts: Sequence[str], side: Literal["input", "output"]) -> list[list[GuardVerdict]]:
        """The verdicts on each text; `start` and `end` are places in it."""
        ...

    async def rules(self) -> Mapping[str, str]:
        """Each rule's name, and what it may do to what comes out of a model: note, mask or refuse."""
        ...
