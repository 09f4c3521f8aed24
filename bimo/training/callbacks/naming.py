"""From settings to callbacks: `early_stopping(patience=5)`, or the name of one that a user registered."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from bimo.core.config import TrainingSettings
from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, made_part, name_and_parameters
from bimo.training.callbacks.protocol import Callback


def make_callbacks(settings: TrainingSettings, given: Mapping[str, Any] | None = None) -> list[Callback]:
    """The callbacks that the settings name, in their order.

    Args:
        settings: Their `callbacks`.
        given: What a run gives to every callback that has a parameter of this name and no value for it in the settings:
            `folder`, the run's folder, and `generate`, which makes a text of a model and a prompt.

    Raises:
        UserError: No such callback, no such parameter, a value that it refuses, or one that is missing.
    """
    return [callback_by_name(text, given) for text in settings.callbacks]


def callback_by_name(text: str, given: Mapping[str, Any] | None = None) -> Callback:
    """The callback that a setting names; see `make_callbacks`."""
    name, parameters = name_and_parameters(text)
    part = REGISTRIES["callback"].get(name)
    made: object = part
    if inspect.isfunction(part) or (isinstance(part, type) and issubclass(part, Callback)):
        takes = inspect.signature(part).parameters
        offered = {key: value for key, value in (given or {}).items() if key in takes}
        made = made_part("callback", text, part, offered | parameters)
    if not isinstance(made, Callback):
        raise UserError(
            f"{getattr(made, '__name__', type(made).__name__)} is no Callback",
            where=f"callback: {text}",
            mend="Register a class that inherits from bimo.Callback, or a function that makes one.",
        )
    return made
