"""From settings to callbacks: `early_stopping(patience=5)`, or the name of one that a user registered.

Whatever a user gives is looked at before the run: a misspelt method would never be called, and nobody would know.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from bimo.core.config import TrainingSettings
from bimo.core.errors import UserError, nearest
from bimo.core.registry import REGISTRIES, made_part, name_and_parameters
from bimo.training.callbacks.protocol import Callback

METHODS = {name: method for name, method in vars(Callback).items() if inspect.isfunction(method)}
"""What a callback may have, as the protocol has it."""


def make_callbacks(settings: TrainingSettings, given: Mapping[str, Any] | None = None) -> list[Callback]:
    """The callbacks that the settings name, in their order.

    Args:
        settings: Their `callbacks`.
        given: What a run gives to every callback that has a parameter of this name and no value for it in the settings:
            `folder`, the run's folder, and `generate`, which makes a text of a model and a prompt.

    Raises:
        UserError: No such callback, no such parameter, a value that it refuses, or one that is missing.
    """
    return checked(settings.callbacks, given)


def checked(callbacks: Iterable[Callback | str], given: Mapping[str, Any] | None = None) -> list[Callback]:
    """Callbacks in their order, each looked at; those that are named are made, see `make_callbacks`.

    Raises:
        UserError: Something among them is none, or has a method that is never called or cannot be.
    """
    several = isinstance(callbacks, Iterable) and not isinstance(callbacks, str)
    listed: list[Any] = list(callbacks) if several else [callbacks]
    found = [callback_by_name(one, given) if isinstance(one, str) else one for one in listed]
    for callback in found:
        if not isinstance(callback, Callback):
            named = f"the class {callback.__name__}" if isinstance(callback, type) else f"{type(callback).__name__}"
            raise UserError(
                f"{named} is no callback",
                where="callbacks",
                mend="Give objects of classes that inherit from bimo.Callback, for example EarlyStopping(patience=5).",
            )
        _check_methods(callback)
    return found


def uncalled_method(callback: Callback) -> str:
    """'' when every method that looks like one of the protocol is one; a misspelt one is never called."""
    for name in dir(type(callback)):
        if name in METHODS or name.startswith("_") or not callable(getattr(type(callback), name)):
            continue
        close = nearest(name, METHODS)
        if name.startswith("on_") or (close and name.endswith("_dict")):
            return f"{name} is not called by anybody{close}"
    return ""


def uncallable_method(callback: Callback) -> str:
    """'' when its methods take what the loop hands over."""
    for name, ours in METHODS.items():
        handed = list(inspect.signature(ours).parameters)[1:]
        try:
            inspect.signature(getattr(callback, name)).bind(*handed)
        except TypeError as error:
            return f"{name} cannot be called with ({', '.join(handed)}): {error}"
    return ""


def _check_methods(callback: Callback) -> None:
    where = f"callback {type(callback).__name__}"
    wrong = uncalled_method(callback)
    if wrong:
        known = ", ".join(name for name in METHODS if name.startswith("on_"))
        raise UserError(wrong, where=where, mend=f"Known: {known}.")
    wrong = uncallable_method(callback)
    if wrong:
        raise UserError(wrong, where=where, mend="Let it take these arguments.")


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
