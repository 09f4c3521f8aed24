"""What goes wrong, as OpenAI's clients understand it: a status, and {"error": {message, type, param, code}}."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from bimo.serving.contract import Kind, ServiceError

_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_TYPES |= {405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error"}
_TYPES |= {415: "invalid_request_error", 429: "rate_limit_error", 503: "unavailable_error", 504: "timeout_error"}
_STATUS: Mapping[Kind, int] = {
    "invalid": 400,
    "not_found": 404,
    "busy": 429,
    "unavailable": 503,
    "timeout": 504,
    "internal": 500,
}


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        status: Of HTTP.
        message: For a person.
        code: For a program.
        param: The field that is wrong.
        retry_after_s: When to try again; 0: it is not said.
        close: Whether the connection is of no use any more.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        *,
        param: str = "",
        retry_after_s: float = 0,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s, self.close = retry_after_s, close

    @classmethod
    def of(cls, error: ServiceError) -> ApiError:
        """What a service says, as a client gets it."""
        message = f"{error.what}. {error.mend}" if error.mend else error.what
        codes = {"not_found": "model_not_found", "busy": "rate_limit_exceeded", "timeout": "timeout"}
        status = _STATUS[error.kind]
        return cls(status, message, codes.get(error.kind, ""), param=error.where, retry_after_s=error.retry_after_s)

    @property
    def content(self) -> dict[str, Any]:
        """The body."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        own = {"message": self.message, "type": kind, "param": self.param or None, "code": self.code or None}
        return {"error": own}

    @property
    def body(self) -> bytes:
        """The body, as it is sent."""
        return json.dumps(self.content, ensure_ascii=False).encode("utf-8", errors="replace")

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Of the answer."""
        own = [(b"content-type", b"application/json"), (b"content-length", str(len(self.body)).encode())]
        if self.retry_after_s:
            own.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        if self.status == 401:
            own += [(b"www-authenticate", b"Bearer"), (b"www-authenticate", b'Basic realm="bimo", charset="UTF-8"')]
        if self.close:
            own.append((b"connection", b"close"))
        return own

    async def send(self, send: Any) -> None:
        """Answer with it."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})
