"""Several engine services as one: each request goes to the one with the least to do that has its model.

All of them are looked at, all the time. One that does not answer gets nothing until it answers again. A request whose
engine is lost before the first piece of its answer is handed to another one: nobody has seen anything of it, so that it
may begin anew. Once a piece was shown, the request fails with its engine. How often a request moves is bounded, because
it may be what kills the engines.

Imports no HTTP: whatever keeps the contract can be balanced.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import TypeVar

from bimo.core.errors import UserError, nearest
from bimo.serving.contract import (
    Applied,
    ApplyCall,
    Attention,
    AttentionCall,
    EmbedCall,
    Embedded,
    EngineService,
    EngineStats,
    Event,
    Failed,
    Finished,
    GenerateCall,
    ModelCard,
    Piece,
    ServiceError,
    ServiceStats,
    Started,
)
from bimo.serving.logs import log
from bimo.serving.wire import RefusedError, WireSettings

Result = TypeVar("Result")


class Seat:
    """One of the engine services, and what is known of it.

    Args:
        name: For logs.
        engine: The service.

    Attributes:
        up: Whether it answered when it was last asked.
        why: Why it is not up.
        cards: Its models, by name; kept while it is away.
        stats: What it did when it was last asked.
        under_way: Requests that it has from here.
    """

    def __init__(self, name: str, engine: EngineService) -> None:
        self.name, self.engine = name, engine
        self.up, self.why = False, ServiceError("unavailable", "it was not asked yet")
        self.cards: dict[str, ModelCard] = {}
        self.stats = ServiceStats(())
        self.under_way = self._others = 0
        self._asked = 0.0

    def doubtful(self, after_s: float) -> bool:
        """Whether it has been asked how it is, and says nothing for so long."""
        return self._asked > 0 and time.monotonic() - self._asked > after_s

    @property
    def load(self) -> int:
        """Requests that it has from here, and had from others when it was last asked."""
        return self.under_way + self._others

    def offers(self, model: str) -> bool:
        """Whether it can work for a model now."""
        card = self.cards.get(model)
        own = (card.base or card.name) if card else ""
        return self.up and any(e.model == own and e.state == "ready" for e in self.stats.engines)

    @contextmanager
    def used(self) -> Iterator[None]:
        """While a request is there."""
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def look(self, timeout_s: float) -> None:
        """Ask how it is."""
        self._asked = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                stats = await self.engine.stats()
                if not self.up or not self.cards:
                    self.cards = {card.name: card for card in await self.engine.models()}
        except (ServiceError, TimeoutError) as error:
            silent = ServiceError("unavailable", "the engine says nothing")
            self.lose(error if isinstance(error, ServiceError) else silent)
            return
        finally:
            self._asked = 0.0
        if not self.up:
            log.info("engine is there", extra={"engine": self.name, "models": list(self.cards)})
        self.stats, self.up = stats, True
        self._others = max(0, sum(e.running + e.waiting for e in stats.engines) - self.under_way)

    def lose(self, why: ServiceError) -> None:
        """It does not answer."""
        if self.up or why.what != self.why.what:
            log.warning("engine is away", extra={"engine": self.name, "error": why.what})
        self.up, self.why = False, why


class _Attempt:
    """A request that looks for an engine; may move a bounded number of times."""

    def __init__(self, model: str, moves: int) -> None:
        self.model, self.moves = model, moves
        self.busy: set[Seat] = set()
        self.last_seat: Seat | None = None
        self.last_error: ServiceError | None = None

    def moves_on(self, seat: Seat, error: ServiceError) -> bool:
        """Whether it goes to another engine after an error of this one."""
        if error.kind not in ("unavailable", "busy"):
            return False
        if error.kind == "busy":
            self.busy.add(seat)
        else:
            seat.lose(error)
        self.last_seat, self.last_error = seat, error
        self.moves -= 1
        return self.moves >= 0


class BalancedEngines:
    """See above.

    Args:
        engines: The services, by names for logs.
        settings: Times, and how often a request may move.
    """

    def __init__(self, engines: Mapping[str, EngineService], settings: WireSettings | None = None) -> None:
        assert engines, "there is an engine to choose"
        self.seats = [Seat(name, engine) for name, engine in engines.items()]
        self._settings = settings or WireSettings()
        self._looking: list[asyncio.Task[None]] = []
        self._first: asyncio.Task[None] | None = None
        self._turn = 0

    async def start(self) -> None:
        """Look at all engines for the first time; those that do not answer may come later.

        Raises:
            UserError: One refuses, which does not mend itself.
        """
        await self._begin()
        refused = next((seat for seat in self.seats if isinstance(seat.why, RefusedError) and not seat.up), None)
        if refused is not None:
            mend = "Give its key in the environment, and run the same release of bimo on both sides."
            raise UserError(refused.why.what, where=refused.name, mend=mend)

    async def models(self) -> tuple[ModelCard, ...]:
        """See `EngineService`; those of an engine that is away are told as well, it will be back."""
        await self._begin()
        found: dict[str, ModelCard] = {}
        for seat in sorted(self.seats, key=lambda seat: not seat.up):
            for name, card in seat.cards.items():
                found.setdefault(name, card)
        if not found:
            raise self._none_there()
        return tuple(found.values())

    async def generate(self, call: GenerateCall) -> AsyncGenerator[Event, None]:
        """See `EngineService`."""
        await self._begin()
        attempt, started, shown = _Attempt(call.model, self._settings.moves), False, False
        while True:
            try:
                seat = await self._seat(attempt)
            except ServiceError as error:
                yield Failed.of(error)
                return
            with seat.used():
                async with aclosing(seat.engine.generate(call)) as events:
                    async for event in events:
                        if isinstance(event, Failed) and not shown and attempt.moves_on(seat, event.error):
                            break
                        if isinstance(event, Failed) and event.kind == "unavailable":
                            seat.lose(event.error)
                        if isinstance(event, Started) and started:
                            continue
                        started, shown = True, shown or isinstance(event, Piece)
                        yield event
                        if isinstance(event, (Finished, Failed)):
                            return
                    else:
                        yield Failed("internal", "the engine's answer has no end")
                        return

    async def embed(self, call: EmbedCall) -> Embedded:
        """See `EngineService`."""
        return await self._asked(call.model, lambda engine: engine.embed(call))

    async def apply(self, call: ApplyCall) -> Applied:
        """See `EngineService`."""
        return await self._asked(call.model, lambda engine: engine.apply(call))

    async def attention(self, call: AttentionCall) -> Attention:
        """See `EngineService`."""
        return await self._asked(call.model, lambda engine: engine.attention(call))

    async def stats(self) -> ServiceStats:
        """See `EngineService`: what the engines of each model do together; ready while one of them is."""
        await self._begin()
        by_model: dict[str, EngineStats] = {}
        for seat in self.seats:
            for own in seat.stats.engines:
                by_model[own.model] = _together(by_model.get(own.model), own, seat.up)
        return ServiceStats(tuple(by_model.values()), sum(seat.stats.memory_bytes for seat in self.seats if seat.up))

    async def close(self, drain_seconds: float = 0.0) -> None:
        """See `EngineService`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + drain_seconds
        while any(seat.under_way for seat in self.seats) and loop.time() < end:
            await asyncio.sleep(0.05)
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)
        left = max(0.0, end - loop.time())
        await asyncio.gather(*(seat.engine.close(left) for seat in self.seats))

    async def _asked(self, model: str, ask: Callable[[EngineService], Awaitable[Result]]) -> Result:
        await self._begin()
        attempt = _Attempt(model, self._settings.moves)
        while True:
            seat = await self._seat(attempt)
            try:
                with seat.used():
                    return await ask(seat.engine)
            except ServiceError as error:
                if not attempt.moves_on(seat, error):
                    raise

    async def _seat(self, attempt: _Attempt) -> Seat:
        """Where a request goes.

        Raises:
            ServiceError: Nowhere.
        """
        found = self._choice(attempt)
        if found is None and attempt.last_seat is not None and attempt.last_seat not in attempt.busy:
            await attempt.last_seat.look(self._settings.doubt_s)  # perhaps only a connection was lost
            found = self._choice(attempt)
        if found is not None:
            return found
        names = [name for seat in self.seats for name in seat.cards]
        if attempt.model not in names and all(seat.cards for seat in self.seats):
            what = f"there is no model {attempt.model[:100]!r}{nearest(attempt.model[:100], names)}"
            raise ServiceError("not_found", what, "model", f"There are: {', '.join(dict.fromkeys(names))}.")
        raise attempt.last_error or self._none_there()

    def _choice(self, attempt: _Attempt) -> Seat | None:
        self._turn += 1  # equal ones take turns
        turned = [self.seats[(self._turn + number) % len(self.seats)] for number in range(len(self.seats))]
        free = [seat for seat in turned if seat.offers(attempt.model) and seat not in attempt.busy]
        return min(free, key=lambda seat: (seat.doubtful(self._settings.doubt_s), seat.load), default=None)

    def _none_there(self) -> ServiceError:
        what, mend = "there is no engine for it at the moment", "Try again in some seconds."
        return ServiceError("unavailable", what, mend=mend, retry_after_s=self._settings.retry_after_s)

    async def _begin(self) -> None:
        """Look at all engines once before the first request, and then all the time."""
        if self._first is None:
            self._first = asyncio.create_task(self._look_at_all())
        if not self._first.done():
            await asyncio.shield(self._first)

    async def _look_at_all(self) -> None:
        await asyncio.gather(*(seat.look(self._settings.silence_s) for seat in self.seats))
        self._looking = [asyncio.create_task(self._watch(seat)) for seat in self.seats]

    async def _watch(self, seat: Seat) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_s)
            with suppress(Exception):  # whatever it is, it is not the end of looking; the next request meets it
                await seat.look(self._settings.silence_s)


def _together(known: EngineStats | None, more: EngineStats, up: bool) -> EngineStats:
    """What two engines of one model do."""
    if not up:
        return known or EngineStats(more.model, "restarting", n_restarts=more.n_restarts)
    if known is None:
        return more
    return EngineStats(
        model=more.model,
        state="ready" if "ready" in (known.state, more.state) else more.state,
        running=known.running + more.running,
        waiting=known.waiting + more.waiting,
        free_blocks=known.free_blocks + more.free_blocks,
        n_blocks=known.n_blocks + more.n_blocks,
        tokens_per_s=known.tokens_per_s + more.tokens_per_s,
        n_tokens=known.n_tokens + more.n_tokens,
        n_restarts=known.n_restarts + more.n_restarts,
        step_s=max(known.step_s, more.step_s),
    )
