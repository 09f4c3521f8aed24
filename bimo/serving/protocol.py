"""Requests in OpenAI's dialect, each field with its bounds. A field that nobody knows is refused, and so are those that
would change what the answer means (tools, audio); some that change nothing are accepted and ignored. Lists are left at
their first wrong item, so that a body of a million of them costs no more than one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_LONGEST_STOP = 256
Name = Annotated[str, Field(max_length=256)]
Text = Annotated[str, Field(max_length=4_000_000)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[Id], Field(fail_fast=True, min_length=1, max_length=2**20)]
Stop = Annotated[str, Field(min_length=1, max_length=_LONGEST_STOP)]
Bias = Annotated[float, Field(ge=-100, le=100)]
_IGNORED = "Accepted, and ignored."


class Body(BaseModel):
    """What all requests share: types are what they are, unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Body):
    """A part of a message; there is only text."""

    type: Literal["text"]
    text: Text


class ChatTurn(Body):
    """What somebody said."""

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="developer is another word for system."
    )
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, max_length=256)] = Field(
        description="Text, or parts of it."
    )
    name: Name | None = Field(None, description=_IGNORED)

    @property
    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Body):
    """How a stream is written."""

    include_usage: bool = Field(False, description="A last chunk says how many tokens it was.")
    include_obfuscation: bool | None = Field(None, description=_IGNORED)


class JsonSchema(Body):
    """A form of JSON."""

    name: Name = Field("answer", description=_IGNORED)
    description: Text | None = Field(None, description=_IGNORED)
    form: dict[str, Any] = Field(
        alias="schema", description="JSON schema; without pattern, patternProperties and references to elsewhere."
    )
    strict: bool | None = Field(None, description="The answer always keeps to the schema.")


class ResponseFormat(Body):
    """What form the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, description="For json_schema.")


class Sampling(Body):
    """How an answer is drawn."""

    model: Name = Field("", description="A name of /v1/models; empty: the first, or the one for the text's language.")
    temperature: float | None = Field(1.0, ge=0, le=2, description="0: always the likeliest token.")
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(0, ge=0, le=2**20, description="Draw from the k likeliest tokens; 0: no limit.")
    min_p: float | None = Field(0.0, ge=0, le=1, description="Drop tokens below this share of the likeliest one.")
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    repetition_penalty: float | None = Field(1.0, ge=0.1, le=10)
    min_tokens: int | None = Field(0, ge=0, le=2**20, description="No end before so many tokens.")
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1024)] | None = Field(
        None, description="Added to the logits of tokens, by id."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(None, description="The same seed, the same text.")
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=16)] | None = Field(
        None, description="Texts that end the answer; they are no part of it."
    )
    n: Annotated[int, Field(ge=1, le=128)] | None = Field(1, description="Answers; the server has a limit of its own.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: Name | None = Field(None, description=_IGNORED)
    metadata: Annotated[dict[str, Name], Field(max_length=16)] | None = Field(None, description=_IGNORED)
    store: bool | None = Field(None, description="Nothing is stored.")
    service_tier: Name | None = Field(None, description=_IGNORED)
    safety_identifier: Name | None = Field(None, description=_IGNORED)
    prompt_cache_key: Name | None = Field(None, description=_IGNORED)

    @property
    def stops(self) -> list[str]:
        """Texts that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatTurn], Field(fail_fast=True, min_length=1, max_length=2048)]
    max_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = Field(None, description="New tokens.")
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = Field(None, description="The same.")
    logprobs: bool | None = Field(False, description="Report how likely each token was, by the model alone.")
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(None, description="And so many of the likeliest.")
    response_format: ResponseFormat | None = None
    parallel_tool_calls: bool | None = Field(None, description=_IGNORED)


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=64)]
        | Ids
        | Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=64)]
    ) = Field(description="A text, texts, ids, or lists of ids.")
    max_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = Field(16, description="New tokens.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(None, description="Report the likeliest tokens.")
    echo: Literal[False] | None = Field(False, description="The prompt is not repeated.")
    best_of: Annotated[int, Field(ge=1, le=128)] | None = Field(None, description="Nothing but n.")
    suffix: Annotated[str, Field(max_length=0)] | None = Field(None, description="Nothing: text cannot be inserted.")

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """One or more."""
        given: Any = self.prompt
        if isinstance(given, str):
            return [given]
        if isinstance(given[0], int):
            return [tuple(given)]
        return [one if isinstance(one, str) else tuple(one) for one in given]


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    model: Name = ""
    input: (
        Text
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=2048)]
        | Ids
        | Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=2048)]
    ) = Field(description="A text, texts, ids, or lists of ids.")
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1, le=2**20)] | None = Field(None, description="As many as the model has.")
    user: Name | None = Field(None, description=_IGNORED)

    @property
    def texts(self) -> list[str | tuple[int, ...]]:
        """One or more."""
        given: Any = self.input
        if isinstance(given, str):
            return [given]
        if isinstance(given[0], int):
            return [tuple(given)]
        return [one if isinstance(one, str) else tuple(one) for one in given]


Texts = Text | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=2048)]


class ModerationRequest(Body):
    """POST /v1/moderations."""

    model: Name | None = Field(None, description=_IGNORED)
    input: Texts | Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=2048)]

    @property
    def texts(self) -> list[str]:
        """One or more."""
        return texts_of(self.input)


class TranslateRequest(Body):
    """POST /v1/translate."""

    model: Name = ""
    input: Texts
    source: Annotated[str, Field(max_length=64)] = Field("", description="Language of the texts, by code or name.")
    target: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="Language to translate into.")


class SummarizeRequest(Body):
    """POST /v1/summarize."""

    model: Name = ""
    input: Texts
    language: Annotated[str, Field(max_length=64)] = Field("", description="Of the texts; helps to choose the model.")


class ClassifyRequest(Body):
    """POST /v1/classify."""

    model: Name = ""
    input: Texts
    labels: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]], Field(fail_fast=True, max_length=256)
    ] = Field(default_factory=list, description="To choose from; none: those that the model was trained with.")


class AttentionRequest(Body):
    """POST /v1/attention."""

    model: Name = ""
    input: Annotated[str, Field(min_length=1, max_length=4096)] = Field(description="At most 128 tokens.")
    layer: Annotated[int, Field(ge=0, le=1000)]
    head: Annotated[int, Field(ge=0, le=1000)]


def texts_of(given: str | list[Any]) -> list[str]:
    """One text or several, as a list."""
    if isinstance(given, str):
        return [given]
    return [one if isinstance(one, str) else one.text for one in given]
