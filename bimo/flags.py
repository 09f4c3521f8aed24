"""Command-line flags and recipe files made from the settings: one definition, three ways to give it.

`jsonargparse` does the parsing; every field of a settings class becomes `--part.field` with the field's text as its
help, and the same dotted names are the keys of a YAML recipe. A name that does not exist is an error with the nearest
one.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import MISSING, fields
from typing import Any, get_args, get_origin, get_type_hints

import jsonargparse
from docstring_parser import parse_from_object

from bimo.core.errors import UserError, nearest
from bimo.core.settings import Settings, field_names


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse's parser with errors for people."""

    def parse_args(  # type: ignore[override]  # its two parents differ, too
        self, args: Sequence[str] | None = None, *more: Any, **options: Any
    ) -> jsonargparse.Namespace:
        """As jsonargparse does; words behind a flag for a list of texts are its items: `--name a --name b`."""
        lists = {flag for action in self._actions if _takes_texts(action) for flag in action.option_strings}
        return super().parse_args(None if args is None else _with_lists(args, lists), *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UserError(*_explain(message, known_names(self)))


def _takes_texts(action: argparse.Action) -> bool:
    """Whether a flag takes a list of texts."""
    return getattr(action, "_typehint", None) == list[str]


def _with_lists(arguments: Sequence[str], flags: Collection[str]) -> list[str]:
    """The arguments, with the bare words behind each of some flags as the list that it takes."""
    found: list[str] = []
    words: dict[str, tuple[int, list[str]]] = {}  # by flag: where its list stands in `found`, and what is in it
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for argument in arguments[:end]:
        flag, equals, word = argument.partition("=")
        if found and found[-1] in flags and not argument.startswith("-"):
            flag, word = found.pop(), argument
        elif flag not in flags or not equals:
            found.append(argument)
            continue
        if word.startswith("["):
            found.append(f"{flag}={word}")
            words.pop(flag, None)  # a whole list takes the place of what stood before it
            continue
        place, items = words.setdefault(flag, (len(found), []))
        items.append(word)
        found[place:] = [f"{flag}={json.dumps(items, ensure_ascii=False)}", *found[place + 1 :]]
    return [*found, *arguments[end:]]


def add_settings(parser: jsonargparse.ArgumentParser, settings: type[Settings], prefix: str = "") -> None:
    """Add a flag for each field, nested settings with their prefix."""
    hints = get_type_hints(settings)
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(settings).params}
    group = parser.add_argument_group(f"{prefix.rstrip('.') or 'run'}")
    for field in fields(settings):  # type: ignore[arg-type]  # every subclass is a dataclass
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Settings):
            add_settings(parser, hint, f"{prefix}{field.name}.")
            continue
        value = field.default if field.default_factory is MISSING else field.default_factory()
        inner = get_args(hint)[0] if get_origin(hint) is list else None
        if isinstance(inner, type) and issubclass(inner, Settings):
            hint = list[dict]  # checked, key by key, when the settings are made
        group.add_argument(f"--{prefix}{field.name}", type=hint, default=value, help=texts[field.name])


def known_names(parser: jsonargparse.ArgumentParser) -> list[str]:
    """Dotted names of everything that the parser takes."""
    return [action.dest for action in parser._actions if action.dest not in (argparse.SUPPRESS, "help")]


def settings_values(namespace: jsonargparse.Namespace, settings: type[Settings]) -> dict[str, Any]:
    """The plain nested dictionary of one settings class, out of what was parsed."""
    values = namespace.as_dict()
    return {name: values[name] for name in field_names(settings)}


def _explain(message: str, known: list[str]) -> tuple[str]:
    """One sentence out of jsonargparse's message, with the nearest known name where a name is unknown."""
    unknown = re.search(r"(?:unrecognized arguments?|Unrecognized arguments?): (?:--)?([\w.\-+]+)", message)
    unknown = unknown or re.search(r"[Kk]ey ['\"]([\w.\-]+)['\"] is not expected", message)
    if unknown is None:
        unknown = re.search(r"Option ['\"]([\w.\-]+)['\"] is not accepted", message)
    if unknown:
        name = unknown[1]
        tail = [dotted for dotted in known if dotted.rpartition(".")[2] == name.rpartition(".")[2]]
        hint = f" (did you mean {tail[0]!r}?)" if tail else nearest(name, known)
        return (f"unknown setting {name!r}{hint}",)
    return (" ".join(message.split()),)
