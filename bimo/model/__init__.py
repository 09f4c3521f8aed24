"""The GPT as tensors only: it knows no text, no files and no training.

The names below are loaded when they are first used: what stands here without torch (formats, shapes, frequencies,
stored weights) shall not bring it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bimo.core.spec import ModelSpec
    from bimo.model.backends import AttnContext
    from bimo.model.cache import KVCache
    from bimo.model.gpt import GPT

__all__ = ["GPT", "AttnContext", "KVCache", "ModelSpec"]

_HOMES = {
    "GPT": "bimo.model.gpt",
    "AttnContext": "bimo.model.backends",
    "KVCache": "bimo.model.cache",
    "ModelSpec": "bimo.core.spec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bimo.model' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
