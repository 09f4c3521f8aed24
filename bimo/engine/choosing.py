"""Which runner an engine gets."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from bimo.core.errors import UserError
from bimo.engine.kernels import NoKernelsError, load_kernels
from bimo.engine.native import NativeRunner
from bimo.engine.native_model import reason_against
from bimo.engine.runner import Runner
from bimo.engine.settings import EngineSettings
from bimo.model.stored import StoredModel
from bimo.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bimo.model.gpt import GPT
    from bimo.model.lora import Adapter


class TextModel(Protocol):
    """A model with its tokenizer: `bimo.LM` is one. It may have `stored`, its weights as they lie, without torch."""

    @property
    def model(self) -> GPT:
        """The torch module."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back."""
        ...


def is_gpt(model: object) -> TypeGuard[GPT]:
    """Whether it is a torch module; nothing is, as long as nobody has imported its class."""
    home = sys.modules.get("bimo.model.gpt")
    return home is not None and isinstance(model, home.GPT)


def gpt_of(model: GPT | TextModel) -> GPT:
    """The torch module of a model."""
    whole: Any = model
    found: GPT = whole if is_gpt(model) else whole.model
    return found


def as_it_lies(model: GPT | TextModel) -> GPT | StoredModel:
    """A model's weights, without torch where it can do without."""
    stored = None if is_gpt(model) else getattr(model, "stored", None)
    return stored if isinstance(stored, StoredModel) else gpt_of(model)


def choose_runner(model: GPT | TextModel, settings: EngineSettings, adapters: Sequence[Adapter] = ()) -> Runner:
    """The fastest runner that can do it: the native kernels on a CPU, else torch. Its name says which, and why.

    Raises:
        UserError: The one that was asked for cannot.
    """
    found = as_it_lies(model)
    reason = "it was asked for" if settings.backend == "torch" else _only_torch(settings)
    reason = reason or reason_against(found, adapters)
    if not reason:
        try:
            return NativeRunner(found, settings, load_kernels(settings.threads), adapters)
        except NoKernelsError as error:
            reason = str(error)
    if settings.backend == "native":
        raise UserError(
            f"the native kernels cannot run this model: {reason}", mend="Leave the backend to bimo: backend='auto'."
        )
    from bimo.engine.torch_runner import TorchRunner

    runner = TorchRunner(gpt_of(model), settings, adapters)
    runner.because = reason
    return runner


def _only_torch(settings: EngineSettings) -> str:
    """What of the settings the native kernels do not know; '' when there is nothing."""
    if settings.device not in ("", "cpu"):
        return f"the device is {settings.device}"
    told = {"dtype": settings.dtype, "decode": settings.decode}
    return next((f"{name} is {value}" for name, value in told.items() if value != "auto"), "")
