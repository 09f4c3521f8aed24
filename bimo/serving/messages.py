"""Messages as plain JSON and back: frozen dataclasses, checked against their annotations when they come in."""

from __future__ import annotations

import functools
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from bimo.core.errors import UserError


class Message:
    """A frozen dataclass that goes over a wire; `"is"` says which."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values: dictionaries, lists, texts, numbers."""
        own = fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        return {"is": type(self).__name__, **{field.name: _plain(getattr(self, field.name)) for field in own}}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """The message out of plain values.

        Raises:
            UserError: They are not those of such a message.
        """
        if not isinstance(values, dict) or values.get("is", cls.__name__) != cls.__name__:
            raise _wrong(cls.__name__, "it is another message")
        hints = _hints(cls)  # type: ignore[arg-type]  # every class can be hashed
        unknown = next((key for key in values if key != "is" and key not in hints), None)
        if unknown is not None:
            raise _wrong(cls.__name__, f"there is no field {str(unknown)[:40]!r}")
        needed = _required(cls)  # type: ignore[arg-type]  # every class can be hashed
        missing = next((name for name in needed if name not in values), None)
        if missing is not None:
            raise _wrong(cls.__name__, f"the field {missing!r} is missing")
        return cls(
            **{key: _revived(values[key], hints[key], f"{cls.__name__}.{key}") for key in hints if key in values}
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


@functools.cache
def _hints(message: type[Message]) -> dict[str, Any]:
    return get_type_hints(message)


@functools.cache
def _required(message: type[Message]) -> tuple[str, ...]:
    own = fields(message)  # type: ignore[arg-type]  # every subclass is a dataclass
    return tuple(f.name for f in own if f.default is MISSING and f.default_factory is MISSING)


def _revived(value: Any, hint: Any, where: str) -> Any:
    """A value as its annotation wants it."""
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in get_args(hint):
            return value
    elif origin in (Union, types.UnionType):
        for option in get_args(hint):
            try:
                return _revived(value, option, where)
            except UserError:
                continue
    elif origin is tuple:
        item = get_args(hint)[0]
        if isinstance(value, (list, tuple)):
            return tuple(_revived(one, item, where) for one in value)
    elif origin is dict:
        item = get_args(hint)[1]
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: _revived(one, item, where) for key, one in value.items()}
    elif isinstance(hint, type) and is_dataclass(hint):
        assert issubclass(hint, Message), "messages hold messages"
        return hint.from_dict(value)
    elif _is_plain(value, hint):
        return value
    raise _wrong(where, f"{type(value).__name__} does not fit")


def _is_plain(value: Any, hint: Any) -> bool:
    """Whether it is of that type; a whole number is a number, a truth value is none."""
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _wrong(where: str, what: str) -> UserError:
    return UserError(f"a message between the parts of the server is wrong: {what}", where=where, mend="Update both.")
