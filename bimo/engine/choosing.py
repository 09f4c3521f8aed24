"""Which runner an engine gets."""

from __future__ import annotations

from collections.abc import Sequence

from bimo.engine.runner import Runner
from bimo.engine.settings import EngineSettings
from bimo.engine.torch_runner import TorchRunner
from bimo.model.gpt import GPT
from bimo.model.lora import Adapter


def choose_runner(model: GPT, settings: EngineSettings, adapters: Sequence[Adapter] = ()) -> Runner:
    """The fastest runner that can do it.

    Raises:
        UserError: The one that was asked for cannot.
    """
    return TorchRunner(model, settings, adapters)
