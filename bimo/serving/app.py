"""The server as an ASGI application: routes, errors in OpenAI's dialect, and the door before all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

import bimo
from bimo.serving.contract import EngineService, GuardService
from bimo.serving.door import App, Door
from bimo.serving.errors import ApiError
from bimo.serving.gateway import Gateway, ModelRouter, Visit
from bimo.serving.guarding import local_guard
from bimo.serving.keys import KeyRing
from bimo.serving.settings import ServeSettings

Pages = Callable[[FastAPI, Gateway], None]


class Route(APIRoute):
    """A route whose body was parsed at the door."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            visit: Visit = request.scope["bimo"]
            visit.route = self.path
            request._body, request._json = b"{}", visit.content  # what the framework would read and parse again
            return await handle(request)

        return handler


def make_app(
    service: EngineService,
    settings: ServeSettings | None = None,
    *,
    keys: KeyRing | None = None,
    guard: GuardService | None = None,
    router: ModelRouter | None = None,
    pages: Pages | None = None,
) -> tuple[App, Gateway]:
    """The application of a server, and its gateway, which says when it may end.

    Args:
        service: The models.
        settings: Every bound.
        keys: Who may use it; None: everybody.
        guard: Looks at texts; None: the rules of the settings, in this process.
        router: Chooses models; None: by name.
        pages: Adds the routes of a page for people.
    """
    from bimo.serving.docs_page import add_docs
    from bimo.serving.routes import add_routes
    from bimo.serving.status import add_status

    settings = settings or ServeSettings()
    guard = guard or local_guard(settings.guard)
    gateway = Gateway(service, guard, settings, keys or KeyRing(), router)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close(0.0)

    app = FastAPI(
        title="bimo", version=bimo.__version__, docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        lifespan=lifespan, redirect_slashes=False, description="Models over HTTP, in the dialect of OpenAI.",
    )  # fmt: skip
    app.router.route_class = Route
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    add_routes(app, gateway)
    add_status(app, gateway)
    add_docs(app)
    if pages is not None:
        pages(app, gateway)
    app.openapi()  # made now, not while others wait
    return Door(app, gateway), gateway


def _answer(error: ApiError) -> Response:
    response = JSONResponse(error.content, error.status)
    for name, value in error.headers[2:]:
        response.headers.append(name.decode(), value.decode())
    return response


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError), "registered for it alone"
    return _answer(error)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for it alone"
    words = {404: "there is nothing at this address", 405: "this address has no such method"}
    return _answer(ApiError(error.status_code, words.get(error.status_code, "the request is wrong"), "no_route"))


async def _invalid(_: Request, error: Exception) -> Response:
    """The first field that is wrong, by its name; what it held is not repeated."""
    assert isinstance(error, RequestValidationError), "registered for it alone"
    found = _plainest(list(error.errors()))
    place = [str(part) for part in found.get("loc", ()) if part not in ("body", "path")]
    # Places inside of alternatives hold the names of types.
    param = ".".join(part for part in place if part.isidentifier() or part.isdigit())[:200]
    what = "the field is not known" if found.get("type") == "extra_forbidden" else str(found.get("msg", "it is wrong"))
    return _answer(ApiError(400, f"{param or 'the body'}: {what}"[:500], "invalid_value", param=param))


def _plainest(errors: list[dict[str, Any]]) -> dict[str, Any]:
    """Unknown fields first; of an alternative, the option that went furthest."""
    unknown = [error for error in errors if error.get("type") == "extra_forbidden"]
    return (unknown or sorted(errors, key=lambda error: -len(error.get("loc", ()))) or [{}])[0]
