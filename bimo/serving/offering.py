"""The far end of a wire: an ASGI application that offers calls, each a POST of one message, to whoever has the key.

It is no place for clients of the world: the gateway stands before it. Still every bound holds here, too: the key is
asked for on every address, a body is measured before it is read and parsed strictly, calls at once are counted. A
closed connection cancels the call; whoever takes nothing for a long time has closed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from bimo.core.errors import UserError
from bimo.serving.bounds import Budget, GoneError, Receive, Scope, Send, check_headers, header, read_json
from bimo.serving.contract import Failed, Kind, ServiceError
from bimo.serving.errors import ApiError
from bimo.serving.keys import KeyRing
from bimo.serving.logs import failure, log
from bimo.serving.messages import Message
from bimo.serving.settings import ServeSettings
from bimo.serving.wire import CONTRACT, HEALTH, WireSettings, contract_version, line

Handler = Callable[[Message], AsyncGenerator[Message, None]]
_BODIES = 8  # of the largest size, that are held at once
_WRITE_S = 60.0
_KINDS: Mapping[int, Kind] = {404: "not_found", 429: "busy", 503: "unavailable", 504: "timeout"}


class Offering:
    """See above.

    Args:
        calls: What there is, each with the message that it takes.
        handlers: What each does: gives the messages of its answer.
        keys: Who may call; none: everybody, which is for tests and a machine of one's own.
        settings: Every bound.

    Attributes:
        under_way: Calls that are not answered yet.
        draining: Whether nothing new is taken.
    """

    def __init__(
        self,
        calls: Mapping[str, type[Message]],
        handlers: Mapping[str, Handler],
        keys: KeyRing,
        settings: WireSettings,
    ) -> None:
        assert calls.keys() == handlers.keys(), "each call has its handler"
        self._calls, self._handlers, self._keys, self._settings = calls, handlers, keys, settings
        # A call wraps what the gateway let through, so that its bounds are a little wider than those of the gateway.
        self._bounds = ServeSettings(
            max_body_bytes=settings.max_call_bytes, max_depth=128, max_values=1_000_000, host="localhost"
        )
        self._budget = Budget(_BODIES * settings.max_call_bytes)
        self.under_way, self.draining = 0, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return
        self.under_way += 1
        try:
            events = await self._call(scope, receive)
            if events is None:
                await _send_whole(send, 200, b"{}")
            else:
                await self._send(events, receive, send)
        except GoneError:
            return
        except ApiError as error:
            failed = Failed(_KINDS.get(error.status, "invalid"), error.message, error.param, "", error.retry_after_s)
            await _send_whole(send, error.status, line(failed))
        finally:
            self.under_way -= 1

    async def _call(self, scope: Scope, receive: Receive) -> AsyncGenerator[Message, None] | None:
        """What answers a request; None: it only asks whether anybody is there.

        Raises:
            ApiError: It is refused.
        """
        check_headers(scope, self._bounds)
        if self._keys.holder(header(scope, b"authorization")) is None:
            raise ApiError(401, "the key is missing or wrong", close=True)
        path = scope["path"]
        if path == HEALTH and scope["method"] == "GET":
            return None
        if path not in self._calls:
            raise ApiError(404, "there is no such call", close=True)
        if scope["method"] != "POST":
            raise ApiError(405, "a call is a POST", close=True)
        spoken = header(scope, CONTRACT).decode("latin-1")
        if spoken != contract_version():
            what = f"the caller speaks the contract {spoken[:40] or '(none)'}, this part {contract_version()}"
            raise ApiError(412, f"{what}: run the same release of bimo on both sides", close=True)
        if self.draining:
            raise ApiError(503, "this part is going down", retry_after_s=self._settings.retry_after_s, close=True)
        if self.under_way > self._settings.max_calls:
            raise ApiError(429, "this part is busy", retry_after_s=self._settings.retry_after_s, close=True)
        values, size = await read_json(scope, receive, self._bounds, self._budget)
        self._budget.held -= size  # from here on calls are counted, not their bytes
        try:
            return self.answer(path, values)
        except UserError as error:
            raise ApiError(400, error.what, param=error.where) from error

    def answer(self, path: str, values: dict[str, Any]) -> AsyncGenerator[Message, None]:
        """The messages of an answer, whatever carries them.

        Raises:
            UserError: That is no such call.
        """
        return self._handlers[path](self._calls[path].from_dict(values))

    async def _send(self, events: AsyncGenerator[Message, None], receive: Receive, send: Send) -> None:
        """Send the messages of an answer, and signs of life between them, until the end or until the caller leaves."""
        headers = [(b"content-type", b"application/x-ndjson"), (CONTRACT, contract_version().encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        whole = asyncio.Lock()

        async def say(words: bytes, *, more: bool = True) -> None:
            async with whole, asyncio.timeout(_WRITE_S):
                await send({"type": "http.response.body", "body": words, "more_body": more})

        async def pump() -> None:
            async with aclosing(events):
                try:
                    async for event in events:
                        await say(line(event))
                except TimeoutError:  # nobody takes it
                    raise GoneError from None
                except Exception as error:  # the caller gets a sentence, the log its kind
                    await say(line(failed_of(error)))
            await say(b"", more=False)

        async def live() -> None:
            while True:
                await asyncio.sleep(self._settings.beat_s)
                await say(b"\n")

        async def left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.create_task(work()) for work in (pump, live, left)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def failed_of(error: Exception) -> Failed:
    """What a caller is told of an error; the log gets the kind of those that are ours."""
    if not isinstance(error, (ServiceError, UserError)):
        log.error("call failed", extra=failure(error))
    return Failed.of(error)


async def _send_whole(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((CONTRACT, contract_version().encode()))
    if status >= 400:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
