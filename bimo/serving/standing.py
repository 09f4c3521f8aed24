"""A part of a server as a process: an application on a socket, until a signal ends it, gently.

SIGTERM or Ctrl-C: nothing new is taken, what is under way has `drain_s` seconds to come to its end, then the process
ends with 0. A second one ends it at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from bimo.core.errors import UserError
from bimo.core.settings import Settings
from bimo.serving.connection import bounded
from bimo.serving.running import address_of, listen
from bimo.serving.settings import ServeSettings

_HEADER_BYTES = 16384
_CONNECTIONS = ServeSettings(max_connections=8192, write_s=60.0)
_BACKLOG = 1024
_KEEP_ALIVE_S = 75  # longer than the other side keeps an idle connection, so that no request meets one that closes


@dataclass(frozen=True)
class PartSettings(Settings):
    """Where a part of a server listens."""

    host: str = "127.0.0.1"
    """Address to listen on: this machine alone; another one needs --keys."""
    port: int = 8001
    """Port to listen on; 0: any that is free."""
    socket: str = ""
    """A path: listen on a Unix socket there, which its owner alone can open, in place of a port."""
    keys: str = ""
    """A file of keys, as `--new_key` writes it; with it, every call needs one of them."""
    drain_s: float = 30.0
    """When the part is told to end (SIGTERM), what is under way has so long to come to its end."""

    def problems(self) -> list[str]:
        found = [] if 0 <= self.port < 2**16 else [f"port must lie in 0 … 65535, is {self.port}"]
        if not 0 <= self.drain_s <= 86400:
            found.append(f"drain_s must lie in 0 … 86400, is {self.drain_s}")
        if not self.host.strip():
            found.append("host must be an address, is empty")
        elif not (self.keys or self.socket or _is_local(self.host)):
            found.append(f"keys must be given, because {self.host} can be reached from other machines")
        return found


def _is_local(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening(settings: PartSettings) -> socket.socket:
    """The socket that a part listens on.

    Raises:
        UserError: The address is none, or is taken.
    """
    if not settings.socket:
        return listen(ServeSettings(host=settings.host, port=settings.port))
    path = Path(settings.socket)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise UserError("another process listens there", where=str(path), mend="Choose another path.")
            path.unlink()  # left behind by one that was killed
        made = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
        made.listen(_BACKLOG)
    except (OSError, AttributeError) as error:
        mend = "Choose another path, of 100 bytes at most."
        raise UserError(f"nothing can listen there ({error})", where=str(path), mend=mend) from error
    return made


def place_of(sock: socket.socket) -> str:
    """The address by which others call it."""
    name = sock.getsockname()
    return f"unix:{os.fsdecode(name)}" if isinstance(name, (str, bytes)) else address_of(sock)


class PartServer(uvicorn.Server):
    """Serves an application until it is told to end.

    Args:
        app: In ASGI.
        drain_s: How long it may end what is under way.
        ready: Called when calls are taken.
    """

    def __init__(self, app: Any, drain_s: float, ready: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app, http=bounded(_CONNECTIONS), ws="none", lifespan="off", loop="asyncio", log_config=None,
                access_log=False, proxy_headers=False, server_header=False, timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(drain_s)), h11_max_incomplete_event_size=_HEADER_BYTES,
            )
        )  # fmt: skip
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal; it is not raised again afterwards, as the server has done what it says."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def stand(
    app: Any,
    sock: socket.socket,
    drain_s: float,
    ready: Callable[[str], None],
    close: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve an application until a signal ends it.

    Args:
        app: In ASGI.
        sock: Where.
        drain_s: How long it may end what is under way.
        ready: Told the address when calls are taken.
        close: Done at the end.
    """
    place = place_of(sock)

    async def work() -> None:
        await PartServer(app, drain_s, lambda: ready(place)).serve(sockets=[sock])
        if close is not None:
            await close()

    asyncio.run(work())
    if place.startswith("unix:"):
        with suppress(OSError):
            os.unlink(place.removeprefix("unix:"))
