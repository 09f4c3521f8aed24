"""Language packs at work: from a folder to the engine, the router and the guard, and out again, while requests run.

A pack that goes gets no new request at once. Those that were sent to it, and wait in the queue or are under way, still
find it: its adapter leaves the engine when the longest wait is over and nobody uses it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from bimo.core.errors import UserError
from bimo.guard import made_chain
from bimo.serving.contract import GuardService
from bimo.serving.gateway import Gateway
from bimo.serving.guarding import LocalGuard
from bimo.serving.local import LocalEngine
from bimo.serving.models import Voice
from bimo.serving.packs import Pack, fingerprint, read_pack
from bimo.serving.routing import Router

_MARGIN_S = 5.0
_AGAIN_S = 0.5


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
