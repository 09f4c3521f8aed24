"""Fixtures of the server's tests; what they are made of stands in servers.py."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.commands import Command
from serving.servers import WORDS, Running, Serve, tiny

from bimo import LM, Tokenizer
from bimo.engine import EngineSettings
from bimo.serving.balancing import BalancedEngines
from bimo.serving.local import LocalEngine
from bimo.serving.models import ServedModel
from bimo.serving.remote import Address, engine_at, guard_at
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
            wire = bool(os.environ.get("BIMO_TEST_WIRE"))  # every test may be run with the engine behind a wire
            running = Running(LocalEngine(models), settings, wire=wire, **parts)
            stack.callback(running.stop)
            return running

        yield start


@pytest.fixture(scope="session")
def model_folder(small: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    small.save(folder)
    return folder


@pytest.fixture(scope="session")
def elsewhere(model_folder: Path) -> Iterator[tuple[str, str]]:
    """The addresses of an engine and of a guard, each a process of its own."""
    engine = Command("engine", "serve", str(model_folder), "--port", "0", "--engine.threads", "1")
    guard = Command("guard", "serve", "--port", "0")
    yield engine.url, guard.url
    assert [engine.end(), guard.end()] == [0, 0]


@pytest.fixture(scope="module", params=["one process", "three processes"])
def server(request: pytest.FixtureRequest, small: LM) -> Iterator[Running]:
    """One that several tests share: all parts in this process, or only the gateway."""
    settings = ServeSettings(port=0, drain_s=10.0)
    if request.param == "one process":
        running = Running(LocalEngine([ServedModel("tiny", small, EngineSettings(threads=1))]), settings)
    else:
        engine_url, guard_url = request.getfixturevalue("elsewhere")
        engines = BalancedEngines({engine_url: engine_at(Address(engine_url))})
        running = Running(engines, settings, guard=guard_at(Address(guard_url)))
    yield running
    running.stop()
