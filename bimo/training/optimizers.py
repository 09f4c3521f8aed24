"""Optimizers, made for a model: which weights decay is decided here, in plain sight."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from bimo.core.config import TrainingSettings
from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""What a user may give in place of an optimizer: `torch.optim.SGD`, or `lambda p: torch.optim.SGD(p, lr=0.1)`."""


def adamw(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019). Matrices decay; vectors (norms, biases) do not. One fused kernel per step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=1e-8, fused=True
    )


def make_optimizer(
    choice: torch.optim.Optimizer | OptimizerFactory | str | None, model: nn.Module, settings: TrainingSettings
) -> tuple[torch.optim.Optimizer, bool]:
    """The optimizer of a run, and whether its rates are the user's own.

    Args:
        choice: A ready optimizer, something that makes one of the parameters, a registered name, or None: the name in
            the settings.
        model: What it changes.
        settings: Rates, decay.
    """
    if isinstance(choice, torch.optim.Optimizer):
        return _checked(choice, model), True
    if choice is None or isinstance(choice, str):
        made: Any = REGISTRIES["optimizer"].get(choice or settings.optimizer)(model, settings)
        own = False
    else:
        made = choice([p for p in model.parameters() if p.requires_grad]) if callable(choice) else choice
        own = True
    return _checked(made, model), own


def _checked(made: Any, model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that changes this model.

    Raises:
        UserError: It is none, or it has no weight of the model: the run would go on to its end and learn nothing.
    """
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(
            f"the optimizer is a {type(made).__name__}",
            mend="Give a torch.optim.Optimizer, or a function of the parameters that makes one.",
        )
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"{type(made).__name__} computes the loss several times in a step, which a run with checks does not offer",
            where="optimizer",
            mend="Give one whose step() needs no closure, such as torch.optim.AdamW.",
        )
    own = {id(p) for p in model.parameters() if p.requires_grad}
    if own and not any(id(p) in own for group in made.param_groups for p in group["params"]):
        raise UserError(
            "the optimizer holds no weight of this model, so nothing would be learned",
            mend="Make it of model.parameters(), or give a function of the parameters that makes it.",
        )
    return made


def set_rates(optimizer: torch.optim.Optimizer, rate: float, share_of_peak: float, own: bool) -> None:
    """Give every group its rate of this step.

    Args:
        optimizer: Its groups' rates are set; a group with a `rate_share` gets that share of the rate.
        rate: The schedule's.
        share_of_peak: The schedule's, as a share of its peak.
        own: Whether the rates are the user's: then each group gets that share of what it was given.
    """
    for group in optimizer.param_groups:
        if own:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * share_of_peak
        else:
            group["lr"] = rate * group.get("rate_share", 1.0)
