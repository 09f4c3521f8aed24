"""Many works through one engine: each asks, gets answers, may ask again, and ends with a result; in order, in a stream.

A work is a generator: it yields what it asks, is sent the answers, and returns its result. So what an application does
reads from top to bottom, holds no engine, and is tested by sending it answers by hand.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from bimo.core.errors import UserError
from bimo.engine import Engine, SamplingParams
from bimo.engine.jobs import Job
from bimo.engine.request import Want

Item = TypeVar("Item")
ItemOut = TypeVar("ItemOut", covariant=True)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing asked of the model.

    Attributes:
        ids: What it reads.
        params: How it answers.
        want: New tokens, or log-probabilities of the ids from `n_context` on.
        n_context: Ids that are read and not asked about.
    """

    ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    want: Want = "generate"
    n_context: int = 0


Answer = Any
"""A Completion, or a tuple of log-probabilities; a UserError when the model could not do it."""
Work = Generator[Sequence[Ask], list[Answer], Result]


class Source(Protocol[ItemOut]):
    """What gives works, one by one."""

    def take(self, wait: bool) -> ItemOut | None:
        """The next one; None: none is there yet, and `wait` was not asked for.

        Raises:
            StopIteration: There are no more.
        """
        ...


class Ready(Generic[Item]):
    """A source of what is there when it is asked for."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)

    def take(self, wait: bool) -> Item | None:
        return next(self._items)


class Arriving(Generic[Item]):
    """A source of what arrives at its own pace, such as lines of standard input: a thread waits for it.

    Args:
        items: What is waited for.
        ahead: How many are fetched before they are taken.
    """

    def __init__(self, items: Iterable[Item], ahead: int = 64) -> None:
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(ahead)
        threading.Thread(target=self._fetch, args=(items,), name="bimo-reading", daemon=True).start()

    def take(self, wait: bool) -> Item | None:
        try:
            item, end = self._queue.get(block=wait)
        except queue.Empty:
            return None
        if end is not None:
            raise end
        return item

    def _fetch(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                self._queue.put((item, None))
            end: BaseException = StopIteration()
        except Exception as error:  # whoever takes gets it
            end = error
        self._queue.put((None, end))


class Works(Generic[Item, Result]):
    """A source of works out of a source of items.

    Args:
        items: What is worked on.
        of: The works for an item, mostly one.
    """

    def __init__(self, items: Iterable[Item] | Source[Item], of: Callable[[Item], Sequence[Work[Result]]]) -> None:
        self._items: Source[Item] = Ready(items) if isinstance(items, Iterable) else items
        self._of = of
        self._ready: deque[Work[Result]] = deque()

    def take(self, wait: bool) -> Work[Result] | None:
        while not self._ready:
            item = self._items.take(wait)
            if item is None:
                return None
            self._ready += self._of(item)
        return self._ready.popleft()


class _UnderWay(Generic[Result]):
    """A work, and what it waits for."""

    def __init__(self, engine: Engine, work: Work[Result]) -> None:
        self._engine, self._work = engine, work
        self.jobs: list[Job | UserError] = []
        self.result: Result | UserError | None = None
        self.over = False
        self._go_on(None)

    def advance(self) -> None:
        """Send the answers when all of them are there."""
        while not self.over and all(isinstance(job, UserError) or job.finished.is_set() for job in self.jobs):
            self._go_on([job if isinstance(job, UserError) else job.error or job.result for job in self.jobs])

    def give_up(self) -> None:
        for job in self.jobs:
            if isinstance(job, Job) and not job.finished.is_set():
                self._engine.cancel(job.request.id)
        self._work.close()

    def _go_on(self, answers: list[Answer] | None) -> None:
        try:
            asks = next(self._work) if answers is None else self._work.send(answers)
            self.jobs = [self._submitted(ask) for ask in asks]
        except StopIteration as end:
            self.result, self.over, self.jobs = end.value, True, []
        except UserError as error:  # of this work alone
            self.result, self.over, self.jobs = error, True, []

    def _submitted(self, ask: Ask) -> Job | UserError:
        try:
            request = self._engine.request(ask.ids, ask.params, want=ask.want, n_context=ask.n_context)
            return self._engine.submit(request)
        except UserError as error:
            return error


def in_order(engine: Engine, source: Source[Work[Result]], at_once: int = 64) -> Iterator[Result | UserError]:
    """The results of works, in their order; the error of one takes the place of its result.

    An error of the source itself is raised after the results of what it gave before.

    Args:
        engine: What answers.
        source: Gives the works.
        at_once: Works under way at most; so many may be taken before the first result is given.
    """
    waiting: deque[_UnderWay[Result]] = deque()
    end: Exception | None = None
    try:
        while end is None or waiting:
            while end is None and len(waiting) < at_once:
                try:
                    work = source.take(wait=not waiting)
                except Exception as error:  # raised below; StopIteration is the usual end
                    end = error
                    break
                if work is None:
                    break
                waiting.append(_UnderWay(engine, work))
            if any(not work.over for work in waiting):
                engine.step()
            for under_way in waiting:
                under_way.advance()
            while waiting and waiting[0].over:
                result = waiting.popleft().result
                yield result  # type: ignore[misc]  # a work that is over has one
        if not isinstance(end, StopIteration):
            raise end
    finally:
        for under_way in waiting:
            under_way.give_up()
