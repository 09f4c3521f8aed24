"""What the machine allows: bytes read from memory per second, and floating-point operations of matrix products.

A limit is the best that was seen, of several ways to do it: what is compared with it must not look better than it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bimo.core.machine import Speed, measure_speed, set_threads

_READ = 2**29  # bytes: more than the caches of a large server hold


class Limits:
    """Measures this machine; lives in a process of its own.

    Args:
        device: cpu, cuda or another one of torch's.
        precision: Of the matrix products, fp32 or bf16.
        threads: Of the CPU; 0: one for each core.
    """

    OURS = True

    def __init__(self, device: str, precision: str, threads: int) -> None:
        self.device, self.precision = device, precision
        set_threads(threads)

    def measure(self, seconds: float) -> Speed:
        """Measure for about so many seconds."""
        import torch

        if not self.device.startswith("cpu"):
            return measure_speed(self.device, self.precision, seconds)
        block = torch.ones(_READ // 4)
        whole = block.view(torch.int32)
        reading = best_seconds([block.sum, block.norm, lambda: torch.dot(block, block), whole.amax], seconds / 2)
        dtype, n = torch.bfloat16 if self.precision == "bf16" else torch.float32, 2048
        a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
        return Speed(2 * n**3 / best_seconds([lambda: a @ b], seconds / 2), _READ / reading)


def best_seconds(ways: Sequence[Callable[[], object]], seconds: float) -> float:
    """The shortest time of any of some ways to do a thing, in turn, for about so many seconds, twice at least."""
    best, end, rounds = float("inf"), time.perf_counter() + seconds, 0
    while rounds < 2 or time.perf_counter() < end:
        for way in ways:
            start = time.perf_counter()
            way()
            best = min(best, time.perf_counter() - start)
        rounds += 1
    return best
