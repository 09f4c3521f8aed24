"""Which runner an engine gets."""

from __future__ import annotations

from collections.abc import Sequence

from bimo.core.errors import UserError
from bimo.engine.kernels import NoKernelsError, load_kernels
from bimo.engine.native import NativeRunner
from bimo.engine.native_model import reason_against
from bimo.engine.runner import Runner
from bimo.engine.settings import EngineSettings
from bimo.engine.torch_runner import TorchRunner
from bimo.model.gpt import GPT
from bimo.model.lora import Adapter


def choose_runner(model: GPT, settings: EngineSettings, adapters: Sequence[Adapter] = ()) -> Runner:
    """The fastest runner that can do it: the native kernels on a CPU, else torch. Its name says which, and why.

    Raises:
        UserError: The one that was asked for cannot.
    """
    reason = "it was asked for" if settings.backend == "torch" else reason_against(model, adapters)
    if not reason:
        try:
            return NativeRunner(model, settings, load_kernels(settings.threads), adapters)
        except NoKernelsError as error:
            reason = str(error)
    if settings.backend == "native":
        raise UserError(
            f"the native kernels cannot run this model: {reason}", mend="Leave the backend to bimo: backend='auto'."
        )
    runner = TorchRunner(model, settings, adapters)
    runner.name = f"torch on {runner.device}, because {reason}"
    return runner
