"""How a server grows and shrinks on a cluster: settings without Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bimo.core.settings import Settings

_ROOM = 4  # times what a replica is to have under way, it may have while others start


@dataclass(frozen=True)
class ScaleSettings(Settings):
    """How a server grows and shrinks on a cluster."""

    name: str = "bimo"
    """Of the application on the cluster."""
    engines: int = 1
    """Replicas of the engine at least; each holds the models."""
    max_engines: int = 4
    """Replicas of the engine at most."""
    engine_queue: float = 16.0
    """Requests that an engine has under way on average; with more, another one is started."""
    engine_cpus: float = 1.0
    """Cores that Ray keeps for each engine."""
    engine_gpus: float = 0.0
    """GPUs that Ray keeps for each engine."""
    gateways: int = 1
    """Replicas of the gateway, and of the guard, at least."""
    max_gateways: int = 4
    """Replicas of the gateway, and of the guard, at most."""
    gateway_queue: float = 128.0
    """Requests that a gateway has under way on average; with more, another one is started."""
    gateway_cpus: float = 0.5
    """Cores that Ray keeps for each gateway and each guard."""
    grow_s: float = 10.0
    """A queue that has been too long for so long starts a replica."""
    shrink_s: float = 300.0
    """A queue that has been short for so long ends one."""

    def problems(self) -> list[str]:
        found = [] if self.name.isidentifier() else [f"name must be a word, is {self.name!r}"]
        for name in ("engines", "gateways"):
            if not 1 <= getattr(self, name) <= getattr(self, f"max_{name}"):
                found.append(f"{name} must lie in 1 … max_{name}, is {getattr(self, name)}")
        for name in ("engine_queue", "gateway_queue", "grow_s", "shrink_s", "engine_cpus", "gateway_cpus"):
            if getattr(self, name) <= 0:
                found.append(f"{name} must be more than 0, is {getattr(self, name)}")
        if self.engine_gpus < 0:
            found.append(f"engine_gpus must be at least 0, is {self.engine_gpus}")
        return found

    @property
    def most_workers(self) -> int:
        """Cores that a Ray of our own offers; what replicas ask for is bookkeeping there."""
        return max(4, math.ceil(self.max_engines * self.engine_cpus + 2 * self.max_gateways * self.gateway_cpus))

    def scaled(self, least: int, most: int, queue: float) -> dict[str, Any]:
        """Options of a deployment whose replicas follow their queue."""
        follow = {
            "min_replicas": least, "max_replicas": most, "target_ongoing_requests": queue,
            "upscale_delay_s": self.grow_s, "downscale_delay_s": self.shrink_s,
        }  # fmt: skip
        return {"autoscaling_config": follow, "max_ongoing_requests": max(2, round(_ROOM * queue))}
