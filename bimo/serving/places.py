"""Where the engine and the guard of a server are: settings without tensors."""

from __future__ import annotations

from dataclasses import dataclass

from bimo.core.settings import Settings

_MOST = 64


@dataclass(frozen=True)
class PlaceSettings(Settings):
    """Where the engine and the guard of a server are; by default in its own process."""

    engine_url: str = ""
    """Engines that run elsewhere, as `bimo engine serve` starts them: http://HOST:PORT, several with commas. Their key
    is in the environment, BIMO_ENGINE_KEY."""
    engine_processes: int = 0
    """Run the engine as so many processes, which are started again when they die; each holds the models."""
    guard_url: str = ""
    """A guard that runs elsewhere, as `bimo guard serve` starts it; its key is in the environment, BIMO_GUARD_KEY."""
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
