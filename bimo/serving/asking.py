"""From a request's fields to calls of the engine service."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from bimo.serving.contract import ChatMessage, GenerateCall, ModelCard
from bimo.serving.errors import ApiError
from bimo.serving.gateway import Gateway, Routed, Visit
from bimo.serving.generating import Wish
from bimo.serving.protocol import ChatRequest, CompletionRequest, ResponseFormat, Sampling
from bimo.serving.schemas import schema_text
from bimo.serving.settings import ServeSettings
from bimo.serving.shapes import ChatShape, CompletionShape

_MOST_LOGPROBS = 100_000
_ANY_OBJECT = '{"type": "object"}'


async def chat_wish(gateway: Gateway, visit: Visit, asked: ChatRequest) -> Wish:
    """What a chat request wants.

    Raises:
        ApiError: It cannot be had.
    """
    settings = gateway.settings
    roles = {"developer": "system"}
    messages = tuple(ChatMessage(roles.get(turn.role, turn.role), turn.text) for turn in asked.messages)
    newest = next((m.content for m in reversed(messages) if m.role == "user"), "")
    routed, card = await gateway.routed(newest, asked.model)
    if not card.chat:
        message = f"the model {card.name!r} knows no conversations; use /v1/completions"
        raise ApiError(400, message, "no_chat", param="model")
    most = asked.max_completion_tokens or asked.max_tokens or settings.default_tokens
    params = _params(asked, most, settings)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_value", param="top_logprobs")
    if asked.logprobs:
        params["logprobs"] = asked.top_logprobs or 0
        _check_logprobs(params)
    params |= _form(asked.response_format)
    call = GenerateCall(
        id=visit.id, model=card.name, messages=messages, params=params, tenant=visit.key.name,
        report_logprobs=bool(asked.logprobs),
    )  # fmt: skip
    shape = ChatShape(f"chatcmpl-{visit.id}", card.name, int(time.time()), bool(asked.logprobs))
    return _wish(visit, asked, (call,), shape, routed)


async def completion_wish(gateway: Gateway, visit: Visit, asked: CompletionRequest) -> Wish:
    """What a completion request wants.

    Raises:
        ApiError: It cannot be had.
    """
    settings = gateway.settings
    prompts = asked.prompts
    routed, card = await gateway.routed(next((p for p in prompts if isinstance(p, str)), ""), asked.model)
    params = _params(asked, asked.max_tokens or 16, settings)
    if asked.best_of not in (None, asked.n or 1):
        raise ApiError(400, "best_of must equal n", "invalid_value", param="best_of")
    if len(prompts) * (asked.n or 1) > settings.max_n:
        message = f"prompts times n must be at most {settings.max_n}"
        raise ApiError(400, message, "invalid_value", param="prompt")
    if asked.logprobs is not None:
        params["logprobs"] = asked.logprobs
        _check_logprobs(params, len(prompts))
    _check_ids(prompts, card)
    calls = tuple(
        GenerateCall(
            id=f"{visit.id}-{number}", model=card.name, prompt=prompt, params=params, tenant=visit.key.name,
            report_logprobs=asked.logprobs is not None,
        )
        for number, prompt in enumerate(prompts)
    )  # fmt: skip
    shape = CompletionShape(f"cmpl-{visit.id}", card.name, int(time.time()), asked.logprobs is not None)
    return _wish(visit, asked, calls, shape, routed)


def _wish(
    visit: Visit, asked: Sampling, calls: tuple[GenerateCall, ...], shape: ChatShape | CompletionShape, routed: Routed
) -> Wish:
    visit.model = routed.model
    if asked.stream_options is not None and not asked.stream:
        raise ApiError(400, "stream_options needs stream: true", "invalid_value", param="stream_options")
    usage = bool(asked.stream_options and asked.stream_options.include_usage)
    return Wish(calls, asked.n or 1, shape, bool(asked.stream), usage, routed)


def _params(asked: Sampling, most: int, settings: ServeSettings) -> dict[str, Any]:
    """The fields of `SamplingParams`; null is the default."""
    if most > settings.max_tokens:
        message = f"max_tokens must be at most {settings.max_tokens} on this server, is {most}"
        raise ApiError(400, message, "invalid_value", param="max_tokens")
    if (asked.n or 1) > settings.max_n:
        raise ApiError(400, f"n must be at most {settings.max_n} on this server", "invalid_value", param="n")
    if (asked.min_tokens or 0) > most:
        raise ApiError(400, "min_tokens must be at most max_tokens", "invalid_value", param="min_tokens")
    names = ("top_k", "min_p", "presence_penalty", "frequency_penalty", "min_tokens", "seed", "n")
    params = {name: value for name in names if (value := getattr(asked, name)) is not None}
    params["max_tokens"] = most
    params["temperature"] = 1.0 if asked.temperature is None else asked.temperature
    params["top_p"] = 1.0 if asked.top_p is None else asked.top_p
    params["repetition_penalty"] = 1.0 if asked.repetition_penalty is None else asked.repetition_penalty
    if asked.stops:
        params["stop"] = asked.stops
    if asked.logit_bias:
        if any(not (key.isascii() and key.isdigit() and len(key) < 10) for key in asked.logit_bias):
            raise ApiError(400, "logit_bias must be ids with numbers", "invalid_value", param="logit_bias")
        params["logit_bias"] = dict(asked.logit_bias)
    return params


def _check_logprobs(params: Mapping[str, Any], n_prompts: int = 1) -> None:
    """Refuse more tokens with their likeliest ones than a server can hold for many at once."""
    count = n_prompts * params.get("n", 1) * params["max_tokens"] * (1 + params.get("logprobs", 0))
    if "logprobs" in params and count > _MOST_LOGPROBS:
        message = f"answers times tokens times reported ones must be at most {_MOST_LOGPROBS}, are {count}"
        raise ApiError(400, message, "invalid_value", param="logprobs")


def _form(wanted: ResponseFormat | None) -> dict[str, Any]:
    """The form of an answer, as a field of `SamplingParams`."""
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type == "json_object":
        return {"json_schema": _ANY_OBJECT}
    if wanted.json_schema is None:
        message = "response_format of the type json_schema needs json_schema"
        raise ApiError(400, message, "invalid_value", param="response_format")
    return {"json_schema": schema_text(wanted.json_schema.form, "response_format.json_schema.schema")}


def _check_ids(prompts: list[str | tuple[int, ...]], card: ModelCard) -> None:
    for prompt in prompts:
        if not isinstance(prompt, str) and any(not 0 <= i < card.vocab_size for i in prompt):
            raise ApiError(400, f"ids must lie in 0 … {card.vocab_size - 1}", "invalid_value", param="prompt")
