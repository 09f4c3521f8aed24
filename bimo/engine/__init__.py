"""From prompts to tokens: the one way in which bimo generates, for a notebook, the command line and the
applications."""

from bimo.engine.engine import Completion, Engine, new_tokens
from bimo.engine.request import SamplingParams

__all__ = ["Completion", "Engine", "SamplingParams", "new_tokens"]
