"""The page: `/` and `/web/NAME`, static files that lie in the package, read once and served from memory.

A name is looked up in a dictionary of what the folder `web/` holds, so no path a client sends reaches the file system.
The policy below lets the page load and reach nothing but this server, run nothing that stands inside HTML, and be
framed by nobody: text of a model that looks like a program stays text even if the page had a hole.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
"""What the folder may hold, by ending."""

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",  # forms of the page are read by its scripts
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, but asked for each time: a new version shows at once
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file of the page.

    Attributes:
        content: Its bytes.
        content_type: With its encoding.
        etag: Changes with the content, quoted as HTTP wants it.
    """

    content: bytes
    content_type: str
    etag: str


def static_files() -> dict[str, StaticFile]:
    """All files of the page by name."""
    found = {}
    for entry in resources.files("bimo.serving").joinpath("web").iterdir():
        content_type = TYPES.get(entry.name.rpartition(".")[2])
        if content_type is not None and entry.is_file():
            content = entry.read_bytes()
            found[entry.name] = StaticFile(content, content_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    assert "index.html" in found, "the package came without its page: bimo/serving/web is package data"
    return found


def add_pages(app: Starlette, gateway: object = None) -> None:
    """Add `/` and `/web/{name}` to an application; neither shows up in its OpenAPI page.

    Args:
        app: Of Starlette or FastAPI.
        gateway: Not needed: the page asks by the same routes as everybody.
    """
    from starlette.exceptions import HTTPException

    files = static_files()

    async def index(request: Request) -> Response:
        return _answer(request, files["index.html"])

    async def web(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        if file is None:
            raise HTTPException(404, "the page has no such file")
        return _answer(request, file)

    app.add_route("/", index, methods=["GET"], include_in_schema=False)
    app.add_route("/web/{name}", web, methods=["GET"], include_in_schema=False)


def _answer(request: Request, file: StaticFile) -> Response:
    """The file, or word that the browser's copy is still right."""
    from starlette.responses import Response

    headers = {**HEADERS, "ETag": file.etag}
    if _holds(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.content_type})


def _holds(if_none_match: str, etag: str) -> bool:
    """Whether a browser's list of copies has this one; a compressing proxy marks it as weak (W/)."""
    copies = [copy.strip().removeprefix("W/") for copy in if_none_match.split(",")]
    return etag in copies or copies == ["*"]
