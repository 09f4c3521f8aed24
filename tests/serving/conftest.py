"""Real servers for tests: a tiny model, uvicorn in a thread, an ephemeral port."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from bimo import LM, ModelSpec, Tokenizer, new
from bimo.engine import EngineSettings
from bimo.serving.app import make_app
from bimo.serving.gateway import Gateway
from bimo.serving.local import LocalEngine
from bimo.serving.models import ServedModel
from bimo.serving.running import Server, address_of, listen
from bimo.serving.settings import ServeSettings

WORDS = "the cat sat on a mat and saw 一只 猫 坐在 垫子 上 der Hund schlief мир кот 🙂 👩‍👩‍👧 नमस्ते สวัสดี".split()


class Running:
    """A server that is running.

    Attributes:
        url: Where.
        gateway: Its gateway.
        engine: Its engine service.
        server: Itself.
    """

    def __init__(self, engine: LocalEngine, settings: ServeSettings, **about: Any) -> None:
        self.engine = engine
        own = listen(settings)
        self.url = address_of(own)
        self.port = own.getsockname()[1]
        app, self.gateway = make_app(engine, settings, **about)
        started = threading.Event()
        self.server = Server(app, self.gateway, started.set)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [own]}, daemon=True)
        self.thread.start()
        assert started.wait(20), "the server starts"

    def post(self, path: str, content: Any, timeout: float = 60, **options: Any) -> httpx.Response:
        """The answer to a request."""
        return httpx.post(self.url + path, json=content, timeout=timeout, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """The answer to a request."""
        return httpx.get(self.url + path, timeout=30, **options)

    def stop(self) -> None:
        """End it as a signal would."""
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server ends"

    def until(self, holds: Callable[[], bool], seconds: float = 10) -> float:
        """Wait until something holds; returns how long that took."""
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < seconds, "it does not come true in time"
            time.sleep(0.005)
        return time.monotonic() - began


@pytest.fixture(scope="session")
def small_tokenizer() -> Tokenizer:
    rng = random.Random(0)
    return Tokenizer.train([" ".join(rng.choices(WORDS, k=20)) for _ in range(100)], vocab_size=400)


def tiny(tokenizer: Tokenizer, seed: int = 1, context_length: int = 256) -> LM:
    """A model with random weights."""
    spec = ModelSpec(
        vocab_size=tokenizer.vocab_size, context_length=context_length, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16,
        d_model=48,
    )  # fmt: skip
    return new(spec, tokenizer, seed=seed)


@pytest.fixture(scope="session")
def small(small_tokenizer: Tokenizer) -> LM:
    return tiny(small_tokenizer)


Serve = Callable[..., Running]


@pytest.fixture
def serve(small: LM) -> Iterator[Serve]:
    """Starts servers that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(models: list[ServedModel] | None = None, keys: Any = None, pages: Any = None, **settings: Any) -> Running:
            guard = settings.pop("guard_service", None)
            models = models or [ServedModel("tiny", small, EngineSettings(threads=1))]
            own = ServeSettings.from_dict({"port": 0, "drain_s": 10.0, **settings})
            running = Running(LocalEngine(models), own, keys=keys, guard=guard, pages=pages)
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


@pytest.fixture
def gateway(server: Running) -> Gateway:
    return server.gateway
