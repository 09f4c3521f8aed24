"""A part of a server as a process: an application on a socket, until a signal ends it, gently.

SIGTERM or Ctrl-C: nothing new is taken, what is under way has `drain_s` seconds to come to its end, then the process
ends with 0. A second Ctrl-C ends it at once.
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
from typing import TYPE_CHECKING, Any

from bimo.core.errors import UserError, require
from bimo.core.settings import Settings
from bimo.serving.keys import KeyRing

if TYPE_CHECKING:
    import uvicorn

_HEADER_BYTES = 16384
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
        if not (self.keys or self.socket or is_local(self.host)):
            found.append(f"host {self.host} can be reached from other machines: keys must be given")
        return found


def is_local(host: str) -> bool:
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
    if settings.socket:
        return _listening_at(Path(settings.socket))
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, address = found[0][0], found[0][4]
        return socket.create_server(address[:2], family=family, backlog=1024)  # type: ignore[arg-type]  # host, port
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise UserError(
            f"nothing can listen there ({error.strerror or error})", where=where, mend="Choose another --port."
        ) from error


def _listening_at(path: Path) -> socket.socket:
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
        made.listen(1024)
        return made
    except (OSError, AttributeError) as error:
        raise UserError(
            f"nothing can listen there ({error})", where=str(path), mend="Choose another path, 100 bytes at most."
        ) from error


def place_of(sock: socket.socket) -> str:
    """The address by which others call it."""
    name = sock.getsockname()
    if isinstance(name, (str, bytes)):
        return f"unix:{os.fsdecode(name)}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


def make_server(app: Any, drain_s: float) -> uvicorn.Server:
    """A server that takes calls; see `stand`."""
    uvicorn = require("uvicorn", "serve")
    config = uvicorn.Config(
        app, http="h11", ws="none", lifespan="off", loop="asyncio", log_config=None, access_log=False,
        server_header=False, timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=max(1, round(drain_s)),
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )  # fmt: skip
    return uvicorn.Server(config)


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
    server = make_server(app, drain_s)

    async def work() -> None:
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready(place_of(sock))
        await serving
        if close is not None:
            await close()

    with suppress(KeyboardInterrupt):  # the server has ended by then, and gives the signal on
        asyncio.run(work())
    if sock.family == getattr(socket, "AF_UNIX", None):
        with suppress(OSError, ValueError):
            os.unlink(place_of(sock).removeprefix("unix:"))


def open_keys(path: str) -> KeyRing:
    """The keys of a file; "": everybody may call."""
    from bimo.serving.keys import read_keys

    return read_keys(Path(path)) if path else KeyRing()
