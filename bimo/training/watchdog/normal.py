"""What is normal: robust statistics of the last steps, and what stands out from them. Policy without tensors.

A value is compared with the median of the last few, and its distance with the median of earlier distances (the median
absolute deviation, Hampel 1974), so that neither the falling trend of a loss nor a former outlier moves the bar.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any

_SIGMA = 1.4826  # of a normal distribution, in median absolute deviations
_RENEWED = 8  # steps after which the bar is computed again; every step would cost a thousandth of a small model's


class Normal:
    """The recent values of one figure.

    Args:
        sigmas: Robust standard deviations above the trend at which a value stands out.
        least: Distance from the trend below which nothing stands out.
        window: Steps that are remembered.
        trend: Steps whose median is the trend.
        needed: Steps before which nothing stands out.
        depth: Distance below the highest trend at which values count as equal: what is small enough may vary.

    Attributes:
        bar: Distance above the trend from which a value stands out; infinite while too little is known.
        added: Values so far.
        lowest: The lowest trend so far.
        highest: The highest.
    """

    def __init__(
        self,
        *,
        sigmas: float,
        least: float,
        window: int = 128,
        trend: int = 9,
        needed: int = 16,
        depth: float = math.inf,
    ) -> None:
        self.sigmas, self.least, self.needed, self.depth = sigmas, least, needed, depth
        self.recent: deque[float] = deque(maxlen=trend)
        self.distances: deque[float] = deque(maxlen=window)
        self.bar = self.lowest = math.inf
        self.highest = -math.inf
        self.added = 0

    @property
    def level(self) -> float:
        """Where the figure stands now."""
        return statistics.median(self.recent) if self.recent else math.nan

    @property
    def at_floor(self) -> bool:
        """Whether the figure has become so small that its size means nothing."""
        return self.level <= self.highest - self.depth

    def stands_out(self, value: float, noise: float = 0.0) -> bool:
        """Whether a value lies above what was normal so far, and by more than chance makes of it in any case."""
        return math.isfinite(self.bar) and value - self.level > max(self.bar, noise)

    def drifted(self, share: float) -> bool:
        """Whether the trend has risen from its lowest by a share of it, and by more than single values do."""
        return math.isfinite(self.bar) and self.level - self.lowest > max(self.bar, share * abs(self.lowest))

    def add(self, value: float) -> None:
        """Remember a value of a sound step."""
        value = max(value, self.highest - self.depth)
        if self.recent:
            self.distances.append(value - self.level)
        self.recent.append(value)
        self.added += 1
        if len(self.recent) == self.recent.maxlen:
            self.lowest, self.highest = min(self.lowest, self.level), max(self.highest, self.level)
        if len(self.distances) >= self.needed and (self.added % _RENEWED == 0 or self.bar == math.inf):
            centre = statistics.median(self.distances)  # below zero while the figure falls
            scale = _SIGMA * statistics.median(abs(distance - centre) for distance in self.distances)
            # Heavy tails (a rare kind of document) raise the bar by what they were, however seldom they came.
            self.bar = max(self.least, self.sigmas * scale, 2.0 * max(self.distances))

    def forget(self) -> None:
        """Begin anew, after the data have changed their character."""
        self.recent.clear()
        self.distances.clear()
        self.bar = self.lowest = math.inf

    def state_dict(self) -> dict[str, Any]:
        """All that it knows."""
        plain = {"bar": self.bar, "added": self.added, "lowest": self.lowest, "highest": self.highest}
        return {"recent": list(self.recent), "distances": list(self.distances), **plain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Know what another one knew."""
        self.forget()
        self.recent.extend(state["recent"])
        self.distances.extend(state["distances"])
        self.bar, self.added = state["bar"], state["added"]
        self.lowest, self.highest = state["lowest"], state.get("highest", -math.inf)


def by_layer(names: Sequence[str], norms: Sequence[float]) -> dict[str, float]:
    """Norm of each part's gradient, from those of its parameters: 'layers.3.mlp', 'embed_tokens'."""
    squares: dict[str, float] = {}
    for name, norm in zip(names, norms, strict=True):
        words = name.split(".")
        layer = ".".join(words[:3]) if words[0] == "layers" else words[0]
        squares[layer] = squares.get(layer, 0.0) + norm * norm
    return {layer: math.sqrt(square) for layer, square in squares.items()}
