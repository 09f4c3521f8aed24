"""A server that runs: a socket, the event loop, and how it ends.

SIGTERM (or Ctrl-C) makes it drain: new requests get 503, what is under way comes to its end within `drain_s`, then the
process ends. A second one ends it at once.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn

from bimo.core.errors import UserError
from bimo.serving.connection import bounded
from bimo.serving.door import App
from bimo.serving.gateway import Gateway
from bimo.serving.logs import log
from bimo.serving.settings import ServeSettings

_BACKLOG = 2048
_SPARE_BYTES = 2**13
_SEND_BUFFER = 2**17  # else the system keeps megabytes for each client that takes nothing
_LAST_CONNECTIONS_S = 5  # when nothing is under way any more
_LAST_WORDS_S = 0.3  # for clients to learn that the server goes down


class Server(uvicorn.Server):
    """Serves until it is told to end, and drains before it does.

    Args:
        app: The application.
        gateway: Knows what is under way.
        on_start: Called when requests are taken.
    """

    def __init__(self, app: App, gateway: Gateway, on_start: Callable[[], None] = lambda: None) -> None:
        settings = gateway.settings
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded(settings),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                timeout_keep_alive=max(1, round(settings.keep_alive_s)),
                backlog=_BACKLOG,
                server_header=False,
                h11_max_incomplete_event_size=settings.max_header_bytes + _SPARE_BYTES,  # a little more: it gets a 431
                timeout_graceful_shutdown=_LAST_CONNECTIONS_S,
            )
        )
        self.gateway, self._on_start = gateway, on_start
        self._drained_at = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        self._on_start()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: told to, and nothing is under way any more."""
        if not await super().on_tick(counter):
            return False
        now = time.monotonic()
        if not self.gateway.draining:
            self.gateway.draining = True
            self._drained_at = now
            log.info("draining")
        waited = now - self._drained_at
        if waited >= self.gateway.settings.drain_s:
            self.config.timeout_graceful_shutdown = 0  # what is still under way is cut off
            return True
        return self.force_exit or (not self.gateway.visits and waited >= _LAST_WORDS_S)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal; it is not raised again afterwards, as the server has done what it says."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def listen(settings: ServeSettings) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: The port is in use, or the address is none of this machine.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        own = socket.socket(family, kind, protocol)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)  # of each connection, too
        own.bind(address)
        own.listen(_BACKLOG)
    except OSError as error:
        mend = "Choose another: --port 8001." if error.errno == 98 else "Choose another --host or --port."
        raise UserError(f"cannot listen there ({error.strerror or error})", where=where, mend=mend) from error
    own.setblocking(False)
    return own


def address_of(own: socket.socket) -> str:
    """The URL of a socket that listens."""
    host, port = own.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{host}:{port}"


def serve(app: App, gateway: Gateway, own: socket.socket, on_start: Callable[[], None] = lambda: None) -> None:
    """Serve on a socket until a signal says to end."""
    _allow_connections(gateway.settings.max_connections)
    Server(app, gateway, on_start).run(sockets=[own])


def _allow_connections(count: int) -> None:
    """As many open files as that takes, where the system lets us."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count + 512
        if soft < wanted:
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
