"""Ctrl-C and SIGTERM: the run ends with its state saved, at the next moment at which nothing is half done.

Between updates that moment is now. While a gradient is computed or a model is evaluated, the work is given up at once:
the weights have not changed, the batch is read again on resume, and nobody waits for a long step to end.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Abandoned(BaseException):
    """Ends a computation whose result is not needed any more; no `except Exception` of a user stops it."""


class StopSignals:
    """Listens for the signals that ask a run to end.

    Args:
        patient: Whether no work may be given up in the middle, because other processes take part in it.

    Attributes:
        received: Name of the signal, or "".
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.received, self.patient = "", patient
        self._may_abandon = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over; a second one ends the program at once, as without us."""
        self.received = ""
        try:
            before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        except ValueError:  # not the main thread: its owner handles signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def abandoning(self) -> Iterator[None]:
        """Work that a signal may end in the middle, by raising `Abandoned`."""
        if self.received and not self.patient:
            raise Abandoned
        self._may_abandon = not self.patient
        try:
            yield
        finally:
            self._may_abandon = False

    def hear(self, word: str) -> None:
        """Count a signal that another process has received as received here."""
        if word in {number.name for number in _SIGNALS}:
            self.received = word

    def _receive(self, number: int, _frame: object) -> None:
        self.received = signal.Signals(number).name
        for again in _SIGNALS:
            signal.signal(again, signal.default_int_handler)
        if self._may_abandon:
            self._may_abandon = False
            raise Abandoned
