"""Work that a client waits for: given up when it leaves, and every failure is an answer in the right dialect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

from starlette.responses import Response

from bimo.serving.bounds import Receive, Scope, Send
from bimo.serving.contract import ServiceError
from bimo.serving.errors import ApiError
from bimo.serving.gateway import Visit
from bimo.serving.logs import failure, log


class Working(Response):
    """An answer that is worked out while the client waits.

    Args:
        visit: Of the request.
        work: Sends the answer.
    """

    def __init__(self, visit: Visit, work: Callable[[Send], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self._visit, self._work = visit, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Do the work, or stop it when the client leaves."""
        work = asyncio.create_task(self._answered(send))
        gone = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._visit.left = True
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _answered(self, send: Send) -> None:
        try:
            await self._work(send)
        except (ApiError, ServiceError) as error:
            known = error if isinstance(error, ApiError) else ApiError.of(error)
            if not self._visit.status:
                await known.send(send)
        except Exception as error:  # the client gets a sentence, the log the place
            log.error("request failed", extra={"id": self._visit.id, **failure(error)})
            if not self._visit.status:
                await ApiError(500, "the server failed at this request", "internal").send(send)
            else:
                raise


async def send_list(send: Send, content: Mapping[str, Any], name: str, items: Iterable[Mapping[str, Any]]) -> None:
    """An answer with a long list in it, written item by item: others have their turn between."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    between = json.dumps(content, ensure_ascii=False)[:-1] + f", {json.dumps(name)}: ["
    for item in items:
        body = (between + json.dumps(item, ensure_ascii=False)).encode("utf-8", errors="replace")
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.sleep(0)
        between = ", "
    await send({"type": "http.response.body", "body": b"]}", "more_body": False})


async def send_json(send: Send, content: Mapping[str, Any]) -> None:
    """A whole answer."""
    body = json.dumps(content, ensure_ascii=False).encode("utf-8", errors="replace")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def within(seconds: float, work: Awaitable[Any], what: str) -> Any:
    """A result that must be there in time.

    Raises:
        ApiError: It was not.
    """
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise ApiError(504, f"{what} took longer than {seconds:g} seconds", "timeout") from error
