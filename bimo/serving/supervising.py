"""A part of the server as a child process that is watched: when it dies, or says nothing any more, another is started.

The first death is mended at once; a child that keeps dying is started ever more slowly, and whoever asks meanwhile gets
503. The child has a session of its own, so that Ctrl-C reaches the gateway alone, which lets it end what is under way.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, TypeVar

import bimo
from bimo.core.errors import UserError
from bimo.core.settings import Settings
from bimo.serving.child import ChildPlan
from bimo.serving.contract import (
    Applied,
    ApplyCall,
    Attention,
    AttentionCall,
    EmbedCall,
    Embedded,
    Event,
    Failed,
    GenerateCall,
    GuardVerdict,
    ModelCard,
    ServiceError,
    ServiceStats,
)
from bimo.serving.logs import log
from bimo.serving.remote import Address, RemoteEngine, RemoteGuard, engine_at, guard_at
from bimo.serving.wire import WireSettings

Remote = TypeVar("Remote", RemoteEngine, RemoteGuard)


@dataclass(frozen=True)
class SupervisorSettings(Settings):
    """How a child is watched."""

    start_s: float = 600.0
    """A child that is not ready after so long is killed."""
    first_pause_s: float = 0.2
    """Before a child that has died soon after its start is started again; doubled each time."""
    longest_pause_s: float = 5.0
    """The pause is never longer."""
    steady_s: float = 10.0
    """A child that has lived so long is started again at once."""
    hang_s: float = 30.0
    """A child that has not said for so long how it is is killed."""
    look_s: float = 2.0
    """How often it is asked."""

    def problems(self) -> list[str]:
        return [f"{name} must be more than 0, is {value}" for name, value in self.to_dict().items() if value <= 0]


class Child(Generic[Remote]):
    """One part of the server in a process of its own.

    Args:
        plan: What it is to be.
        connect: Makes the near end of the wire.
        settings: How it is watched.

    Attributes:
        remote: Calls it; None while there is none.
        pid: Of the process; 0: there is none.
        n_restarts: How often it was started again.
    """

    def __init__(
        self,
        plan: ChildPlan,
        connect: Callable[[Address, WireSettings], Remote],
        settings: SupervisorSettings | None = None,
    ) -> None:
        self._plan, self._settings = plan, settings or SupervisorSettings()
        self._connect: Callable[[Address, WireSettings], Remote] = connect
        self._wire = WireSettings.from_dict(plan.wire)
        self.remote: Remote | None = None
        self.pid = self.n_restarts = 0
        self._process: Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._first = asyncio.Event()
        self._wrong: UserError | None = None
        self._closed = False

    async def start(self) -> None:
        """Start it, and wait until it is ready for the first time.

        Raises:
            UserError: It cannot be what it is to be.
        """
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep())
        await self._first.wait()
        if self._wrong is not None:
            raise self._wrong

    @property
    def there(self) -> Remote:
        """Calls it.

        Raises:
            ServiceError: There is none at the moment.
        """
        if self.remote is None:
            what = f"the {self._plan.part} is started again" if self.n_restarts else f"the {self._plan.part} starts"
            wait = self._wire.retry_after_s
            raise ServiceError("unavailable", what, mend="Try again in some seconds.", retry_after_s=wait)
        return self.remote

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Let it end what is under way for so long, then end it."""
        self._closed = True
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), drain_seconds + 2)
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        self._first.set()

    async def _keep(self) -> None:
        """Have a child, always."""
        clock, pause = asyncio.get_running_loop().time, self._settings.first_pause_s
        while not self._closed:
            began = clock()
            try:
                await self._live()
            except UserError as error:
                if not self._first.is_set():  # it never worked: whoever starts the server is told
                    self._wrong = error
                    self._first.set()
                    return
                log.error("child cannot start", extra={"part": self._plan.part, "error": error.what})
            except (OSError, TimeoutError, ValueError, KeyError) as error:
                log.error("child failed", extra={"part": self._plan.part, "error": type(error).__name__})
                if not self._first.is_set():
                    what = f"the {self._plan.part}'s process cannot be started ({type(error).__name__})"
                    self._wrong = UserError(what, mend="See its log, and whether memory and time are enough.")
                    self._first.set()
                    return
            if self._closed:
                return
            self.n_restarts += 1
            if clock() - began >= self._settings.steady_s:
                pause = self._settings.first_pause_s
                continue
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._settings.longest_pause_s)

    async def _live(self) -> None:
        """One child's life."""
        secret = secrets.token_urlsafe(32)
        command = (sys.executable, "-m", "bimo.serving.child")
        own = str(Path(bimo.__file__).parent.parent)  # wherever the child would look, it is the same code
        path = os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, start_new_session=True, env={**os.environ, "PYTHONPATH": path}
        )
        self._process, self.pid = process, process.pid
        remote: Remote | None = None
        try:
            url = await asyncio.wait_for(self._address(process, secret), self._settings.start_s)
            remote = self._connect(Address(url, secret), self._wire)
            self.remote = remote
            log.info("child is ready", extra={"part": self._plan.part, "pid": process.pid})
            self._first.set()
            watching = asyncio.create_task(self._watch(process, remote))
            code = await process.wait()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            if not self._closed:
                log.error("child died", extra={"part": self._plan.part, "pid": process.pid, "code": code})
        finally:
            self.remote, self.pid = None, 0
            await _end(process)
            if remote is not None:
                with suppress(Exception):  # connections to a process that is gone
                    await remote.close()

    async def _address(self, process: Process, secret: str) -> str:
        """Give the child its plan; it says where it is."""
        assert process.stdin is not None, "it was asked for"
        assert process.stdout is not None, "it was asked for"
        with suppress(ConnectionError):  # it ended before it read, and says why by its end
            process.stdin.write(self._plan.to_json(secret))
            await process.stdin.drain()
        said = await process.stdout.readline()
        if not said.strip():
            code = await process.wait()
            raise UserError(
                f"the {self._plan.part}'s process ended before it was ready (exit code {code})",
                mend="See what it has printed, and whether memory is enough.",
            )
        words = json.loads(said)
        if "url" not in words:
            raise UserError(words["what"], where=words.get("where", ""), mend=words.get("mend", ""))
        return words["url"]

    async def _watch(self, process: Process, remote: Remote) -> None:
        """Kill a child that hangs: its process lives, and says nothing."""
        ask = remote.stats if isinstance(remote, RemoteEngine) else remote.rules
        clock = asyncio.get_running_loop().time
        heard = clock()
        while True:
            await asyncio.sleep(self._settings.look_s)
            try:
                async with asyncio.timeout(self._settings.hang_s):
                    await ask()
                heard = clock()
            except (ServiceError, TimeoutError):
                if clock() - heard >= self._settings.hang_s:
                    log.error("child hangs", extra={"part": self._plan.part, "pid": process.pid})
                    with suppress(ProcessLookupError):
                        process.kill()
                    return


