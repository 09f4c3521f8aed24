"""The routes that tell of the server: models, counts, health, runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi import Path as InPath
from starlette.responses import JSONResponse, Response

from bimo.serving.contract import ServiceError, ServiceStats
from bimo.serving.gateway import Gateway
from bimo.serving.metrics import CONTENT_TYPE
from bimo.serving.runs import Runs

_PATIENCE_S = 2.0
Name = Annotated[str, InPath(min_length=1, max_length=128)]


def add_status(app: FastAPI, gateway: Gateway) -> None:
    """Add them."""

    @app.get("/v1/models", tags=["OpenAI"])
    async def models() -> dict[str, Any]:
        """What can be asked for, as `model`."""
        return {"object": "list", "data": [_card(card.to_dict()) for card in await gateway.service.models()]}

    @app.get("/v1/models/{name:path}", tags=["OpenAI"])
    async def model(name: Name) -> dict[str, Any]:
        """One of them."""
        _, card = await gateway.routed((), name, "attend")
        return _card(card.to_dict())

    @app.get("/v1/stats", tags=["Looking inside"])
    async def stats() -> dict[str, Any]:
        """What the server is doing."""
        return _summed(gateway, await _stats(gateway))

    @app.get("/health", tags=["For machines"])
    async def health() -> dict[str, str]:
        """200 as long as the server can answer at all."""
        return {"status": "ok"}

    @app.get("/ready", tags=["For machines"], responses={503: {"description": "Not now."}})
    async def ready() -> Response:
        """200 when a request would be answered: every engine works, and the server is not going down."""
        found = await _stats(gateway)
        good = found is not None and found.ready and not gateway.draining
        states = {} if found is None else {engine.model: engine.state for engine in found.engines}
        status = "draining" if gateway.draining else "ready" if good else "not ready"
        return JSONResponse({"status": status, "engines": states}, 200 if good else 503)

    @app.get("/metrics", tags=["For machines"])
    async def metrics() -> Response:
        """Counts for Prometheus."""
        own = gateway.admission
        page = gateway.metrics.page(await _stats(gateway), own.running, own.waiting, own.n_rejected)
        return Response(page, media_type=CONTENT_TYPE)

    if gateway.settings.runs:
        _add_runs(app, Runs(Path(gateway.settings.runs)))


def _add_runs(app: FastAPI, runs: Runs) -> None:
    @app.get("/v1/runs", tags=["Looking inside"])
    async def listed() -> list[dict[str, Any]]:
        """The runs of training in the server's folder."""
        return await asyncio.to_thread(runs.listed)

    @app.get("/v1/runs/{name}", tags=["Looking inside"])
    async def one(name: Name) -> dict[str, Any]:
        """Curves and samples of one."""
        return await asyncio.to_thread(runs.one, name)

    @app.get("/v1/runs/{name}/events", tags=["Looking inside"])
    async def events(name: Name) -> list[dict[str, Any]]:
        """What happened in it."""
        return await asyncio.to_thread(runs.events, name)


def _card(card: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in card.items() if key not in ("is", "name", "created")}
    return {"id": card["name"], "object": "model", "created": card["created"], "owned_by": "bimo", "bimo": own}


async def _stats(gateway: Gateway) -> ServiceStats | None:
    """Of the engines; None: they do not answer."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await gateway.service.stats()
    except (ServiceError, TimeoutError):
        return None


def _summed(gateway: Gateway, stats: ServiceStats | None) -> dict[str, Any]:
    engines = () if stats is None else stats.engines
    own = gateway.admission
    return {
        "queue": own.waiting,
        "running": own.running,
        "waiting": sum(engine.waiting for engine in engines),
        "tokens_per_s": round(sum(engine.tokens_per_s for engine in engines if engine.running), 2),
        "free_blocks": sum(engine.free_blocks for engine in engines),
        "n_blocks": sum(engine.n_blocks for engine in engines),
        "memory_bytes": 0 if stats is None else stats.memory_bytes,
        "requests": len(gateway.visits),
        "rejected": sum(own.n_rejected.values()),
        "models": [{key: value for key, value in engine.to_dict().items() if key != "is"} for engine in engines],
    }
