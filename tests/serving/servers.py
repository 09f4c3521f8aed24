"""Real servers for tests: a tiny model, uvicorn in a thread, an ephemeral port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from bimo import LM, ModelSpec, Tokenizer, new
from bimo.serving.app import make_app
from bimo.serving.local import LocalEngine
from bimo.serving.running import Server, address_of, listen
from bimo.serving.settings import ServeSettings

WORDS = [
    *(
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "saw",
        "一只",
        "猫",
        "坐在",
        "垫子",
        "上",
        "der",
        "Hund",
        "schlief",
    ),
    *("мир", "кот", "🙂", "👩\u200d👩\u200d👧", "नमस्ते", "สวัสดี"),
]


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
        self.app, self.gateway = make_app(engine, settings, **about)
        self.client = httpx.Client(base_url=self.url)
        started = threading.Event()
        self.server = Server(self.app, self.gateway, started.set)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [own]}, daemon=True)
        self.thread.start()
        assert started.wait(20), "the server starts"

    def post(self, path: str, content: Any, timeout: float = 60, **options: Any) -> httpx.Response:
        """The answer to a request."""
        return self.client.post(path, json=content, timeout=timeout, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """The answer to a request."""
        return self.client.get(path, timeout=30, **options)

    def stop(self) -> None:
        """End it as a signal would."""
        self.client.close()
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


def tiny(tokenizer: Tokenizer, seed: int = 1, context_length: int = 256) -> LM:
    """A model with random weights."""
    spec = ModelSpec(
        vocab_size=tokenizer.vocab_size,
        context_length=context_length,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        d_model=48,
    )
    return new(spec, tokenizer, seed=seed)


Serve = Callable[..., Running]
