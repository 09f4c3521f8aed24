"""Every source of chance that a training step can draw from: Python, NumPy, torch on the CPU and on each GPU.

A step that is tried again, a run that is resumed, and an evaluation in between all rest on this one list.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_BETWEEN_RANKS = 1_000_003  # seeds of two runs that differ by little shall not meet


def random_state() -> dict[str, Any]:
    """The state of every generator, as plain values and tensors."""
    version, words, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [name, torch.from_numpy(np.array(keys, np.int64)), place, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Let every generator go on from a state; a GPU that is not there is passed over."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), place, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    for index, words in enumerate(state.get("cuda", [])):
        if index < torch.cuda.device_count():
            torch.cuda.set_rng_state(words.cpu(), index)


def seed_everything(seed: int, rank: int = 0) -> None:
    """Start every generator from a seed.

    torch's, which dropout draws from, differs by rank; those of Python and NumPy, by which callbacks decide, do not.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed + rank * _BETWEEN_RANKS)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whatever is drawn inside, the generators stand afterwards where they stood before."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)
