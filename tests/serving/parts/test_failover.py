"""Engines that die: what had not begun is answered by another one, what had begun ends with a sentence."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving.commands import Command
from serving.parts.conftest import QUICK, Loop, Start, all_events, call, kill, until

from bimo.serving.balancing import BalancedEngines
from bimo.serving.contract import (
    EmbedCall,
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
from bimo.serving.remote import Address, engine_at
from bimo.serving.wire import WireSettings

ENGINE = ("engine", "serve", "--port", "0", "--engine.threads", "1", "--wire.beat_s", "0.2")


@pytest.fixture
def two(start: Start, model_folder: Path) -> tuple[Command, Command]:
    """Two engines, each a process that anybody on this machine can call."""
    return start(*ENGINE, str(model_folder)), start(*ENGINE, str(model_folder))


def _balanced(commands: tuple[Command, ...], **settings: Any) -> BalancedEngines:
    own = replace(QUICK, **settings)
    return BalancedEngines({c.url: engine_at(Address(c.url), own) for c in commands}, own)


async def _frozen_then_killed(two: tuple[Command, Command], moves: int) -> list[list[Event]]:
    """Twenty requests, half of them to an engine that takes them, does nothing, and is killed."""
    engines = _balanced(two, moves=moves)
    await engines.start()
    two[0].process.send_signal(signal.SIGSTOP)
    requests = [asyncio.create_task(all_events(engines.generate(call()))) for _ in range(20)]
    await asyncio.sleep(0.1)
    assert engines.seats[0].under_way == 10, "half of them wait there"
    kill(two[0].process.pid)
    found = await asyncio.gather(*requests)
    await engines.close()
    return found


def test_no_request_that_had_not_begun_is_lost_with_its_engine(loop: Loop, two: tuple[Command, Command]) -> None:
    answers = loop.run(_frozen_then_killed(two, moves=2))
    assert all(isinstance(events[-1], Finished) for events in answers)
    assert all([type(event) for event in events].count(Started) == 1 for events in answers)
    texts = {"".join(e.text for e in events if isinstance(e, Piece)) for events in answers}
    assert len(texts) == 1, "greedy answers are the same, wherever they come from"


def test_control_without_moving_they_are_lost(loop: Loop, two: tuple[Command, Command]) -> None:
    answers = loop.run(_frozen_then_killed(two, moves=0))
    assert sum(isinstance(events[-1], Failed) for events in answers) == 10


def test_an_engine_that_hangs_is_left_and_its_requests_are_moved(loop: Loop, two: tuple[Command, Command]) -> None:
    async def work() -> None:
        engines = _balanced(two, silence_s=3.0, doubt_s=0.5)
        await engines.start()
        two[0].process.send_signal(signal.SIGSTOP)
        answers = await asyncio.gather(*(all_events(engines.generate(call())) for _ in range(6)))
        assert all(isinstance(events[-1], Finished) for events in answers)
        assert not engines.seats[0].up
        two[0].process.send_signal(signal.SIGCONT)
        await until(lambda: engines.seats[0].up, 10)  # and it is asked again when it is back
        await engines.close()

    loop.run(work())


def test_under_load_only_what_had_begun_on_the_killed_engine_fails(loop: Loop, two: tuple[Command, Command]) -> None:
    async def work() -> tuple[list[list[Event]], int]:
        engines = _balanced(two)
        await engines.start()
        long = [call(f"the cat {n}", max_tokens=200, min_tokens=200) for n in range(60)]
        requests = [asyncio.create_task(all_events(engines.generate(own))) for own in long]
        await until(lambda: _running(engines, 0))
        on_it = engines.seats[0].under_way
        kill(two[0].process.pid)
        found = await asyncio.gather(*requests)
        later = await asyncio.gather(*(all_events(engines.generate(call())) for _ in range(10)))
        assert all(isinstance(events[-1], Finished) for events in later)
        await engines.close()
        return found, on_it

    answers, on_it = loop.run(work())
    failed = [events for events in answers if isinstance(events[-1], Failed)]
    assert all(any(isinstance(event, Piece) for event in events) for events in failed), "it had begun"
    assert all(events[-1].kind == "unavailable" for events in failed if isinstance(events[-1], Failed))
    assert len(failed) <= on_it
    assert all(events[-1].completion_tokens == 200 for events in answers if isinstance(events[-1], Finished))


async def _running(engines: BalancedEngines, number: int) -> bool:
    return sum(e.running for e in (await engines.seats[number].engine.stats()).engines) > 0


def test_without_any_engine_it_is_unavailable_and_not_unknown(loop: Loop, two: tuple[Command, Command]) -> None:
    async def work() -> None:
        engines = _balanced(two)
        await engines.start()
        for command in two:
            kill(command.process.pid)
        (failed,) = await all_events(engines.generate(call()))
        assert isinstance(failed, Failed)
        assert (failed.kind, failed.retry_after_s > 0) == ("unavailable", True)
        with pytest.raises(ServiceError, match=r"no engine|does not answer"):
            await engines.embed(EmbedCall("e", "tiny", ("the cat",)))
        assert [card.name for card in await engines.models()] == ["tiny"]
        assert not (await engines.stats()).ready
        await engines.close()

    loop.run(work())


class _Killed:
    """A service that dies of a request, as if a kernel had met what it cannot bear; policy needs no process.

    Args:
        shows: Pieces before it dies.
        kind: What is said.
    """

    def __init__(self, shows: int = 0, kind: str = "unavailable") -> None:
        self.shows, self.kind, self.asked, self.closed = shows, kind, 0, 0

    async def models(self) -> tuple[ModelCard, ...]:
        return (ModelCard("tiny"),)

    async def stats(self) -> ServiceStats:
        return ServiceStats((EngineStats("tiny", "ready"),))

    async def generate(self, _: GenerateCall) -> AsyncGenerator[Event, None]:
        self.asked += 1
        try:
            yield Started(3)
            for _number in range(self.shows):
                yield Piece(0, "a")
            yield Failed(self.kind, "it died")  # type: ignore[arg-type]  # one of the kinds
        finally:
            self.closed += 1

    async def close(self, drain_seconds: float = 0.0) -> None:
        self.closed += 1


def _asked(loop: Loop, services: list[_Killed], **settings: Any) -> list[Event]:
    async def work() -> list[Event]:
        own = WireSettings(**settings)
        engines = BalancedEngines({str(n): s for n, s in enumerate(services)}, own)  # type: ignore[misc]  # enough of it
        found = await all_events(engines.generate(call()))
        await engines.close()
        return found

    return loop.run(work())


def test_a_request_that_kills_engines_does_not_kill_all_of_them(loop: Loop) -> None:
    services = [_Killed() for _ in range(6)]
    events = _asked(loop, services, moves=2)
    assert isinstance(events[-1], Failed)
    assert sum(service.asked for service in services) == 3
    assert all(service.closed for service in services)


def test_what_has_begun_does_not_begin_again(loop: Loop) -> None:
    services = [_Killed(shows=1) for _ in range(3)]
    events = _asked(loop, services)
    assert [type(event) for event in events] == [Started, Piece, Failed]
    assert sum(service.asked for service in services) == 1


def test_what_is_the_callers_fault_does_not_move(loop: Loop) -> None:
    services = [_Killed(kind="invalid") for _ in range(3)]
    events = _asked(loop, services)
    assert isinstance(events[-1], Failed)
    assert sum(service.asked for service in services) == 1


def test_a_busy_engine_is_passed_by_and_stays(loop: Loop) -> None:
    services = [_Killed(kind="busy") for _ in range(3)]
    events = _asked(loop, services, moves=5)
    assert isinstance(events[-1], Failed)
    assert events[-1].kind == "busy"
    assert [service.asked for service in services] == [1, 1, 1]


def test_the_one_with_the_least_to_do_is_asked(loop: Loop, two: tuple[Command, Command]) -> None:
    async def work() -> None:
        engines = _balanced(two)
        await engines.start()
        engines.seats[0].under_way = 5
        await asyncio.gather(*(all_events(engines.generate(call())) for _ in range(4)))
        counts = [(await seat.engine.stats()).engines[0].n_tokens for seat in engines.seats]
        assert counts == [0, 32]
        engines.seats[0].under_way = 0
        await engines.close()

    loop.run(work())
