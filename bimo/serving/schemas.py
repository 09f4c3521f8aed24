"""What a JSON schema of a client may say: no pattern of its own is run, and nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from bimo.serving.errors import ApiError

_LONGEST = 2**16  # characters
_MOST_PARTS = 2000
_REFUSED = {
    "pattern": "patterns are not run",
    "patternProperties": "patterns are not run",
    "$dynamicRef": "references are looked up in the schema only",
    "$recursiveRef": "references are looked up in the schema only",
}
_DATA = ("enum", "const", "default", "examples")  # values, not schemas
_NAMED = ("properties", "$defs", "definitions", "dependentSchemas")  # schemas by names of their own


def schema_text(schema: dict[str, Any], param: str) -> str:
    """A client's JSON schema as the engine takes it.

    Raises:
        ApiError: It is too large, or says what a client may not say.
    """
    text = json.dumps(schema, ensure_ascii=False)
    if len(text) > _LONGEST:
        raise ApiError(400, f"the schema is longer than {_LONGEST} characters", "invalid_schema", param=param)
    for number, part in enumerate(_parts(schema)):
        if number == _MOST_PARTS:
            raise ApiError(400, f"the schema has more than {_MOST_PARTS} parts", "invalid_schema", param=param)
        for key, value in part.items():
            if key in _REFUSED or key.startswith(("x-", "%")):
                why = _REFUSED.get(key, "extensions are not known")
                raise ApiError(400, f"{key[:40]!r} is not allowed in a schema: {why}", "invalid_schema", param=param)
            if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
                message = "a $ref must begin with #: nothing is fetched"
                raise ApiError(400, message, "invalid_schema", param=param)
    return text


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema inside a schema, itself among them."""
    if isinstance(schema, list):
        for item in schema:
            yield from _parts(item)
    if not isinstance(schema, dict):
        return
    yield schema
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            for own in value.values():
                yield from _parts(own)
        elif key not in _DATA:
            yield from _parts(value)
