"""One thread that steps one engine, tells who waits after each step, and makes the engine anew when it dies.

Whoever listens on an event loop is told once per step together with all others: a wake-up costs more than a token.
An error of one request stays with it inside the engine; what comes out of `step` itself has left the engine in an
unknown state, so that everything under way fails with `EngineGoneError` and another engine is made of the same weights.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from bimo.core.errors import UserError
from bimo.serving.contract import EngineStats
from bimo.serving.logs import failure, log

if TYPE_CHECKING:
    from bimo.engine import Engine, Request
    from bimo.engine.jobs import Job

State = Literal["starting", "ready", "restarting", "stopped"]
_PAUSE_S = 1.0  # between attempts to make an engine


class EngineGoneError(UserError):
    """The engine died, or was stopped, while the request was under way or before it began."""


class Watcher:
    """Somebody on an event loop who waits for news of jobs.

    Args:
        loop: The loop.

    Attributes:
        news: Set, on the loop, after a step that had some.
    """

    __slots__ = ("loop", "news")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.news = loop, asyncio.Event()


class Driver:
    """Steps an engine.

    Args:
        name: Of the model.
        make: Makes the engine; called again when it has died.

    Attributes:
        state: Whether requests are taken.
        n_restarts: How often the engine was made anew.
    """

    def __init__(self, name: str, make: Callable[[], Engine]) -> None:
        self.name, self._make = name, make
        self.engine = make()
        self.state: State = "ready"
        self.n_restarts = 0
        self._work = threading.Event()
        self._heard: deque[Watcher] = deque()
        self._step_began = 0.0
        self._thread = threading.Thread(target=self._run, name=f"bimo-engine-{name}", daemon=True)
        self._thread.start()

    def submit(self, make: Callable[[Engine], Request], tell: Watcher | Callable[[], None]) -> Job:
        """Take a request in; from any thread.

        Args:
            make: The request for an engine.
            tell: Who is told after each step that had news of it; a function is called in the engine's thread.

        Raises:
            EngineGoneError: There is no engine at the moment.
            UserError: The model cannot do what is asked.
        """
        engine = self.engine
        self._check(engine)
        job = engine.submit(make(engine))
        job.listener = (lambda: self._heard.append(tell)) if isinstance(tell, Watcher) else tell
        try:
            self._check(engine)  # it may have died meanwhile, and then nobody looks at this job
        except EngineGoneError:
            engine.cancel(job.request.id)
            raise
        if job.finished.is_set():  # before it was listened to
            job.notify()
        self._work.set()
        return job

    def cancel(self, job: Job) -> None:
        """Give a job up; from any thread."""
        job.listener = None
        engine = self.engine
        if engine.jobs.get(job.request.id) is job:  # and not one of the same number, of an engine before
            engine.cancel(job.request.id)

    def stop(self) -> None:
        """End the thread after the step that is running; what is under way fails."""
        self.state = "stopped"
        self._work.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=10)
        self._give_up("the server was stopped")

    @property
    def stats(self) -> EngineStats:
        """Of this moment."""
        now, began = self.engine.stats, self._step_began
        return EngineStats(
            model=self.name, state=self.state, running=now.running, waiting=now.waiting, free_blocks=now.free_blocks,
            n_blocks=now.n_blocks, tokens_per_s=now.tokens_per_s, n_tokens=now.n_tokens, n_restarts=self.n_restarts,
            step_s=time.monotonic() - began if began else 0.0,
        )  # fmt: skip

    def _check(self, engine: Engine) -> None:
        if self.state != "ready" or self.engine is not engine:
            raise EngineGoneError("the engine is not running at the moment", mend="Try again in some seconds.")

    def _run(self) -> None:
        while True:
            self._work.wait()
            if self.state == "stopped":
                return
            try:
                self._step_began = time.monotonic()
                more = self.engine.step()
            except Exception as error:  # those under way get it, and the log
                self._tell()
                self._revive(error)
                continue
            finally:
                self._step_began = 0.0
            self._tell()
            if not more:
                self._work.clear()
                if self.engine.jobs:  # came between
                    self._work.set()

    def _tell(self) -> None:
        """Wake all who have news, with one call for each event loop."""
        heard: dict[asyncio.AbstractEventLoop, dict[Watcher, None]] = {}
        while self._heard:
            watcher = self._heard.popleft()
            heard.setdefault(watcher.loop, {})[watcher] = None
        for loop, watchers in heard.items():
            try:
                loop.call_soon_threadsafe(_wake, tuple(watchers))
            except RuntimeError:  # the loop is closed: nobody waits any more
                continue

    def _revive(self, error: Exception) -> None:
        """Another engine in place of one that has died."""
        if self.state == "stopped":
            return
        self.state = "restarting"
        log.error("engine died", extra={"model": self.name, **failure(error)})
        self._give_up("the engine died, and is started again")
        while self.state == "restarting":
            try:
                self.engine = self._make()
            except Exception as again:  # told in the log; the front says 503 meanwhile
                log.error("engine cannot be made", extra={"model": self.name, **failure(again)})
                time.sleep(_PAUSE_S)
                continue
            self.n_restarts += 1
            if self.state == "restarting":
                self.state = "ready"
                log.info("engine runs again", extra={"model": self.name})

    def _give_up(self, why: str) -> None:
        """Whoever waits for this engine gets an error."""
        for job in tuple(self.engine.jobs.values()):
            if not job.finished.is_set():
                job.error = EngineGoneError(why, mend="Try again in some seconds.")
                job.finished.set()
                job.notify()
        self._tell()


def _wake(watchers: tuple[Watcher, ...]) -> None:
    for watcher in watchers:
        watcher.news.set()
