"""Where the parts of a server are: in its process, its children, or elsewhere; to the gateway they are all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Self

from bimo.core.errors import UserError
from bimo.serving.balancing import BalancedEngines
from bimo.serving.child import ChildPlan
from bimo.serving.contract import EngineService, GuardService
from bimo.serving.logs import log
from bimo.serving.places import PlaceSettings, Wanted
from bimo.serving.remote import RemoteGuard, addresses, engine_at, guard_at
from bimo.serving.supervising import SupervisedEngine, SupervisedGuard
from bimo.serving.wire import RefusedError, ServiceError, WireSettings

ENGINE_KEY, GUARD_KEY = "BIMO_ENGINE_KEY", "BIMO_GUARD_KEY"


class Services:
    """The parts of a server, as long as it runs: `async with` starts those that are processes, and ends them.

    Args:
        place: Where they are.
        wanted: What they are to be.
        wire: Times and bounds of calls.
        check: Told the names of the models of other processes when they are known; raises what is wrong with them.

    Attributes:
        engine: The models.
        guard: Looks at texts; None: the gateway has its own.
        names: Of the models; those of engines elsewhere are known when they have been started.
    """

    def __init__(
        self,
        place: PlaceSettings,
        wanted: Wanted,
        wire: WireSettings | None = None,
        check: Callable[[Sequence[str]], None] = lambda names: None,
    ) -> None:
        self._check = check
        self._wire = wire or WireSettings()
        self._children: list[SupervisedEngine] = []
        self.names: list[str] = []
        self.guard: GuardService | None = self._made_guard(place, wanted)
        self.engine: EngineService = self._made_engine(place, wanted)

    async def __aenter__(self) -> Self:
        """Start what has to be started.

        Raises:
            UserError: A part cannot be what it is to be, or refuses this gateway.
        """
        try:
            await asyncio.gather(*(child.start() for child in self._children))
            if isinstance(self.guard, SupervisedGuard):
                await self.guard.start()
            if isinstance(self.engine, BalancedEngines):
                await self.engine.start()
                await self._learn_names()
            if isinstance(self.guard, RemoteGuard):
                await _look_at(self.guard)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it."""
        if isinstance(self.engine, BalancedEngines):  # else the gateway closes what is in its process
            await self.engine.close()
        if isinstance(self.guard, (RemoteGuard, SupervisedGuard)):
            await self.guard.close()

    def _made_engine(self, place: PlaceSettings, wanted: Wanted) -> EngineService:
        if place.engine_url:
            if wanted.models:
                mend = "Name them where the engine is started: bimo engine serve MODEL."
                raise UserError("models are named, but the engine runs elsewhere", where="--engine_url", mend=mend)
            found = addresses(place.engine_url, ENGINE_KEY, place.ca)
            return BalancedEngines({a.url: engine_at(a, self._wire) for a in found}, self._wire)
        if place.engine_processes:
            plan = ChildPlan(
                part="engine", models=tuple(wanted.models), names=tuple(wanted.names), adapters=tuple(wanted.adapters),
                engine=dict(wanted.engine), modules=tuple(wanted.modules), wire=self._wire.to_dict(),
                drain_s=wanted.drain_s,
            )  # fmt: skip
            self._children = [SupervisedEngine(plan) for _ in range(place.engine_processes)]
            return BalancedEngines({f"child {n}": child for n, child in enumerate(self._children, 1)}, self._wire)
        from bimo.engine import EngineSettings
        from bimo.serving.local import LocalEngine
        from bimo.serving.models import open_models

        settings = EngineSettings.from_dict(dict(wanted.engine))
        models = open_models(wanted.models, wanted.names, wanted.adapters, settings)
        self.names = [name for model in models for name in model.names]
        return LocalEngine(models)

    def _made_guard(self, place: PlaceSettings, wanted: Wanted) -> GuardService | None:
        if place.guard_url:
            found = addresses(place.guard_url, GUARD_KEY, place.ca)
            if len(found) > 1:
                raise UserError("there is one guard", where="--guard_url", mend="Give one address.")
            return guard_at(found[0], self._wire)
        if place.guard_process:
            plan = ChildPlan(
                part="guard", rules=tuple(wanted.rules), modules=tuple(wanted.modules), wire=self._wire.to_dict()
            )
            return SupervisedGuard(plan)
        return None

    async def _learn_names(self) -> None:
        try:
            self.names = [card.name for card in await self.engine.models()]
        except ServiceError as error:  # it may come later; clients get 503 until then
            log.warning("no engine answers yet", extra={"error": error.what})
        else:
            self._check(self.names)


async def _look_at(guard: RemoteGuard) -> None:
    try:
        await guard.rules()
    except RefusedError as error:
        mend = "Give its key in the environment, and run the same release of bimo on both sides."
        raise UserError(error.what, where="--guard_url", mend=mend) from error
    except ServiceError as error:
        log.warning("the guard does not answer yet", extra={"error": error.what})
