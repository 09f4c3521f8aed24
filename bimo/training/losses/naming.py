"""From a setting to a loss: `focal`, `label_smoothing(epsilon=0.2)`, or the name of one that a user registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bimo.core.errors import UserError, nearest
from bimo.core.registry import REGISTRIES, name_and_parameters
from bimo.training.losses.chunks import Loss


def loss_by_name(text: str, makers: Mapping[str, Callable[[Any], Any]] | None = None) -> Loss:
    """The loss that a setting names.

    A function that is registered is the loss itself; a class is made, with the parameters in parentheses.

    Args:
        text: A name, with or without parameters: numbers, texts, lists.
        makers: Parameter → what turns its value into what the loss needs. {"teacher": open_model} makes
            distillation(teacher='runs/large') possible, without this folder knowing how a model is opened.

    Raises:
        UserError: No such loss, no such parameter, or a value that it refuses.
    """
    name, parameters = name_and_parameters(text)
    part = REGISTRIES["loss"].get(name)
    if not isinstance(part, type):
        if "(" in text:
            raise UserError(
                f"{name!r} is a function and takes no parameters",
                where=f"loss: {text}",
                mend=f"Write {name}, or register a class with these parameters.",
            )
        return part
    _check_parameters(text, part, parameters)
    try:
        return part(**{key: (makers or {}).get(key, _as_it_is)(value) for key, value in parameters.items()})
    except (TypeError, ValueError) as error:  # a class of the user that refuses a value
        raise UserError(f"cannot be made ({error})", where=f"loss: {text}", mend="Change its parameters.") from error


def _check_parameters(text: str, part: type, parameters: dict[str, Any]) -> None:
    signature = inspect.signature(part).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in signature):
        return
    known = [p.name for p in signature]
    for key in parameters:
        if key not in known:
            raise UserError(
                f"there is no parameter {key!r}{nearest(key, known)}",
                where=f"loss: {text}",
                mend=f"Known: {', '.join(known) or 'none'}.",
            )
    missing = [p.name for p in signature if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
    for key in missing:
        if key not in parameters:
            raise UserError(f"{key} is missing", where=f"loss: {text}", mend=f"Known: {', '.join(known)}.")


def _as_it_is(value: Any) -> Any:
    return value
