"""Where the engine and the guard of a server are, and what they are to be: settings without tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bimo.core.settings import Settings

_MOST = 64


@dataclass(frozen=True)
class PlaceSettings(Settings):
    """Where the engine and the guard of a server are; by default in its own process."""

    engine_url: str = ""
    """Engines that run elsewhere, as `bimo engine serve` starts them: http://HOST:PORT, several with commas. Their key
    is in the environment, BIMO_ENGINE_KEY. Short: --engine URL."""
    engine_processes: int = 0
    """Run the engine as so many processes, which are started again when they die; each holds the models."""
    guard_url: str = ""
    """A guard that runs elsewhere, as `bimo guard serve` starts it; its key is in the environment, BIMO_GUARD_KEY.
    Short: --guard URL."""
    guard_process: bool = False
    """Run the guard as a process, which is started again when it dies."""
    ca: str = ""
    """A file of certificates (PEM) by which https addresses are trusted. Default: those of this machine."""

    def problems(self) -> list[str]:
        found = []
        if not 0 <= self.engine_processes <= _MOST:
            found.append(f"engine_processes must lie in 0 … {_MOST}, is {self.engine_processes}")
        if self.engine_url and self.engine_processes:
            found.append("engine_processes must be 0 when engine_url says where the engines are")
        if self.guard_url and self.guard_process:
            found.append("guard_process must not be set when guard_url says where the guard is")
        return found


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the parts of a server are to be.

    Attributes:
        models: What `bimo.load` takes.
        names: As requests name them.
        adapters: NAME=FOLDER, or MODEL/NAME=FOLDER.
        engine: Settings of each engine.
        rules: Of the guard.
        modules: Files or modules that register parts.
        drain_s: How long the parts may end what is under way.
    """

    models: Sequence[str]
    names: Sequence[str]
    adapters: Sequence[str]
    engine: Mapping[str, Any]
    rules: Sequence[str]
    modules: Sequence[str]
    drain_s: float
