"""Objects that live in processes of their own, so that nothing of one disturbs the figures of another.

Threads of OpenMP spin while they wait, allocators keep memory, libraries change each other's settings: whoever is
measured gets a fresh process, with what it needs imported before memory is counted.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bimo.core.errors import UserError
from bimo.core.machine import peak_memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Apart:
    """An object in a process of its own.

    Args:
        make: Makes it there: a class or a function that can be pickled by its name. An attribute `NEEDS` names
            modules to import before memory is counted; a true attribute `OURS` keeps how bimo has threads wait.
        arguments: Of `make`.
        threads: For the libraries in it that ask OpenMP.
        options: Of `make`, by name.

    Raises:
        UserError: It could not be made.
    """

    def __init__(self, make: Callable[..., object], *arguments: Any, threads: int, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        work = (theirs, partial(make, *arguments, **options), make, threads)
        self._process = context.Process(target=_serve, args=work, daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call one of its methods there.

        Raises:
            UserError: It failed, or the process has ended.
        """
        try:
            self._pipe.send((method, arguments))
        except OSError as error:
            raise self._ended() from error
        return self._answer()

    def peak_growth(self) -> int:
        """Bytes by which its memory has grown since before it was made, at the peak."""
        return int(self.call(""))

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self) -> Any:
        try:
            ok, found = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if not ok:
            self.close()
            raise UserError(found)
        return found

    def _ended(self) -> UserError:
        self._process.join(2)
        code = self._process.exitcode
        signal = f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return UserError(f"its process has ended ({signal})")


def _serve(pipe: Connection, make: Callable[[], object], kind: Callable[..., object], threads: int) -> None:
    """What the process does: make the object, then answer calls until nobody asks."""
    os.environ.update(_QUIET, OMP_NUM_THREADS=str(threads))
    warnings.simplefilter("ignore")  # of libraries, to those who wrote the loop around them
    if not getattr(kind, "OURS", False):
        os.environ.pop("GOMP_SPINCOUNT", None)  # importing bimo sets it; others run as their users start them
    try:
        for name in getattr(kind, "NEEDS", ()):
            importlib.import_module(name)
        before = _start_counting()
        made = make()
        pipe.send((True, None))
        while True:
            method, given = pipe.recv()
            pipe.send((True, getattr(made, method)(*given) if method else _peak() - before))
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        return
    except Exception as error:  # who asked gets it, as words: its class may not exist there
        pipe.send((False, error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"))


def _start_counting() -> int:
    """Memory held now, in bytes; the peak counts from here where the system can do that."""
    try:
        _CLEAR.write_text("5", encoding="ascii")  # proc(5): resets the peak
    except OSError:
        return peak_memory()
    return _status("VmRSS:")


def _peak() -> int:
    return _status("VmHWM:") if _STATUS.exists() else peak_memory()


def _status(field: str) -> int:
    """A field of the process's status, in bytes."""
    words = _STATUS.read_text(encoding="ascii", errors="replace").split()
    return int(words[words.index(field) + 1]) * 1024
