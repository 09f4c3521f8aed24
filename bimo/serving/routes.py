"""The routes that ask a model."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from bimo.serving.answering import Working, send_json, send_list, within
from bimo.serving.asking import chat_wish, completion_wish
from bimo.serving.bounds import Send
from bimo.serving.contract import ApplyCall, AttentionCall, EmbedCall, Task
from bimo.serving.errors import ApiError
from bimo.serving.gateway import Gateway, Routed, Visit
from bimo.serving.generating import Generating
from bimo.serving.guarding import Told, checked, guarded_input, guarded_output, must_read
from bimo.serving.protocol import (
    AttentionRequest,
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingRequest,
    ModerationRequest,
    SummarizeRequest,
    TranslateRequest,
    texts_of,
)

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A field is wrong; the error names it."},
    401: {"description": "A key is needed."},
    404: {"description": "There is no such model."},
    413: {"description": "The body is too large."},
    415: {"description": "The body is not JSON."},
    429: {"description": "Busy, or a limit of the key; Retry-After says when to try again."},
    503: {"description": "The engine is not running, or the server is going down."},
    504: {"description": "It took too long."},
}


def add_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add them."""

    @app.post("/v1/chat/completions", responses=_ERRORS, tags=["OpenAI"])
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """The assistant's next message; with `stream`, in server-sent events."""
        visit: Visit = request.scope["bimo"]
        wish = await chat_wish(gateway, visit, asked)
        return Working(visit, Generating(gateway, visit, wish).run)

    @app.post("/v1/completions", responses=_ERRORS, tags=["OpenAI"])
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """How a text goes on; with `stream`, in server-sent events."""
        visit: Visit = request.scope["bimo"]
        wish = await completion_wish(gateway, visit, asked)
        return Working(visit, Generating(gateway, visit, wish).run)

    @app.post("/v1/embeddings", responses=_ERRORS, tags=["OpenAI"])
    async def embeddings(asked: EmbeddingRequest, request: Request) -> Response:
        """A vector of length 1 for each text: the mean of the last hidden states."""
        visit: Visit = request.scope["bimo"]
        return Working(visit, lambda send: _embedded(gateway, visit, asked, send))

    @app.post("/v1/moderations", responses=_ERRORS, tags=["OpenAI"])
    async def moderations(asked: ModerationRequest, request: Request) -> Response:
        """What the rules of the guard say about texts."""
        visit: Visit = request.scope["bimo"]
        return Working(visit, lambda send: _moderated(gateway, visit, asked, send))

    @app.post("/v1/translate", responses=_ERRORS, tags=["Applications"])
    async def translate(asked: TranslateRequest, request: Request) -> Response:
        """Translations of documents; layout, numbers, links and placeholders are kept and checked."""
        about = {"source": asked.source, "target": asked.target}
        return _applying(gateway, request, asked.model, "translate", texts_of(asked.input), about)

    @app.post("/v1/summarize", responses=_ERRORS, tags=["Applications"])
    async def summarize(asked: SummarizeRequest, request: Request) -> Response:
        """Summaries of documents of any length."""
        return _applying(gateway, request, asked.model, "summarize", texts_of(asked.input), {})

    @app.post("/v1/classify", responses=_ERRORS, tags=["Applications"])
    async def classify(asked: ClassifyRequest, request: Request) -> Response:
        """The label of each text."""
        about = {"labels": tuple(asked.labels)}
        return _applying(gateway, request, asked.model, "classify", texts_of(asked.input), about)

    @app.post("/v1/attention", responses=_ERRORS, tags=["Looking inside"])
    async def attention(asked: AttentionRequest, request: Request) -> Response:
        """Which tokens of a short text a head looks at."""
        visit: Visit = request.scope["bimo"]
        return Working(visit, lambda send: _attended(gateway, visit, asked, send))


def _applying(
    gateway: Gateway, request: Request, model: str, task: Task, texts: list[str], about: dict[str, Any]
) -> Response:
    visit: Visit = request.scope["bimo"]
    _check_count(gateway, texts)

    async def work(send: Send) -> None:
        routed, card = await gateway.routed(texts, model, task)
        visit.model = card.name
        told, guard = Told(), gateway.guard_of(card.name)
        given = tuple(await guarded_input(guard, texts, told))
        if any(v.action != "note" for found in await checked(guard, about.get("labels", ()), "input") for v in found):
            raise ApiError(400, "the guard's rules let one of the labels not pass", "content_filter", param="labels")
        async with gateway.admission.place(visit.key, sum(map(_size, given)), 0) as place:
            call = ApplyCall(visit.id, card.name, task, given, tenant=visit.key.name, **about)
            found = await within(gateway.settings.answer_s, gateway.service.apply(call), "the answer")
            visit.prompt_tokens, visit.completion_tokens = found.prompt_tokens, found.completion_tokens
            place.used = found.prompt_tokens + found.completion_tokens
        shown = await guarded_output(guard, [one.text for one in found.results], told)
        results: list[dict[str, Any]] = []
        for one, text in zip(found.results, shown, strict=True):
            warnings = [*one.warnings, *(["the guard withholds this text"] if text is None else [])]
            if task == "classify":
                own = {"label": one.text, "probabilities": one.probabilities}
                results.append({**own, "warnings": warnings} if warnings else own)
            else:
                results.append({"text": text or "", "warnings": warnings})
        await send_json(send, {"model": card.name, "results": results, "bimo": _about(routed, told)})

    return Working(visit, work)


