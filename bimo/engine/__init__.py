"""From prompts to tokens: the one way in which bimo generates, for a notebook, the command line and the
applications."""

from bimo.engine.answers import Choice, Completion
from bimo.engine.engine import Engine
from bimo.engine.naive import new_tokens
from bimo.engine.request import Request, SamplingParams
from bimo.engine.settings import EngineSettings

__all__ = ["Choice", "Completion", "Engine", "EngineSettings", "Request", "SamplingParams", "new_tokens"]
