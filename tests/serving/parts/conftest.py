"""Engines and guards as parts: in this process, behind a wire, and as children; all with one tiny model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

pytest.importorskip("httpx", reason="the extra bimo[serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra bimo[serve] is not installed")

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
def model_folder(small: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "tiny"
    small.save(folder)
    return folder


@pytest.fixture(scope="session")
def plan(model_folder: Path) -> ChildPlan:
    return ChildPlan(
        "engine", (str(model_folder),), ("tiny",), engine={"threads": 1}, wire=QUICK.to_dict(), drain_s=5.0
    )


class Command:
    """A command of bimo that runs until it is told to end.

    Attributes:
        lines: Of its log.
    """

    def __init__(self, *arguments: str, seconds: float = 90, **environment: str) -> None:
        own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bimo", *arguments], env=own, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._seconds, self._url = seconds, ""

    @property
    def url(self) -> str:
        """Where it says that it is, once it is ready."""
        if self._url:
            return self._url
        assert self.process.stdout is not None, "it was asked for"
        timer = threading.Timer(self._seconds, self.process.kill)
        timer.start()
        first = self.process.stdout.readline()
        timer.cancel()
        assert " at " in first, f"it starts: {self.lines}"
        self._url = first.partition(" at ")[2].split()[0]
        return self._url

    def _read(self) -> None:
        assert self.process.stderr is not None, "it was asked for"
        for found in self.process.stderr:
            self.lines.append(found)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of its log about something."""
        found = [json.loads(line) for line in tuple(self.lines) if line.startswith("{")]
        return [line for line in found if line["event"] == name]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait(10)


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