async def _embedded(gateway: Gateway, visit: Visit, asked: EmbeddingRequest, send: Send) -> None:
    texts = asked.texts
    _check_count(gateway, texts)
    routed, card = await gateway.routed((), asked.model, "embed")
    visit.model = card.name
    if asked.dimensions not in (None, card.d_model):
        raise ApiError(400, f"this model has {card.d_model} dimensions", "invalid_value", param="dimensions")
    told, guard = Told(), gateway.guard_of(card.name)
    if any(not isinstance(text, str) for text in texts):
        await must_read(guard, "input")
    words = iter(await guarded_input(guard, [text for text in texts if isinstance(text, str)], told))
    given = tuple(next(words) if isinstance(text, str) else text for text in texts)
    async with gateway.admission.place(visit.key, sum(map(_size, given)), 0) as place:
        call = EmbedCall(visit.id, card.name, given, visit.key.name)
        found = await within(gateway.settings.answer_s, gateway.service.embed(call), "the answer")
        visit.prompt_tokens = place.used = found.prompt_tokens
    base64_wanted = asked.encoding_format == "base64"
    data = (
        {"object": "embedding", "index": number, "embedding": _base64(vector) if base64_wanted else vector}
        for number, vector in enumerate(found.vectors)
    )
    usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    about = _about(routed, told)
    await send_list(send, {"object": "list", "model": card.name, "usage": usage, "bimo": about}, "data", data)


async def _moderated(gateway: Gateway, visit: Visit, asked: ModerationRequest, send: Send) -> None:
    texts = asked.texts
    _check_count(gateway, texts)
    rules = await gateway.guard.rules()
    results = []
    for verdicts in await checked(gateway.guard, texts, "input"):
        kinds = [*rules, *dict.fromkeys(v.rule for v in verdicts if v.rule not in rules)]
        scores = {
            kind: max((v.score for v in verdicts if v.rule == kind or v.rule.startswith(f"{kind}/")), default=0.0)
            for kind in kinds
        }
        results.append(
            {
                "flagged": bool(verdicts),
                "categories": {kind: score > 0 for kind, score in scores.items()},
                "category_scores": scores,
                "category_applied_input_types": {kind: ["text"] for kind in kinds},
                "verdicts": [{k: v for k, v in verdict.to_dict().items() if k != "is"} for verdict in verdicts],
            }
        )
    await send_json(send, {"id": f"modr-{visit.id}", "model": "bimo-guard", "results": results})


async def _attended(gateway: Gateway, visit: Visit, asked: AttentionRequest, send: Send) -> None:
    routed, card = await gateway.routed((), asked.model, "attend")
    visit.model = card.name
    for name, count in (("layer", card.n_layers), ("head", card.n_heads)):
        if getattr(asked, name) >= count:
            raise ApiError(400, f"{name} must lie in 0 … {count - 1}", "invalid_value", param=name)
    told = Told()
    (text,) = await guarded_input(gateway.guard_of(card.name), [asked.input], told)
    async with gateway.admission.place(visit.key, _size(text), 0) as place:
        call = AttentionCall(visit.id, card.name, text, asked.layer, asked.head, visit.key.name)
        found = await within(gateway.settings.answer_s, gateway.service.attention(call), "the answer")
        visit.prompt_tokens = place.used = len(found.tokens)
    content = {key: value for key, value in found.to_dict().items() if key != "is"}
    await send_json(send, {"model": card.name, **content, "bimo": _about(routed, told)})


def _check_count(gateway: Gateway, texts: Sequence[object]) -> None:
    if len(texts) > gateway.settings.max_texts:
        raise ApiError(400, f"at most {gateway.settings.max_texts} texts", "invalid_value", param="input")


def _about(routed: Routed, told: Told) -> dict[str, Any]:
    return {"route": routed.to_dict(), "guard": told.verdicts}


def _size(text: str | tuple[int, ...]) -> int:
    """Bytes that count for a text; ids count as three each."""
    return len(text.encode("utf-8")) if isinstance(text, str) else 3 * len(text)


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(array("f", vector).tobytes()).decode("ascii")
