"""Runs for the page: their curves, samples and events, read as they lie on the disk while training may go on.

A folder of runs is whatever training left there, so nothing of it is believed: a name is one that the folder lists, a
link is not followed, a damaged line is skipped and counted, and of a file of any size only a bounded part is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimo.core.artifacts import RunDirectory
from bimo.core.errors import UserError
from bimo.core.json_files import finite
from bimo.serving.errors import ApiError

Line = dict[str, Any]

MOST_LINES = 2000
"""Lines of a curve that are handed out; a screen has fewer dots."""
MOST_RUNS = 500
_EVALUATIONS = 500  # of the lines of a curve; they are few, and each is a point that a reader looks for
_SAMPLES = 100
_TAIL = 64 * 2**10  # bytes that a summary is read from
_LONGEST_LINE = 64 * 2**10
_WHOLE = 16 * 2**20  # bytes; of a larger file, lines at even distances are read
_NEWEST = 4 * 2**20  # bytes of a log of which the newest lines count


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of a log.

    Attributes:
        found: Each a JSON object, numbers that JSON does not have (NaN) as None.
        damaged: How many could not be read.
    """

    found: list[Line]
    damaged: int = 0


class Runs:
    """A folder of run directories.

    Args:
        folder: Where the runs lie, each a folder in it.

    Raises:
        UserError: There is no such folder, or it is a run itself.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError("there is no such folder", where=str(folder), mend="Give the folder that holds the runs.")
        if RunDirectory(folder).metrics.exists():
            mend = f"Give the folder above: {folder.absolute().parent}"
            raise UserError("this is one run, not a folder of runs", where=str(folder), mend=mend)
        self.folder = folder

    def listed(self) -> list[Line]:
        """Of each run its name, when it was last written to, and where its newest lines stand; the newest first."""
        runs = [(_modified(run), run) for run in map(RunDirectory, self.folder.iterdir()) if _is_run(run)]
        newest = sorted(runs, key=lambda pair: (-pair[0], pair[1].path.name))[:MOST_RUNS]
        return [{"name": run.path.name, "modified": time, **_summary(run.metrics)} for time, run in newest]

    def one(self, name: str) -> Line:
        """A run's curves and samples, and how many lines of its logs could not be read.

        Args:
            name: As `listed` has it.

        Raises:
            ApiError: There is no such run.
        """
        run = self._find(name)
        metrics, samples = _spread(run.metrics), _newest(run.path / "samples.jsonl")
        return {
            "name": name,
            "metrics": thinned(metrics.found),
            "samples": samples.found[-_SAMPLES:],
            "damaged": metrics.damaged + samples.damaged + _newest(run.events).damaged,
        }

    def events(self, name: str) -> list[Line]:
        """A run's newest events.

        Raises:
            ApiError: There is no such run.
        """
        return _newest(self._find(name).events).found[-MOST_LINES:]

    def _find(self, name: str) -> RunDirectory:
        """The run of this name, by comparing it with what the folder lists: a path, `..` or NUL is none of them."""
        for path in self.folder.iterdir():
            if path.name == name and _is_run(RunDirectory(path)):
                return RunDirectory(path)
        raise ApiError(404, "there is no such run: GET /v1/runs lists them", "run_not_found", param="name")


def thinned(lines: Sequence[Line], most: int = MOST_LINES) -> list[Line]:
    """At most so many lines of a curve at even distances, the first and the last among them; of evaluations, which are
    few, as many as can be."""
    if len(lines) <= most:
        return list(lines)
    evaluations = [i for i, line in enumerate(lines) if "learning_rate" not in line]
    kept = set(_evenly(evaluations, min(_EVALUATIONS, most // 2)))
    others = [i for i in range(len(lines)) if i not in kept and "learning_rate" in lines[i]]
    return [lines[i] for i in sorted(kept.union(_evenly(others, most - len(kept))))]


def _evenly(items: Sequence[int], most: int) -> list[int]:
    """At most so many of them, the first and the last among these."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def _is_run(run: RunDirectory) -> bool:
    """Whether it is a folder of its own, not hidden, with something of a run in it."""
    path = run.path
    if path.name.startswith(".") or not path.name.isprintable() or path.is_symlink() or not path.is_dir():
        return False
    return any(_is_plain(file) for file in (run.metrics, run.events, run.settings))


def _is_plain(path: Path) -> bool:
    """Whether it is a file and no link: a link could lead to any file of this machine."""
    return path.is_file() and not path.is_symlink()


def _modified(run: RunDirectory) -> float:
    """When something of it was last written, in seconds since 1970."""
    files = [file for file in (run.metrics, run.events, run.settings) if _is_plain(file)]
    return max((file.stat().st_mtime for file in files), default=0.0)


def _summary(metrics: Path) -> Line:
    """The newest step and losses of a run."""
    summary: Line = {"step": 0, "loss": None}
    for line in _tail(metrics, _TAIL).found:
        summary["step"] = max(summary["step"], _number(line.get("step")) or 0)
        loss = _number(line.get("loss"))
        if "learning_rate" in line:
            summary["loss"] = loss
        else:
            summary["valid_loss"] = _number(line.get("valid_loss", loss))
    return summary


def _number(value: Any) -> Any:
    """A number, or None."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _newest(path: Path) -> Lines:
    return _tail(path, _NEWEST)


def _tail(path: Path, size: int) -> Lines:
    """The lines in the last bytes of a file; one that begins before them is left out."""
    if not _is_plain(path):
        return Lines([])
    with path.open("rb") as file:
        whole = path.stat().st_size
        start = max(0, whole - size)
        file.seek(start)
        data = file.read(size)
    lines = data.split(b"\n")
    return _parsed(lines[1:] if start else lines)


def _spread(path: Path) -> Lines:
    """The lines of a file; of a large one, those after places at even distances."""
    if not _is_plain(path) or path.stat().st_size <= _WHOLE:
        return _tail(path, _WHOLE)
    lines, size = [], path.stat().st_size
    with path.open("rb") as file:
        for place in range(MOST_LINES):
            file.seek(place * size // MOST_LINES)
            if place:
                file.readline(_LONGEST_LINE)  # the rest of a line
            lines.append(file.readline(_LONGEST_LINE))
    newest = _tail(path, _TAIL)  # how it ends is what a reader wants to know
    found = _parsed(list(dict.fromkeys(lines)))
    known = {line.get("step") for line in newest.found}
    return Lines([line for line in found.found if line.get("step") not in known] + newest.found, found.damaged)


def _parsed(lines: Sequence[bytes]) -> Lines:
    """Lines as JSON objects. The last one may still be in writing: it does not count as damaged."""
    found, damaged = [], 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = finite(json.loads(line.decode())) if len(line) < _LONGEST_LINE else None
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be sent on
        except (ValueError, RecursionError):  # UnicodeError is a ValueError
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            damaged += number < len(lines)
    return Lines(found, damaged)
