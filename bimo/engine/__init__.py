"""From prompts to tokens: the one way in which bimo generates, for a notebook, the command line and the
applications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bimo.engine.answers import Choice, Completion
from bimo.engine.engine import Engine
from bimo.engine.request import Request, SamplingParams
from bimo.engine.settings import EngineSettings

if TYPE_CHECKING:
    from bimo.engine.naive import new_tokens

__all__ = ["Choice", "Completion", "Engine", "EngineSettings", "Request", "SamplingParams", "new_tokens"]


def __getattr__(name: str) -> Any:
    if name != "new_tokens":
        raise AttributeError(f"module 'bimo.engine' has no attribute {name!r}")
    from bimo.engine.naive import new_tokens  # here: it brings torch, which the engine can do without

    return new_tokens
