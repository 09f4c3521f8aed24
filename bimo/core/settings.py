"""What all settings share: they check themselves, and go in and out of plain dictionaries and YAML.

A settings class is a frozen dataclass that inherits from `Settings`. The text under each field is its help.
"""

from __future__ import annotations

import functools
import types
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from bimo.core.errors import UserError, nearest


class Settings:
    """A frozen dataclass that is valid as soon as it exists: every problem is collected and raised at once."""

    def problems(self) -> list[str]:
        """Each problem in one clause that starts with the field's name; called when all types are right."""
        return []

    def __post_init__(self) -> None:
        hints = _hints(type(self))  # type: ignore[arg-type]  # every class can be hashed
        values = {name: getattr(self, name) for name in field_names(type(self))}
        found = [problem for name, value in values.items() if (problem := _type_problem(name, value, hints[name]))]
        found = found or self.problems()
        if found:
            raise UserError("; ".join(found), where=type(self).__name__, mend="Change these settings.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, nested settings as dictionaries, tuples as lists."""
        return _plain(asdict(self))  # type: ignore[call-overload]  # every subclass is a dataclass

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a plain dictionary; an unknown key is an error that names the nearest known one."""
        hints = _hints(cls)  # type: ignore[arg-type]  # every class can be hashed
        known = field_names(cls)
        arguments = {}
        for key, value in values.items():
            if key not in known:
                raise UserError(
                    f"unknown key {key!r}{nearest(key, known)}", where=cls.__name__, mend=f"Known: {', '.join(known)}."
                )
            hint = hints[key]
            nested = isinstance(hint, type) and issubclass(hint, Settings) and isinstance(value, dict)
            if get_origin(hint) is tuple and isinstance(value, list):  # YAML and JSON have lists only
                value = tuple(value)
            item = _settings_in_list(hint)
            if item is not None and isinstance(value, list):
                value = [_nested(f"{key}[{n}]", item, v) if isinstance(v, dict) else v for n, v in enumerate(value)]
            arguments[key] = _nested(key, hint, value) if nested else value
        return cls(**arguments)

    def save(self, path: Path) -> None:
        """Write as YAML."""
        import yaml  # here: most uses of settings need no YAML

        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _settings_in_list(hint: Any) -> type[Settings] | None:
    """What a list of settings holds; None for everything else."""
    item = get_args(hint)[0] if get_origin(hint) is list else None
    return item if isinstance(item, type) and issubclass(item, Settings) else None


def _nested(key: str, settings: type[Settings], values: dict[str, Any]) -> Settings:
    """Settings within settings; what is wrong in there is found under the field's name."""
    try:
        return settings.from_dict(values)
    except UserError as error:
        raise UserError(error.what, where=key, mend=error.mend) from error


def field_names(settings: type[Settings]) -> list[str]:
    """Names of a settings class's fields, in order."""
    return [f.name for f in fields(settings)]  # type: ignore[arg-type]  # every subclass is a dataclass


@functools.cache
def _hints(settings: type[Settings]) -> dict[str, Any]:
    """Types of the fields; finding them out costs more than all checks, and it is asked again for each object."""
    return get_type_hints(settings)


def _type_problem(name: str, value: object, hint: Any) -> str:
    """'' when the value fits the annotation, else what is wrong with it."""
    if _fits(value, hint):
        return ""
    if get_origin(hint) is Literal:
        return f"{name} must be one of {', '.join(map(repr, get_args(hint)))}, is {value!r}"
    return f"{name} must be {getattr(hint, '__name__', hint)}, is {value!r}"


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin in (list, tuple):
        item = get_args(hint)[0]
        return isinstance(value, origin) and all(_fits(v, item) for v in value)
    if origin is dict:
        key, item = get_args(hint)
        return isinstance(value, dict) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value  # NaN is no setting
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _plain(value: Any) -> Any:
    """The value with lists in place of tuples, which YAML and JSON do not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
