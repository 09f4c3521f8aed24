"""Engines and guards as parts: in this process, behind a wire, and as children; all with one tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

pytest.importorskip("httpx", reason="the extra bimo[serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra bimo[serve] is not installed")

from serving.commands import Command

from bimo import LM
from bimo.engine import EngineSettings
from bimo.serving.child import ChildPlan
from bimo.serving.contract import Event, GenerateCall
from bimo.serving.engine_app import engine_app
from bimo.serving.local import LocalEngine
from bimo.serving.models import ServedModel
from bimo.serving.offering import Offering
from bimo.serving.remote import Address
from bimo.serving.standing import PartServer, PartSettings, listening, place_of
from bimo.serving.wire import WireSettings, shared_secret

Result = TypeVar("Result")
SECRET = "a-secret-of-two-processes"
QUICK = WireSettings(poll_s=0.1, silence_s=6.0, beat_s=0.3, connect_s=5.0)


class Loop:
    """An event loop in a thread, on which services live while tests come and go."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result], timeout: float = 120) -> Result:
        """What comes of some work on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def close(self) -> None:
        """End it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)


@contextlib.asynccontextmanager
async def standing(app: Offering, **settings: Any) -> AsyncIterator[str]:
    """The address of an application on a real socket of this process."""
    sock = listening(PartSettings(port=0, **settings))
    server = PartServer(app, 1)
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield place_of(sock)
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def standing_engine(lm: LM, wire: WireSettings = QUICK) -> AsyncIterator[tuple[Address, LocalEngine, Offering]]:
    """An engine behind a wire."""
    engine = LocalEngine([ServedModel("tiny", lm, EngineSettings(threads=1))])
    app = engine_app(engine, shared_secret(SECRET), wire)
    async with standing(app) as url:
        try:
            yield Address(url, SECRET), engine, app
        finally:
            await engine.close()


def call(prompt: str = "the cat sat", model: str = "tiny", **params: Any) -> GenerateCall:
    """A request that always has the same answer."""
    own = {"max_tokens": 8, "temperature": 0.0, "min_tokens": 8, **params}
    return GenerateCall(id=f"r{time.monotonic_ns()}", model=model, prompt=prompt, params=own)


async def all_events(events: Any) -> list[Event]:
    """Every event of a request."""
    return [event async for event in events]


async def until(holds: Callable[[], Any], seconds: float = 30) -> float:
    """Wait until something holds, which may have to be awaited; returns how long that took."""
    began = time.monotonic()
    while True:
        found = holds()
        if await found if asyncio.iscoroutine(found) else found:
            return time.monotonic() - began
        assert time.monotonic() - began < seconds, "it does not come true in time"
        await asyncio.sleep(0.02)


def kill(pid: int) -> None:
    """As the kernel does when memory runs out."""
    assert pid > 0, "there is a process"
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    own = Loop()
    yield own
    own.close()


@pytest.fixture(scope="session")
def plan(model_folder: Path) -> ChildPlan:
    return ChildPlan(
        "engine", (str(model_folder),), ("tiny",), engine={"threads": 1}, wire=QUICK.to_dict(), drain_s=5.0
    )


Start = Callable[..., Command]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts commands that end with the test."""
    running: list[Command] = []

    def begin(*arguments: str, **environment: str) -> Command:
        running.append(Command(*arguments, **environment))
        return running[-1]

    yield begin
    for command in running:
        if command.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                command.process.send_signal(signal.SIGCONT)
        command.end()


def alive(pid: int) -> bool:
    """Whether a process is still there, and not only as what its parent has not asked about."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
