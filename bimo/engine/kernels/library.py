"""Finding the compiled kernels, and choosing among the instruction sets that this machine has."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

from bimo.engine.kernels.layout import SIGNATURES


class NoKernelsError(Exception):
    """The kernels cannot be used here; the text says why."""


class Kernels:
    """The kernels of one instruction set, and the threads that run them.

    Args:
        library: The loaded library.
        table: Which of its instruction sets, counted from the fastest.
        threads: How many threads a step uses; 0: one for each core that this process may use.

    Attributes:
        name: Of the instruction set.
        width: Lanes of its vectors: rows in a panel of packed weights.
        threads: How many there are.
        table, machine: Handles of the library.
        call: The library's functions.
    """

    def __init__(self, library: Any, table: int, threads: int) -> None:
        self.call = library
        self.table = library.bimo_kernels(table)
        self.name: str = library.bimo_kernels_name(self.table).decode()
        self.width: int = library.bimo_kernels_width(self.table)
        self.threads = threads or len(
            os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0] * (os.cpu_count() or 1)
        )
        self._process, self._machine = 0, 0
        self._starting = threading.Lock()

    def _start(self) -> None:
        machine = self.call.bimo_machine_new(self.threads)
        if not machine:
            raise NoKernelsError(f"no memory or no threads for {self.threads} threads")
        # Not when Python ends: a thread that still computes would be waited for.
        self._ending = weakref.finalize(self, self.call.bimo_machine_free, machine)
        self._ending.atexit = False
        self._machine, self._process = machine, os.getpid()  # the process last: others look at it without the lock

    @property
    def machine(self) -> int:
        """The threads' handle; they start when it is first asked for. A forked process has none of its parent's threads
        and gets its own."""
        if self._process != os.getpid():
            with self._starting:
                if self._process != os.getpid():
                    if self._process:
                        self._ending.detach()
                    self._start()
        return self._machine


@lru_cache(maxsize=1)
def _library() -> Any:
    found = sorted(Path(__file__).parent.glob("_native*.so")) + sorted(Path(__file__).parent.glob("_native*.pyd"))
    if not found:
        raise NoKernelsError(
            "the native kernels were not compiled when bimo was installed; with a C++ compiler, install it again"
        )
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        raise NoKernelsError(f"{found[0].name} cannot be loaded ({error})") from error
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise NoKernelsError(f"{found[0].name} is of another version; install bimo again")
        function.restype, function.argtypes = result, arguments
    return library


def instruction_sets() -> list[str]:
    """What this machine can run, the fastest first; empty without compiled kernels."""
    try:
        library = _library()
    except NoKernelsError:
        return []
    return [library.bimo_kernels_name(library.bimo_kernels(i)).decode() for i in range(library.bimo_kernels_count())]


@lru_cache(maxsize=8)
def load_kernels(threads: int = 0, instruction_set: str = "") -> Kernels:
    """The kernels for this machine.

    Args:
        threads: As for `Kernels`.
        instruction_set: One of `instruction_sets()`; '': the fastest, or what BIMO_INSTRUCTION_SET names.

    Raises:
        NoKernelsError: They were not compiled, or do not fit; it says what to do.
    """
    library, wanted = _library(), instruction_set or os.environ.get("BIMO_INSTRUCTION_SET", "")
    names = instruction_sets()
    if wanted and wanted not in names:
        raise NoKernelsError(f"no instruction set {wanted!r}; this machine has {', '.join(names)}")
    return Kernels(library, names.index(wanted) if wanted else 0, threads)
