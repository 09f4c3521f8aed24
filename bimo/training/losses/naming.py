"""From a setting to a loss: `focal`, `label_smoothing(epsilon=0.2)`, or the name of one that a user registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, made_part, name_and_parameters
from bimo.training.losses.chunks import Loss


def chosen_loss(choice: Loss | str) -> Loss:
    """A loss as it is given, or by its name.

    Raises:
        UserError: It is neither, or it cannot be called as a loss is.
    """
    loss: Any = loss_by_name(choice) if isinstance(choice, str) else choice
    if isinstance(loss, type):
        name = loss.__name__
        raise UserError(f"the loss is the class {name}, not an object of it", mend=f"Write loss={name}().")
    if not callable(loss):
        raise UserError(
            f"the loss is a {type(loss).__name__}",
            mend="Give a function (logits, targets, weights) → mean loss, or a name like 'focal'.",
        )
    try:
        inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).bind("logits", "targets", "weights")
    except TypeError as error:
        raise UserError(
            f"the loss cannot be called with (logits, targets, weights): {error}",
            where=getattr(loss, "__name__", type(loss).__name__),
            mend="Let it take these three, and return the mean over trained tokens.",
        ) from error
    except ValueError:  # a function without a signature, out of a compiled module
        pass
    return loss  # type: ignore[no-any-return]


def mean_of(loss: Loss, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """What a loss of a user's own returns; an error out of it says with which shapes it was called.

    Raises:
        UserError: What it returns cannot be minimised.
    """
    try:
        mean = loss(logits, targets, weights)
    except Exception as error:  # it is the user's code that fails, and the user who reads it
        given = {"logits": logits, "targets": targets, "weights": weights}
        error.add_note(f"The loss was called with {', '.join(f'{n} {tuple(x.shape)}' for n, x in given.items())}.")
        raise
    check_scalar(mean)
    return mean


def check_scalar(mean: object) -> None:
    """What a loss returns can be minimised.

    Raises:
        UserError: It is not one number, or no gradient comes from it.
    """
    if isinstance(mean, Tensor) and mean.dim() == 0 and (mean.requires_grad or not torch.is_grad_enabled()):
        return
    found = f"is a {type(mean).__name__}"
    if isinstance(mean, Tensor):
        found = f"has shape {tuple(mean.shape)} and {'a' if mean.requires_grad else 'no'} gradient"
    raise UserError(
        f"the loss must be one number that depends on the logits; it {found}",
        mend="Return the mean over trained tokens, computed from the logits.",
    )


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
