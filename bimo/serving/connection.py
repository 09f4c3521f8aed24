"""Connections: what the library below leaves open. A request must begin in time, a client must take what it asked for,
and there are only so many connections.

Timers are per connection and move only when something happens: nothing is polled.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from bimo.serving.settings import ServeSettings

_BUSY = (
    b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 2\r\nconnection: close\r\n"
    b"content-length: 122\r\n\r\n"
)
_BUSY_BODY = (
    b'{"error":{"message":"too many connections","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}'
)
_WRITE_BUFFER = 2**16


class BoundedProtocol(H11Protocol):
    """One connection; `bounded` gives it the settings of a server."""

    settings = ServeSettings()

    def connection_made(self, transport: Any) -> None:
        """A client is there: it has so long to say what it wants."""
        super().connection_made(transport)
        self._begin_by: asyncio.TimerHandle | None = None
        self._take_by: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        if len(self.connections) > self.settings.max_connections:
            transport.write(_BUSY.replace(b"122", str(len(_BUSY_BODY)).encode()) + _BUSY_BODY)
            transport.close()
            return
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        for timer in (self._begin_by, self._take_by):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something came; when it completes the headers of a request, that has begun."""
        if self.transport.is_closing():
            return
        idle = self.cycle is None or self.cycle.response_complete
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and self._begin_by is not None:
            self._begin_by.cancel()
            self._begin_by = None
        elif idle and self.cycle is before and self._begin_by is None:
            self._expect_request()  # on a connection that is kept: the next request has begun to come

    def pause_writing(self) -> None:
        """The client does not take what is sent: it has so long to go on."""
        super().pause_writing()
        if self._take_by is None:
            self._take_by = self.loop.call_later(self.settings.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It goes on."""
        super().resume_writing()
        if self._take_by is not None:
            self._take_by.cancel()
            self._take_by = None

    def on_response_complete(self) -> None:
        """What was answered must still be taken: a buffer that stays full is cut off, however little is in it."""
        super().on_response_complete()
        self._cut_off_later()

    def timeout_keep_alive_handler(self) -> None:
        """The connection was not used; it is closed, and what was not taken is dropped in the end."""
        super().timeout_keep_alive_handler()
        self._cut_off_later()

    def _cut_off_later(self) -> None:
        if self.transport.is_closing() and self.transport.get_write_buffer_size() and self._take_by is None:
            self._take_by = self.loop.call_later(self.settings.write_s, self.transport.abort)

    def _expect_request(self) -> None:
        self._begin_by = self.loop.call_later(self.settings.header_s, self._too_late)

    def _too_late(self) -> None:
        self._begin_by = None
        if not self.transport.is_closing():
            self.transport.abort()


def bounded(settings: ServeSettings) -> type[BoundedProtocol]:
    """The connections of a server."""
    return type("Connection", (BoundedProtocol,), {"settings": settings})
