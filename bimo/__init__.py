"""bimo (笔墨, brush and ink): from raw text to a GPT that one can trust and serve.

The names below are loaded when they are first used: `import bimo` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Threads that wait for each other shall soon sleep instead of spinning. GNU's OpenMP spins 300,000 times; when another
# program wants a core, the thread that is waited for does not get it, and a training step took 30 times its time (now
# 4 times; alone it takes 1 to 5 % more). The library reads this when torch loads it; a value that is already set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

if TYPE_CHECKING:
    from bimo.applying import Conversation, classify, summarize, translate
    from bimo.core.config import ModelSpec, TrainingSettings
    from bimo.core.errors import UserError
    from bimo.core.registry import register
    from bimo.data.checkup import check
    from bimo.engine import Engine, EngineSettings, SamplingParams
    from bimo.evaluation.bench import bench
    from bimo.evaluation.evaluate import evaluate
    from bimo.evaluation.verify import verify
    from bimo.families.compare import compare
    from bimo.lm import LM, load, new
    from bimo.model.gpt import GPT
    from bimo.model.packed import unpack
    from bimo.quantizing import quantize
    from bimo.tokenizer import Tokenizer
    from bimo.training import Callback, Trainer

__version__ = "0.1.0"

_HOMES = {
    "Callback": "bimo.training",
    "Conversation": "bimo.applying",
    "Engine": "bimo.engine",
    "EngineSettings": "bimo.engine",
    "GPT": "bimo.model.gpt",
    "LM": "bimo.lm",
    "ModelSpec": "bimo.core.config",
    "SamplingParams": "bimo.engine",
    "Tokenizer": "bimo.tokenizer",
    "Trainer": "bimo.training",
    "TrainingSettings": "bimo.core.config",
    "UserError": "bimo.core.errors",
    "bench": "bimo.evaluation.bench",
    "check": "bimo.data.checkup",
    "classify": "bimo.applying",
    "compare": "bimo.families.compare",
    "evaluate": "bimo.evaluation.evaluate",
    "load": "bimo.lm",
    "new": "bimo.lm",
    "quantize": "bimo.quantizing",
    "register": "bimo.core.registry",
    "summarize": "bimo.applying",
    "translate": "bimo.applying",
    "unpack": "bimo.model.packed",
    "verify": "bimo.evaluation.verify",
}

__all__ = [
    "GPT",
    "LM",
    "Callback",
    "Conversation",
    "Engine",
    "EngineSettings",
    "ModelSpec",
    "SamplingParams",
    "Tokenizer",
    "Trainer",
    "TrainingSettings",
    "UserError",
    "bench",
    "check",
    "classify",
    "compare",
    "evaluate",
    "load",
    "new",
    "quantize",
    "register",
    "summarize",
    "translate",
    "unpack",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module("bimo.testing")
    if name not in _HOMES:
        raise AttributeError(f"module 'bimo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
