"""The GPT as tensors only: it knows no text, no files and no training."""

from bimo.core.spec import ModelSpec
from bimo.model.backends import AttnContext
from bimo.model.cache import KVCache
from bimo.model.gpt import GPT

__all__ = ["GPT", "AttnContext", "KVCache", "ModelSpec"]