async def _end(process: Process) -> None:
    """Whatever happened, no process stays, and none of its pipes."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.stdin is not None:
        process.stdin.close()


class SupervisedEngine:
    """An engine service that is a child process.

    Args:
        plan: Its models.
        settings: How it is watched.

    Attributes:
        child: The process.
    """

    def __init__(self, plan: ChildPlan, settings: SupervisorSettings | None = None) -> None:
        self.child: Child[RemoteEngine] = Child(plan, engine_at, settings)
        self._cards: tuple[ModelCard, ...] = ()
        self._stats = ServiceStats(())

    async def start(self) -> None:
        """Start it; see `Child.start`."""
        await self.child.start()
        await self.models()
        await self.stats()

    async def models(self) -> tuple[ModelCard, ...]:
        """See `EngineService`; while there is no child, those that it had."""
        with suppress(ServiceError):
            self._cards = await self.child.there.models()
        if not self._cards:
            self._cards = await self.child.there.models()
        return self._cards

    async def generate(self, call: GenerateCall) -> AsyncGenerator[Event, None]:
        """See `EngineService`."""
        try:
            engine = self.child.there
        except ServiceError as error:
            yield Failed.of(error)
            return
        async with aclosing(engine.generate(call)) as events:
            async for event in events:
                yield event

    async def embed(self, call: EmbedCall) -> Embedded:
        """See `EngineService`."""
        return await self.child.there.embed(call)

    async def apply(self, call: ApplyCall) -> Applied:
        """See `EngineService`."""
        return await self.child.there.apply(call)

    async def attention(self, call: AttentionCall) -> Attention:
        """See `EngineService`."""
        return await self.child.there.attention(call)

    async def stats(self) -> ServiceStats:
        """See `EngineService`; while there is no child, its engines are being restarted."""
        state: Literal["restarting"] | None = None
        try:
            self._stats = await self.child.there.stats()
        except ServiceError:
            state = "restarting"
        n_restarts = self.child.n_restarts
        own = (
            replace(e, state=state or e.state, n_restarts=e.n_restarts + n_restarts, running=0, waiting=0)
            if state
            else replace(e, n_restarts=e.n_restarts + n_restarts)
            for e in self._stats.engines
        )
        return ServiceStats(tuple(own), 0 if state else self._stats.memory_bytes)

    async def close(self, drain_seconds: float = 0.0) -> None:
        """See `EngineService`."""
        await self.child.close(drain_seconds)


class SupervisedGuard:
    """A guard that is a child process: whatever a text does to a rule, the gateway goes on.

    Args:
        plan: Its rules.
        settings: How it is watched.

    Attributes:
        child: The process.
    """

    def __init__(self, plan: ChildPlan, settings: SupervisorSettings | None = None) -> None:
        self.child: Child[RemoteGuard] = Child(plan, guard_at, settings)

    async def start(self) -> None:
        """Start it; see `Child.start`."""
        await self.child.start()

    async def check(self, texts: Sequence[str], side: Literal["input", "output"]) -> list[list[GuardVerdict]]:
        """See `GuardService`."""
        return await self.child.there.check(texts, side)

    async def rules(self) -> Mapping[str, str]:
        """See `GuardService`."""
        return await self.child.there.rules()

    async def close(self) -> None:
        """End it."""
        await self.child.close()
