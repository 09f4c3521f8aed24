"""JSON files of strangers: no larger than they can be, no key that says two things, one sentence on failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bimo.core.errors import UserError

_AGAIN = "Copy it again."
_PER_VALUE = 32  # bytes; a value takes some 64 in memory, and no honest file has many values that are shorter than this


def read_json(path: Path, largest: int = 2**22) -> dict[str, Any]:
    """A JSON object out of a file.

    Args:
        path: The file.
        largest: Bytes that such a file may have.

    Raises:
        UserError: There is none, or it is damaged or too large.
    """
    where = str(path)
    try:
        if not path.is_file():
            raise UserError("no such file", where=where, mend="Check the path.")
        with path.open("rb") as file:
            data = file.read(largest + 1)
        if len(data) > largest or sum(map(data.count, (b",", b"[", b"{"))) > largest // _PER_VALUE:
            raise UserError(f"it is larger than such a file can be ({largest} bytes)", where=where, mend=_AGAIN)
        content = json.loads(data.decode(), object_pairs_hook=_unambiguous)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot be read as JSON ({error})", where=where, mend=_AGAIN) from error
    except RecursionError as error:
        raise UserError("cannot be read as JSON (it is nested too deeply)", where=where, mend=_AGAIN) from error
    if not isinstance(content, dict):
        raise UserError("not a JSON object", where=where, mend=_AGAIN)
    return content


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no key stands twice with different values: readers differ in which one they take."""
    content = dict(pairs)
    if len(content) < len(pairs):
        again = next((key for key, value in pairs if content[key] != value), None)
        if again is not None:
            raise ValueError(f"the key {again[:100]!r} stands twice")
    return content


def finite(value: Any) -> Any:
    """Plain values as JSON can hold them: it knows no infinity and no NaN, which become null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
