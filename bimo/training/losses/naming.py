"""From a setting to a loss: `focal`, `label_smoothing(epsilon=0.2)`, or the name of one that a user registered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, made_part, name_and_parameters
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
    ready = {key: (makers or {}).get(key, _as_it_is)(value) for key, value in parameters.items()}
    return made_part("loss", text, part, ready)


def _as_it_is(value: Any) -> Any:
    return value
