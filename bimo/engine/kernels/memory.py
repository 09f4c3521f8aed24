"""Memory of the native kernels: taken from the system page by page, in large pages where it can, and given back."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_ALIGNMENT = 64  # bytes of a line of the cache


def lazy_memory(n_bytes: int) -> Any:
    """Bytes, uint8, that the system gives when they are first written, in large pages where it can.

    Streaming through a hundred megabytes per token in pages of 4 KB costs some tenth of the time in page walks.
    """
    own = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, max(1, n_bytes), **own)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)


def give_back() -> None:
    """Have the C library give back what it holds free: some ten megabytes after a large header was read."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if hasattr(mmap, "MAP_PRIVATE") else None
    if trim is not None:  # glibc alone has it
        trim(0)


class Arena:
    """One piece of memory for many matrices.

    Args:
        sizes: Bytes of each of them.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        self._bytes = lazy_memory(sum(_aligned(size) for size in sizes))
        self._used = 0

    def take(self, n_bytes: int) -> int:
        """Address of the next `n_bytes`; they live as long as the arena."""
        start = self._used
        self._used += _aligned(n_bytes)
        assert self._used <= len(self._bytes), "more was taken than was asked for at first"
        return int(self._bytes.ctypes.data) + start


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class MappedFiles:
    """Files that this process maps, whose pages can be given back: whoever reads them again gets them from disk."""

    def __init__(self) -> None:
        self._ranges = _mapped_files() if hasattr(mmap, "MADV_DONTNEED") else []
        self._advise: Any = ctypes.CDLL(None).madvise if self._ranges else None

    def let_go(self, address: int, n_bytes: int) -> None:
        """Tell the system that some bytes are not needed for now. What is no mapped file stays as it is.

        What was written to a private mapping would be lost: packed weights refuse to be changed in place.
        """
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (address + n_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end and any(low <= start and end <= high for low, high in self._ranges):
            self._advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges of this process that map files; none where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    fields = (line.split(maxsplit=5) for line in lines)
    return [tuple(int(end, 16) for end in f[0].split("-")) for f in fields if f[4] != "0"]  # type: ignore[misc]
