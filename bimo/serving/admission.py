"""Who may begin now, who waits, and who is sent away: bounded places and a bounded queue, and limits for each key.

The queue is fair among keys: places go round them, so that one with a thousand requests does not hold up the others.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bimo.serving.errors import ApiError
from bimo.serving.keys import Key
from bimo.serving.settings import ServeSettings

_BYTES_PER_TOKEN = 3
_MINUTE_S = 60.0


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request in the queue."""

    tokens: int
    turn: asyncio.Future[None]


@dataclass(slots=True)
class _Usage:
    """What a key has used: buckets that fill up within a minute, and what is under way."""

    requests: float
    tokens: float
    seen: float
    parallel: int = 0


class Admission:
    """Gives places.

    Args:
        settings: How many there are.
        clock: Seconds, which never go back.

    Attributes:
        running: Requests that have a place.
        n_rejected: Requests that were sent away, by reason.
    """

    def __init__(self, settings: ServeSettings, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self.running = 0
        self.n_rejected: dict[str, int] = {"queue": 0, "requests": 0, "tokens": 0, "parallel": 0, "waited": 0}
        self._queues: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        self._n_waiting = self._waiting_tokens = 0
        self._usage: dict[str, _Usage] = {}
        self._seconds = 1.0  # that a request holds its place, on average of the last ones

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._n_waiting

    def knock(self, key: Key) -> None:
        """A request of a key has come; before its body is read.

        Raises:
            ApiError: Its limits are reached, or the queue is full.
        """
        usage = self._refilled(key)
        requests, _, parallel = self._limits(key)
        if parallel and usage.parallel >= parallel:
            raise self._rejected("parallel", f"the key has {parallel} requests under way", self._seconds)
        if requests and usage.requests < 1:
            wait = (1 - usage.requests) * _MINUTE_S / requests
            raise self._rejected("requests", f"the key has {requests} requests per minute", wait)
        self._check_queue(0)
        usage.requests -= 1

    @asynccontextmanager
    async def place(self, key: Key, prompt_bytes: int, new_tokens: int) -> AsyncIterator[Place]:
        """A place among those that run; it is left with the block.

        Args:
            key: Whose request it is.
            prompt_bytes: Of its texts.
            new_tokens: That it may get.

        Raises:
            ApiError: The key's limits are reached, the queue is full, or the wait was too long.
        """
        place = Place(expected=prompt_bytes // _BYTES_PER_TOKEN + new_tokens)
        usage = self._refilled(key)
        _, tokens, parallel = self._limits(key)
        if parallel and usage.parallel >= parallel:
            raise self._rejected("parallel", f"the key has {parallel} requests under way", self._seconds)
        if tokens:
            reserved = min(place.expected, tokens)  # a request that is larger than a minute's share needs a full bucket
            if usage.tokens < reserved:
                wait = (reserved - usage.tokens) * _MINUTE_S / tokens
                raise self._rejected("tokens", f"the key has {tokens} tokens per minute", wait)
            usage.tokens -= reserved
        usage.parallel += 1
        began = None
        try:
            await self._turn(key, prompt_bytes // _BYTES_PER_TOKEN)
            began = self._clock()
            yield place
        finally:
            usage.parallel -= 1
            if tokens:
                usage.tokens += reserved - place.used
            if began is not None:
                self._leave(self._clock() - began)

    async def _turn(self, key: Key, tokens: int) -> None:
        """Wait for a place and take it."""
        if self.running < self._settings.max_parallel and not self._n_waiting:
            self.running += 1
            return
        self._check_queue(tokens)
        waiting = _Waiting(tokens, asyncio.get_running_loop().create_future())
        self._queues.setdefault(key.name, deque()).append(waiting)
        self._n_waiting += 1
        self._waiting_tokens += tokens
        try:
            async with asyncio.timeout(self._settings.queue_s):
                await waiting.turn
        except BaseException as error:
            if waiting.turn.done() and not waiting.turn.cancelled():
                self._leave(0.0)  # the place came in the same moment, and is handed on
            else:
                self._forget(key, waiting)
            if isinstance(error, TimeoutError):
                raise self._rejected("waited", "no place became free in time", self._seconds) from error
            raise

    def _check_queue(self, tokens: int) -> None:
        full = self._n_waiting >= self._settings.queue_requests
        if self.running < self._settings.max_parallel and not self._n_waiting:
            return
        if full or (self._n_waiting and self._waiting_tokens + tokens > self._settings.queue_tokens):
            rounds = 1 + self._n_waiting / self._settings.max_parallel
            raise self._rejected("queue", "the server is busy", min(rounds * self._seconds, 60.0))

    def _leave(self, seconds: float) -> None:
        """A place is free: the next one's turn, of the key that has waited longest for one."""
        self.running -= 1
        if seconds:
            self._seconds += 0.1 * (seconds - self._seconds)
        while self._queues and self.running < self._settings.max_parallel:
            name, queue = next(iter(self._queues.items()))
            self._queues.move_to_end(name)
            waiting = queue.popleft()
            if not queue:
                del self._queues[name]
            self._n_waiting -= 1
            self._waiting_tokens -= waiting.tokens
            if not waiting.turn.done():
                self.running += 1
                waiting.turn.set_result(None)

    def _forget(self, key: Key, waiting: _Waiting) -> None:
        queue = self._queues.get(key.name)
        if queue is not None and waiting in queue:
            queue.remove(waiting)
            self._n_waiting -= 1
            self._waiting_tokens -= waiting.tokens
            if not queue:
                del self._queues[key.name]

    def _limits(self, key: Key) -> tuple[int, int, int]:
        """Requests and tokens per minute, and requests at once; 0: no limit."""
        own = self._settings
        given = (key.requests, own.key_requests_per_minute), (key.tokens, own.key_tokens_per_minute)
        requests, tokens = (b if a is None else a for a, b in given)
        return requests, tokens, own.key_parallel if key.parallel is None else key.parallel

    def _refilled(self, key: Key) -> _Usage:
        """What a key may still use now."""
        requests, tokens, _ = self._limits(key)
        now = self._clock()
        usage = self._usage.setdefault(key.name, _Usage(float(requests), float(tokens), now))
        share = (now - usage.seen) / _MINUTE_S
        usage.requests = min(float(requests), usage.requests + share * requests)
        usage.tokens = min(float(tokens), usage.tokens + share * tokens)
        usage.seen = now
        return usage

    def _rejected(self, reason: str, why: str, wait_s: float) -> ApiError:
        self.n_rejected[reason] += 1
        return ApiError(429, f"{why}; try again later", "rate_limit_exceeded", retry_after_s=max(wait_s, 1.0))


@dataclass(slots=True)
class Place:
    """A place that a request has.

    Attributes:
        expected: Tokens that it may take.
        used: Tokens that it took; whoever has the place says so.
    """

    expected: int
    used: int = field(default=0)
