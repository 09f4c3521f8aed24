"""A thread that notices when a step does not end, and says where it hangs."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable


class StallWatch:
    """Calls `on_stall(seconds, stack)` once when a step takes longer than allowed.

    Args:
        on_stall: Is told how long the step has taken, and the lines in which the training thread stands.
        clock: Gives the time in seconds.
    """

    def __init__(self, on_stall: Callable[[float, str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.on_stall, self.clock = on_stall, clock
        self._since, self._allowed_s = 0.0, 0.0
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall watch", daemon=True)
        self._thread.start()

    def step_begins(self, allowed_s: float) -> None:
        """From now on a step runs, which may take that long."""
        self._allowed_s, self._since = allowed_s, self.clock()

    def step_ends(self) -> None:
        """No step is running."""
        self._since = 0.0

    def close(self) -> None:
        """End the thread."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._allowed_s / 4) or 1.0):
            since = self._since
            if since and self.clock() - since > self._allowed_s:
                self._since = 0.0  # told once
                self.on_stall(self.clock() - since, self._stack())

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._watched)
        lines = traceback.extract_stack(frame)[-6:] if frame is not None else []
        return " < ".join(f"{line.filename.rpartition('/')[2]}:{line.lineno} {line.name}" for line in reversed(lines))
