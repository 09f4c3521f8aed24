"""The page of all addresses, made of the OpenAPI description: plain HTML that loads nothing from anywhere."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response

_BOUNDS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
)


def add_docs(app: FastAPI) -> None:
    """Add /docs."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """All addresses with their fields and bounds."""
        return HTMLResponse(page(app.openapi()))


def page(description: dict[str, Any]) -> str:
    """HTML of an OpenAPI description."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>bimo: addresses</title>",
        "<h1>bimo</h1><p>Models over HTTP, in the dialect of OpenAI. The same for programs: ",
        '<a href="/openapi.json">/openapi.json</a></p>',
    ]
    for path, methods in description["paths"].items():
        for method, about in methods.items():
            parts.append(f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(about.get('description') or about.get('summary', ''))}</p>")
            parts.append(_fields(about, description.get("components", {}).get("schemas", {})))
    return "\n".join([*parts, "</html>"])


def _fields(about: dict[str, Any], schemas: dict[str, Any]) -> str:
    """A table of the fields of a request's body."""
    content = about.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = schemas.get(content.get("schema", {}).get("$ref", "").rpartition("/")[2], {})
    rows = []
    for name, own in schema.get("properties", {}).items():
        needed = " (needed)" if name in schema.get("required", ()) else ""
        cells = (f"<code>{escape(name)}</code>{needed}", escape(_kind(own)), escape(own.get("description", "")))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "<tr><th>Field</th><th>What it is</th><th>What for</th></tr>"
    return f"<table border=1>{head}{''.join(rows)}</table>" if rows else ""


def _kind(schema: dict[str, Any]) -> str:
    """A type with its bounds, in one line."""
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    words = [str(schema.get("type", "const" if "const" in schema else "value"))]
    if "enum" in schema:
        words = [" | ".join(map(str, schema["enum"]))]
    if "items" in schema:
        words.append(f"of {_kind(schema['items'])}")
    words += [f"{bound} {schema[bound]}" for bound in _BOUNDS if bound in schema]
    if schema.get("default") is not None:
        words.append(f"default {schema['default']}")
    return ", ".join(words)
