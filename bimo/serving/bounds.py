"""What a request may be before anybody looks into it: size, time, and a body of JSON that says one thing.

JSON is looked at in bytes first (length, depth, number of values), then parsed once, here: a key that stands twice, a
number that is none (NaN, 1e999), half of a surrogate pair and anything but UTF-8 are refused, because programs differ
in what they make of them.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bimo.serving.errors import ApiError
from bimo.serving.settings import ServeSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_THREAD_BYTES = 2**16  # a longer body is parsed by a thread
_MOST_HEADERS = 100
_MOST_KEYS = 2048  # of one object


class GoneError(Exception):
    """The client has left."""


class Budget:
    """Bytes of the bodies of all requests under way.

    Args:
        most: That there may be.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def take(self, size: int) -> None:
        """So many more are held.

        Raises:
            ApiError: There is no room for them.
        """
        if self.held + size > self.most:
            raise ApiError(
                429, "the server is busy with large requests", "rate_limit_exceeded", retry_after_s=2, close=True
            )
        self.held += size


def header(scope: Scope, name: bytes) -> bytes:
    """The value of a request's header; b'' when there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def check_headers(scope: Scope, settings: ServeSettings) -> None:
    """Refuse headers that are too many or too long, and addresses that are no text."""
    headers = scope["headers"]
    size = len(scope.get("raw_path") or b"") + len(scope["query_string"]) + sum(len(k) + len(v) for k, v in headers)
    if size > settings.max_header_bytes or len(headers) > _MOST_HEADERS:
        raise ApiError(431, "the headers are too large", "headers_too_large", close=True)


async def read_body(scope: Scope, receive: Receive, settings: ServeSettings, budget: Budget) -> bytes:
    """The whole body of a request; its bytes are taken from the budget, and given back when it cannot be had.

    Raises:
        ApiError: It is too large, or takes too long.
        GoneError: The client left while sending it.
    """
    too_large = ApiError(413, f"the body is larger than {settings.max_body_bytes} bytes", "body_too_large", close=True)
    length = header(scope, b"content-length")
    if length and (not length.isdigit() or len(length) > 15 or int(length) > settings.max_body_bytes):
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.body_s):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise GoneError
                part = message.get("body", b"")
                if size + len(part) > settings.max_body_bytes:
                    raise too_large
                budget.take(len(part))
                parts.append(part)
                size += len(part)
                if not message.get("more_body"):
                    size = 0  # whoever has it gives it back
                    return b"".join(parts)
    except TimeoutError as error:
        what = f"the body was not there after {settings.body_s:g} seconds"
        raise ApiError(408, what, "body_timeout", close=True) from error
    finally:
        budget.held -= size


async def read_json(
    scope: Scope, receive: Receive, settings: ServeSettings, budget: Budget
) -> tuple[dict[str, Any], int]:
    """The JSON object in a request's body, and the bytes that it holds of the budget.

    Raises:
        ApiError: It is none, or breaks a bound.
        GoneError: The client left.
    """
    kind, _, rest = header(scope, b"content-type").decode("latin-1").lower().partition(";")
    charset = rest.partition("charset=")[2].strip(" \"'")
    if kind.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
        message = "the body must be JSON: Content-Type: application/json, in UTF-8"
        raise ApiError(415, message, "unsupported_media_type", close=True)
    if header(scope, b"content-encoding") not in (b"", b"identity"):
        raise ApiError(415, "the body must not be compressed", "unsupported_media_type", close=True)
    body = await read_body(scope, receive, settings, budget)
    try:
        long = len(body) > _THREAD_BYTES
        return (await asyncio.to_thread(parsed, body, settings) if long else parsed(body, settings)), len(body)
    except BaseException:
        budget.held -= len(body)
        raise


def parsed(body: bytes, settings: ServeSettings) -> dict[str, Any]:
    """A JSON object out of bytes.

    Raises:
        ApiError: It breaks a bound.
    """
    check_depth(body, settings)
    try:
        text = body.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_one_meaning, parse_constant=_no_number, parse_float=_finite_number)
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # raises where half of a pair is left
    except UnicodeError as error:
        what = "the body is not UTF-8" if isinstance(error, UnicodeDecodeError) else "it holds half of a surrogate pair"
        raise ApiError(400, what, "invalid_json") from None
    except (ValueError, RecursionError) as error:
        what = str(error)[:200] if isinstance(error, ValueError) else "it is nested too deeply"
        raise ApiError(400, f"the body is not valid JSON: {what}", "invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", "invalid_json")
    return value


def check_depth(body: bytes, settings: ServeSettings) -> None:
    """Refuse what is nested too deeply or holds too many lists and objects, without parsing it."""
    if body.count(b"[") + body.count(b"{") <= settings.max_depth:
        return
    brackets = _STRING.sub(b"", body).translate(None, _NO_BRACKETS)
    if len(brackets) > 2 * settings.max_values:
        raise ApiError(400, f"it holds more than {settings.max_values} lists and objects", "invalid_json")
    depth = 0
    for byte in brackets:
        depth += 1 if byte in b"[{" else -1
        if depth > settings.max_depth:
            raise ApiError(400, f"it is nested more than {settings.max_depth} deep", "invalid_json")


def _one_meaning(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MOST_KEYS:
        raise ValueError(f"an object has more than {_MOST_KEYS} keys")
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands twice")
    return content


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite_number(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise ValueError("a number is too large")
    return value
