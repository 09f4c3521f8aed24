"""Commands of bimo that run beside a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any


class Command:
    """A command of bimo that runs until it is told to end.

    Attributes:
        lines: Of its log.
    """

    def __init__(self, *arguments: str, seconds: float = 90, **environment: str) -> None:
        own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bimo", *arguments], env=own, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._seconds, self._url = seconds, ""

    @property
    def url(self) -> str:
        """Where it says that it is, once it is ready."""
        if self._url:
            return self._url
        assert self.process.stdout is not None, "it was asked for"
        timer = threading.Timer(self._seconds, self.process.kill)
        timer.start()
        first = self.process.stdout.readline()
        timer.cancel()
        assert " at " in first, f"it starts: {self.lines}"
        self._url = first.partition(" at ")[2].split()[0]
        return self._url

    def _read(self) -> None:
        assert self.process.stderr is not None, "it was asked for"
        for found in self.process.stderr:
            self.lines.append(found)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of its log about something."""
        found = [json.loads(line) for line in tuple(self.lines) if line.startswith("{")]
        return [line for line in found if line["event"] == name]

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait(10)
