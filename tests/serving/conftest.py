"""Fixtures of the server's tests; what they are made of stands in servers.py."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest
from serving.servers import WORDS, Running, Serve, tiny

from bimo import LM, Tokenizer
from bimo.engine import EngineSettings
from bimo.serving.local import LocalEngine
from bimo.serving.models import ServedModel
from bimo.serving.settings import ServeSettings


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    rng = random.Random(0)
    return Tokenizer.train([" ".join(rng.choices(WORDS, k=20)) for _ in range(100)], vocab_size=400)


@pytest.fixture(scope="session")
def small(small_tokenizer: Tokenizer) -> LM:
    return tiny(small_tokenizer)


@pytest.fixture
def serve(small: LM) -> Iterator[Serve]:
    """Starts servers that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(models: list[ServedModel] | None = None, **options: Any) -> Running:
            parts = {name: options.pop(name, None) for name in ("keys", "pages", "guard_service", "router")}
            models = models or [ServedModel("tiny", small, EngineSettings(threads=1))]
            settings = ServeSettings.from_dict({"port": 0, "drain_s": 10.0, **options})
            parts["guard"] = parts.pop("guard_service")
            running = Running(LocalEngine(models), settings, **parts)
            stack.callback(running.stop)
            return running

        yield start


@pytest.fixture(scope="module")
def server(small: LM) -> Iterator[Running]:
    """One that several tests share."""
    models = [ServedModel("tiny", small, EngineSettings(threads=1))]
    running = Running(LocalEngine(models), ServeSettings(port=0, drain_s=10.0))
    yield running
    running.stop()
