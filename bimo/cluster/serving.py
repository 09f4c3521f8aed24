"""A server on Ray Serve: gateway, guard and engine as deployments, each with replicas that follow its queue.

The parts are the same as those of one machine, and speak the same contract; only what carries it is another. A replica
that dies is replaced by Ray, and a request that had not begun to answer there is asked anew, as between engines of
our own. Limits of keys, the queue and the figures are those of one gateway's replica.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from bimo.cluster.scaling import ScaleSettings
from bimo.core.errors import UserError, require
from bimo.serving.balancing import BalancedEngines
from bimo.serving.contract import ServiceError
from bimo.serving.keys import KeyRing
from bimo.serving.messages import Message
from bimo.serving.offering import Offering, failed_of
from bimo.serving.parts import engine_part, guard_part
from bimo.serving.places import Wanted
from bimo.serving.remote import RemoteEngine, RemoteGuard
from bimo.serving.settings import ServeSettings
from bimo.serving.wire import Nothing, WireSettings, message_of_values

_ENGINE, _GUARD, _GATEWAY = "engine", "guard", "gateway"


class RayPart:
    """A part of the server as Ray runs it: gives the messages of an answer one by one, as plain values.

    Args:
        part: engine or guard.
        wanted: What it is to be.
    """

    def __init__(self, part: str, wanted: Wanted) -> None:
        open_to_all = KeyRing()  # whoever is on the cluster may call it, as with everything on Ray
        if part == _GUARD:
            self._app, self._close = guard_part(wanted.rules, wanted.modules, open_to_all, WireSettings())
        else:
            self._app, self._close = engine_part(
                wanted.models, wanted.names, wanted.adapters, wanted.engine, wanted.modules, open_to_all, WireSettings()
            )

    async def answer(self, path: str, values: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """See `Offering.answer`."""
        async with aclosing(_answer(self._app, path, values)) as messages:
            async for message in messages:
                yield message.to_dict()


async def _answer(app: Offering, path: str, values: dict[str, Any]) -> AsyncGenerator[Message, None]:
    try:
        async with aclosing(app.answer(path, values)) as messages:
            async for message in messages:
                yield message
    except Exception as error:  # the caller gets a sentence, the log its kind
        yield failed_of(error)


class RayWire:
    """Calls a deployment.

    Args:
        handle: Of Ray.
        name: What is there, for sentences.
        settings: When clients come back.
    """

    def __init__(self, handle: Any, name: str, settings: WireSettings) -> None:
        self._handle = handle.options(method_name="answer", stream=True)
        self._name, self._settings = name, settings
        self._gone = require("ray.exceptions", "ray").RayError
        self._full = require("ray.serve.exceptions", "ray").BackPressureError

    async def stream(self, path: str, call: Message) -> AsyncGenerator[Message, None]:
        """See `Wire`."""
        answers = self._handle.remote(path, call.to_dict())
        done = False
        try:
            async for values in answers:
                yield message_of_values(values)
            done = True
        except self._full:
            wait = self._settings.retry_after_s
            raise ServiceError("busy", f"the {self._name} is busy", retry_after_s=wait) from None
        except self._gone as error:
            done = True
            raise self.lost(type(error).__name__) from error
        except UserError as error:
            raise ServiceError("internal", error.what, mend=error.mend) from error
        finally:
            if not done:
                answers.cancel()

    def lost(self, why: str) -> ServiceError:
        """See `Wire`."""
        what, wait = f"the {self._name} does not answer ({why})", self._settings.retry_after_s
        return ServiceError("unavailable", what, mend="Try again in some seconds.", retry_after_s=wait)

    async def close(self) -> None:
        """See `Wire`: Ray ends its replicas itself."""


def application(wanted: Wanted, settings: ServeSettings, keys: KeyRing, scale: ScaleSettings) -> Any:
    """The three parts as an application for `ray.serve.run`.

    Args:
        wanted: What the parts are to be; models lie where every machine of the cluster finds them.
        settings: Every bound of a gateway.
        keys: Who may use the server.
        scale: How many replicas there are.
    """
    serve = require("ray.serve", "ray")

    def build() -> Any:
        """In a gateway's replica: its application."""
        from ray.serve import get_deployment_handle

        from bimo.serving.app import make_app
        from bimo.serving.pack_host import router_of
        from bimo.serving.pages import add_pages

        wire = replace(WireSettings(), poll_s=1.0)
        parts = {
            name: RayWire(get_deployment_handle(name, app_name=scale.name), name, wire) for name in (_ENGINE, _GUARD)
        }
        engine = BalancedEngines({_ENGINE: RemoteEngine(parts[_ENGINE])}, wire)
        guard = RemoteGuard(parts[_GUARD])
        return make_app(engine, settings, keys=keys, guard=guard, router=router_of(settings), pages=add_pages)[0]

    gateways = scale.scaled(scale.gateways, scale.max_gateways, scale.gateway_queue)
    engines = scale.scaled(scale.engines, scale.max_engines, scale.engine_queue)
    light = {"num_cpus": scale.gateway_cpus}
    heavy = {"num_cpus": scale.engine_cpus, "num_gpus": scale.engine_gpus}
    ends = {"graceful_shutdown_timeout_s": settings.drain_s}
    engine = serve.deployment(RayPart, name=_ENGINE, ray_actor_options=heavy, **engines, **ends)
    guard = serve.deployment(RayPart, name=_GUARD, ray_actor_options=light, **gateways, **ends)
    front = serve.deployment(serve.ingress(build)(), name=_GATEWAY, ray_actor_options=light, **gateways, **ends)
    return front.bind(engine.bind(_ENGINE, wanted), guard.bind(_GUARD, wanted))


def start(
    wanted: Wanted, settings: ServeSettings, keys: KeyRing, scale: ScaleSettings | None = None
) -> tuple[str, list[str]]:
    """Run a server on the cluster that this process is connected to; returns its address and the names of its models.

    Raises:
        UserError: A part cannot be what it is to be, or the cluster has no room.
    """
    serve, scale = require("ray.serve", "ray"), scale or ScaleSettings()
    serve.start(http_options={"host": settings.host, "port": settings.port}, proxy_location="EveryNode")
    try:
        serve.run(application(wanted, settings, keys, scale), name=scale.name, route_prefix="/")
    except (RuntimeError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the server does not start on the cluster ({reason})", mend="See what its replicas say: serve status."
        ) from error
    engine = serve.get_deployment_handle(_ENGINE, app_name=scale.name).options(method_name="answer", stream=True)
    names = [card["name"] for found in engine.remote("/engine/models", Nothing().to_dict()) for card in found["cards"]]
    return f"http://{settings.host}:{settings.port}", names


def stop(scale: ScaleSettings | None = None) -> None:
    """End the server, and nothing else that the cluster serves; what is under way comes to its end."""
    serve = require("ray.serve", "ray")
    with suppress(Exception):  # a cluster that has gone has no server
        serve.delete((scale or ScaleSettings()).name)
        if not serve.status().applications:
            serve.shutdown()


def wait() -> None:
    """Until a signal ends this process."""
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
