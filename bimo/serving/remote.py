"""The near end of a wire: an engine service, and a guard, that are processes of their own.

What they do not answer is a `ServiceError` of the kind unavailable. Nothing but the address that was given is ever
called: no redirect is followed, no proxy is taken from the environment.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from bimo.core.errors import UserError, require
from bimo.serving.contract import (
    Applied,
    ApplyCall,
    Attention,
    AttentionCall,
    EmbedCall,
    Embedded,
    Event,
    Failed,
    Finished,
    GenerateCall,
    GuardVerdict,
    ModelCard,
    Piece,
    ServiceError,
    ServiceStats,
    Started,
)
from bimo.serving.messages import Message
from bimo.serving.wire import (
    CONTRACT,
    CheckCall,
    Checked,
    ModelList,
    Nothing,
    RefusedError,
    RuleList,
    WireSettings,
    contract_version,
    message_of,
)

if TYPE_CHECKING:
    import httpx

Answer = TypeVar("Answer", bound=Message)
_MEND = "Try again in some seconds."


@dataclass(frozen=True)
class Address:
    """Where a part of a server is.

    Attributes:
        url: http://HOST:PORT, https://HOST, or unix:/PATH.
        secret: Its key; "": it needs none. Never shown.
        ca: A file of certificates by which an https address is trusted; "": those of this machine.
    """

    url: str
    secret: str = field(default="", repr=False)
    ca: str = ""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            wrong = "" if parts.path.startswith("/") and not parts.netloc else "a socket needs its whole path"
        else:
            wrong = "" if parts.scheme in ("http", "https") and parts.hostname else "it is no address"
            wrong = wrong or ("a key does not belong into an address" if "@" in parts.netloc else "")
            wrong = wrong or ("nothing may follow the port" if parts.query or parts.fragment else "")
        if not wrong and parts.scheme != "unix":
            try:
                _ = parts.port
            except ValueError:
                wrong = "the port is none"
        if wrong:
            shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
            raise UserError(wrong, where=shown, mend="Write http://HOST:PORT, https://HOST or unix:/PATH.")

    def client(self, settings: WireSettings) -> httpx.AsyncClient:
        """Calls it."""
        httpx = require("httpx", "serve")
        parts = urlsplit(self.url)
        unix = parts.scheme == "unix"
        # More than enough connections: how many calls there are at once is bounded by who makes them.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=10.0)
        verify: bool | ssl.SSLContext = True
        if parts.scheme == "https" and self.ca:
            verify = _trusting(Path(self.ca))
        transport = httpx.AsyncHTTPTransport(
            uds=parts.path if unix else None, limits=limits, verify=verify, trust_env=False
        )
        headers = {CONTRACT.decode(): contract_version(), "accept-encoding": "identity"}
        if self.secret:
            headers["authorization"] = f"Bearer {self.secret}"
        times = httpx.Timeout(settings.silence_s, connect=settings.connect_s)
        base = "http://localhost" if unix else self.url.rstrip("/")
        return httpx.AsyncClient(
            transport=transport, base_url=base, headers=headers, timeout=times, follow_redirects=False, trust_env=False
        )


def addresses(text: str, variable: str, ca: str = "") -> list[Address]:
    """The addresses of a command line, with the key that is in the environment.

    Args:
        text: One, or several with commas.
        variable: Name of the environment's variable that holds the key; command lines are seen by everybody.
        ca: See `Address`.

    Raises:
        UserError: One is none, or stands twice.
    """
    urls = [url.strip() for url in text.split(",") if url.strip()]
    twice = next((url for url in urls if urls.count(url) > 1), None)
    if not urls or twice:
        what = "an address stands twice" if twice else "there is no address"
        raise UserError(what, where=twice or text, mend="Write http://HOST:PORT, and a comma between several.")
    secret = os.environ.get(variable, "").strip()
    if not secret.isascii() or any(character.isspace() for character in secret):
        raise UserError("the key holds what no key holds", where=variable, mend="Give it as it was made.")
    return [Address(url, secret, ca) for url in urls]


def _trusting(path: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(path))
    except (OSError, ssl.SSLError) as error:
        what = f"the certificates cannot be read ({type(error).__name__})"
        raise UserError(what, where=str(path), mend="Name a file of certificates in PEM.") from error


class Wire(Protocol):
    """Carries calls to a part, and brings its answers."""

    def stream(self, path: str, call: Message) -> AsyncGenerator[Message, None]:
        """The messages of an answer; closing it cancels the call. Raises `ServiceError`."""
        ...

    def lost(self, why: str) -> ServiceError:
        """What is said when there is no answer."""
        ...

    async def close(self) -> None:
        """No further calls."""
        ...


class HttpWire:
    """Makes calls to one address.

    Args:
        address: Where.
        name: What is there, for sentences: "engine", "guard".
        settings: Times and bounds.
    """

    def __init__(self, address: Address, name: str, settings: WireSettings | None = None) -> None:
        self.address, self._name, self._settings = address, name, settings or WireSettings()
        self._client = address.client(self._settings)
        self._gone = require("httpx", "serve").TransportError

    async def stream(self, path: str, call: Message) -> AsyncGenerator[Message, None]:
        """See `Wire`.

        Raises:
            ServiceError: The other side refuses, is not there, falls silent, or talks nonsense.
        """
        words, headers = json.dumps(call.to_dict()).encode(), {"content-type": "application/json"}
        try:
            async with self._client.stream("POST", path, content=words, headers=headers) as response:
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await self._bounded(response))
                if response.headers.get(CONTRACT.decode()) != contract_version():
                    raise self._stranger()
                async with aclosing(self._lines(response)) as lines:
                    async for found in lines:
                        yield message_of(found)
        except self._gone as error:
            raise self.lost(type(error).__name__) from error
        except UserError as error:
            raise ServiceError("internal", error.what, mend=error.mend) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _lines(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        rest = bytearray()
        async for chunk in response.aiter_raw():
            rest += chunk
            if len(rest) > self._settings.max_line_bytes:
                raise ServiceError("internal", f"an answer of the {self._name} is too long")
            if b"\n" not in chunk:
                continue
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for found in filter(None, lines):
                yield found

    async def _bounded(self, response: httpx.Response) -> bytes:
        found = b""
        async for chunk in response.aiter_raw():
            found += chunk
            if len(found) > 2**16:
                break
        return found

    def _refusal(self, status: int, body: bytes) -> ServiceError:
        if status in (401, 403):
            return RefusedError(f"the {self._name} refuses the key of this gateway")
        try:
            said = message_of(body)
        except UserError:
            said = None
        if not isinstance(said, Failed):
            return self._stranger() if status <= 501 and status != 500 else self.lost(f"status {status}")
        return RefusedError(said.what) if status == 412 else said.error

    def _stranger(self) -> ServiceError:
        return RefusedError(f"at the address of the {self._name} is another program, or another release of bimo")

    def lost(self, why: str) -> ServiceError:
        """See `Wire`."""
        what = f"the {self._name} does not answer ({why})"
        return ServiceError("unavailable", what, mend=_MEND, retry_after_s=self._settings.retry_after_s)


async def only_answer(wire: Wire, path: str, call: Message, answer: type[Answer]) -> Answer:
    """The only message of an answer.

    Raises:
        ServiceError: It is one, or there is none.
    """
    async with aclosing(wire.stream(path, call)) as messages:
        async for message in messages:
            if isinstance(message, Failed):
                raise message.error
            if isinstance(message, answer):
                return message
            break
    raise wire.lost("the answer broke off")


class RemoteEngine:
    """An engine service in another process.

    Args:
        wire: To it.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    async def models(self) -> tuple[ModelCard, ...]:
        """See `EngineService`."""
        return (await only_answer(self.wire, "/engine/models", Nothing(), ModelList)).cards

    async def generate(self, call: GenerateCall) -> AsyncGenerator[Event, None]:
        """See `EngineService`."""
        try:
            async with aclosing(self.wire.stream("/engine/generate", call)) as messages:
                async for message in messages:
                    if not isinstance(message, (Started, Piece, Finished, Failed)):
                        raise ServiceError("internal", "the engine gave another kind of answer")
                    yield message
                    if isinstance(message, (Finished, Failed)):
                        return
            raise self.wire.lost("the answer broke off")
        except ServiceError as error:
            yield Failed.of(error)

    async def embed(self, call: EmbedCall) -> Embedded:
        """See `EngineService`."""
        return await only_answer(self.wire, "/engine/embed", call, Embedded)

    async def apply(self, call: ApplyCall) -> Applied:
        """See `EngineService`."""
        return await only_answer(self.wire, "/engine/apply", call, Applied)

    async def attention(self, call: AttentionCall) -> Attention:
        """See `EngineService`."""
        return await only_answer(self.wire, "/engine/attention", call, Attention)

    async def stats(self) -> ServiceStats:
        """See `EngineService`."""
        return await only_answer(self.wire, "/engine/stats", Nothing(), ServiceStats)

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Close the connections; the engine itself goes on, it belongs to whoever started it."""
        await self.wire.close()


class RemoteGuard:
    """A guard in another process.

    A text that it does not look at goes nowhere: without an answer of the guard there is none of the model.

    Args:
        wire: To it.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    async def check(self, texts: Sequence[str], side: Literal["input", "output"]) -> list[list[GuardVerdict]]:
        """See `GuardService`."""
        found = await only_answer(self.wire, "/guard/check", CheckCall(tuple(texts), side), Checked)
        if len(found.verdicts) != len(texts):
            raise ServiceError("internal", "the guard did not look at every text")
        return [list(verdicts) for verdicts in found.verdicts]

    async def rules(self) -> Mapping[str, str]:
        """See `GuardService`."""
        return (await only_answer(self.wire, "/guard/rules", Nothing(), RuleList)).rules

    async def close(self) -> None:
        """Close the connections."""
        await self.wire.close()


def engine_at(address: Address, settings: WireSettings | None = None) -> RemoteEngine:
    """The engine service at an address."""
    return RemoteEngine(HttpWire(address, "engine", settings))


def guard_at(address: Address, settings: WireSettings | None = None) -> RemoteGuard:
    """The guard at an address."""
    return RemoteGuard(HttpWire(address, "guard", settings))
