"""An engine and a guard, opened as parts that stand alone: the application, and what is done at its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from bimo.core.errors import UserError
from bimo.core.registry import import_modules
from bimo.serving.keys import KeyRing
from bimo.serving.offering import Offering
from bimo.serving.wire import WireSettings

Part = tuple[Offering, Callable[[], Awaitable[None]] | None]


def engine_part(
    models: Sequence[str],
    names: Sequence[str],
    adapters: Sequence[str],
    engine: Mapping[str, Any],
    modules: Sequence[str],
    keys: KeyRing,
    wire: WireSettings,
) -> Part:
    """Models as a part; see `open_models` for the arguments.

    Raises:
        UserError: A model cannot be opened.
    """
    if not models:
        raise UserError("there is no model to serve", mend="Name one: bimo engine serve runs/demo.")
    from bimo.engine import EngineSettings
    from bimo.serving.engine_app import engine_app
    from bimo.serving.local import LocalEngine
    from bimo.serving.models import open_models

    import_modules(list(modules))
    service = LocalEngine(open_models(models, names, adapters, EngineSettings.from_dict(dict(engine))))
    return engine_app(service, keys, wire), service.close


def guard_part(rules: Sequence[str], modules: Sequence[str], keys: KeyRing, wire: WireSettings) -> Part:
    """A chain of rules as a part.

    Raises:
        UserError: A rule is unknown.
    """
    from bimo.serving.guard_app import guard_app
    from bimo.serving.guarding import local_guard

    import_modules(list(modules))
    return guard_app(local_guard(rules), keys, wire), None
