"""Which runner an engine gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bimo.core.errors import UserError
from bimo.engine.runner import Runner
from bimo.engine.settings import EngineSettings
from bimo.engine.torch_runner import TorchRunner
from bimo.model.gpt import GPT


def choose_runner(model: GPT, settings: EngineSettings, adapters: Mapping[str, Any]) -> Runner:
    """The fastest runner that can do it.

    Raises:
        UserError: The one that was asked for cannot.
    """
    if adapters:
        raise UserError("there is no runner for adapters", mend="Leave out adapters.")
    return TorchRunner(model, settings)
