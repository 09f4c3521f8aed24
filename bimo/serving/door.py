"""The door of a server: everything passes here, before any route is looked for.

Headers are measured, the key is asked for (on every address), limits are looked at, and a body is read and parsed in
its bounds; only then does the application see the request. What goes wrong behind it becomes an answer, a count and a
line in the log.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bimo.serving.bounds import GoneError, Receive, Scope, Send, check_headers, header, read_json
from bimo.serving.contract import ServiceError
from bimo.serving.errors import ApiError
from bimo.serving.gateway import Gateway, Visit
from bimo.serving.keys import ANYBODY
from bimo.serving.logs import failure, log

App = Callable[[Scope, Receive, Send], Awaitable[None]]
_ALWAYS = ("/health", "/ready", "/metrics")  # answered while the server goes down
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_POLICY = (
    b"default-src 'self'; img-src 'self' data:; style-src 'self'; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'; object-src 'none'"
)
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _POLICY),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Door:
    """See above.

    Args:
        app: What is behind.
        gateway: Limits, keys and counts.
    """

    def __init__(self, app: App, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway
        self._only_local = not gateway.keys.keys and gateway.settings.host in (*_LOCAL, "::1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            else:  # a web socket
                await send({"type": "websocket.close", "code": 1008})
            return
        visit = Visit(uuid.uuid4().hex, ANYBODY, time.monotonic())
        self._gateway.visits.add(visit.id)

        async def told(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                own = [*message.get("headers", ()), *_HEADERS, (b"x-request-id", visit.id.encode())]
                message = {**message, "headers": own}
            await send(message)

        try:
            await self._pass(scope, receive, told, visit)
        except GoneError:
            visit.left = True
        finally:
            self._gateway.visits.discard(visit.id)
            self._gateway.budget.held -= visit.size
            self._report(scope, visit)

    async def _pass(self, scope: Scope, receive: Receive, told: Send, visit: Visit) -> None:
        """Let a request in, or say why not."""
        try:
            await self._let_in(scope, receive, visit)
            scope["bimo"] = visit
            await self._app(scope, receive, told)
        except (ApiError, ServiceError) as error:
            known = error if isinstance(error, ApiError) else ApiError.of(error)
            if visit.status:
                raise
            await known.send(told)
        except GoneError:
            raise
        except asyncio.CancelledError:  # the server ends now, and this took too long
            if not self._gateway.draining:
                raise
            if not visit.status:
                await ApiError(503, "the server is going down", "unavailable", retry_after_s=5).send(told)
        except Exception as error:  # the client gets a sentence, the log the place
            log.error("request failed", extra={"id": visit.id, **failure(error)})
            if visit.status:
                raise  # the library below closes the connection
            await ApiError(500, "the server failed at this request", "internal").send(told)

    async def _let_in(self, scope: Scope, receive: Receive, visit: Visit) -> None:
        gateway, settings = self._gateway, self._gateway.settings
        check_headers(scope, settings)
        key = gateway.keys.holder(header(scope, b"authorization"))
        if key is None:
            message = "this server needs a key: Authorization: Bearer KEY"
            raise ApiError(401, message, "invalid_api_key", close=scope["method"] == "POST")
        visit.key = key
        if self._only_local and _host(scope) not in _LOCAL:
            raise ApiError(403, "this server answers to localhost only", "wrong_host", close=True)
        if gateway.draining and scope["path"] not in _ALWAYS:
            raise ApiError(503, "the server is going down", "unavailable", retry_after_s=5, close=True)
        if scope["method"] == "POST":
            try:
                gateway.admission.knock(key)
            except ApiError as error:
                error.close = True  # the body was not read
                raise
            visit.content, visit.size = await read_json(scope, receive, settings, gateway.budget)

    def _report(self, scope: Scope, visit: Visit) -> None:
        """Count and log."""
        metrics, seconds = self._gateway.metrics, time.monotonic() - visit.began
        metrics.requests.labels(visit.route, "left" if visit.left else str(visit.status)).inc()
        metrics.seconds.labels(visit.route).observe(seconds)
        if visit.first_token_s:
            metrics.first.observe(visit.first_token_s)
        if visit.left:
            metrics.left.inc()
        for kind, count in (("prompt", visit.prompt_tokens), ("completion", visit.completion_tokens)):
            if count:
                metrics.tokens.labels(visit.model, kind).inc(count)
                metrics.key_tokens.labels(visit.key.name).inc(count)
        about = {
            "id": visit.id, "key": visit.key.name, "route": visit.route, "status": visit.status, "model": visit.model,
            "method": scope["method"] if scope["method"] in ("GET", "POST") else "other",
            "seconds": round(seconds, 4), "first_token_s": round(visit.first_token_s, 4),
            "queue_s": round(visit.queue_s, 4), "prompt_tokens": visit.prompt_tokens,
            "completion_tokens": visit.completion_tokens, "left": visit.left or None,
        }  # fmt: skip
        log.info("request", extra=about)


def _host(scope: Scope) -> str:
    """The host that a request names, without its port."""
    host = header(scope, b"host").decode("latin-1").lower()
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
