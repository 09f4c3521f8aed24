"""Runs of training, as a page shows them: curves, samples and what happened. Names cannot lead out of the folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bimo.core.json_files import finite
from bimo.serving.errors import ApiError

_NAME = re.compile(r"[\w][\w.@+-]{0,127}")
_MOST_LINES = 2000
_MOST_RUNS = 500
_TAIL_BYTES = 16 * 2**20  # of a file, from its end


class Runs:
    """The runs in a folder.

    Args:
        folder: It; each run is a folder with a metrics.jsonl in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def listed(self) -> list[dict[str, Any]]:
        """Name, last step and losses of each, the newest first."""
        places = [path for path in self._folder.iterdir() if self._is_run(path)] if self._folder.is_dir() else []
        places.sort(key=lambda path: -(path / "metrics.jsonl").stat().st_mtime)
        return [self._summary(path) for path in places[:_MOST_RUNS]]

    def one(self, name: str) -> dict[str, Any]:
        """The curves, thinned, and the samples of a run.

        Raises:
            ApiError: There is none of that name.
        """
        path = self._path(name)
        lines = list(_lines(path / "metrics.jsonl"))
        every = -(-len(lines) // _MOST_LINES) or 1
        kept = [line for number, line in enumerate(lines) if not (len(lines) - 1 - number) % every]
        return {"name": name, "metrics": kept, "samples": list(_lines(path / "samples.jsonl"))[-_MOST_LINES:]}

    def events(self, name: str) -> list[dict[str, Any]]:
        """What happened in a run.

        Raises:
            ApiError: There is none of that name.
        """
        return list(_lines(self._path(name) / "events.jsonl"))[-_MOST_LINES:]

    def _path(self, name: str) -> Path:
        path = self._folder / name
        if not _NAME.fullmatch(name) or not self._is_run(path):
            raise ApiError(404, "there is no such run", "run_not_found", param="name")
        return path

    @staticmethod
    def _is_run(path: Path) -> bool:
        return bool(_NAME.fullmatch(path.name)) and not path.is_symlink() and (path / "metrics.jsonl").is_file()

    @staticmethod
    def _summary(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {"name": path.name, "step": 0, "loss": None}
        for line in _lines(path / "metrics.jsonl", 2**16):
            found |= {key: line[key] for key in ("step", "loss", "valid_loss") if key in line}
        return found


def _lines(path: Path, most: int = _TAIL_BYTES) -> Iterator[dict[str, Any]]:
    """The objects in the last lines of a file; what is half written is left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            data = file.read(most)
    except OSError:
        return
    lines = data.split(b"\n")
    for line in lines[1:] if size > most else lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield finite(value)
