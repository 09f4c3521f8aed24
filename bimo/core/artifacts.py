"""Files that are whole or not there, and the run directory.

A folder is written beside its place, synced, sealed with a manifest of sha256 sums and renamed; whoever finds it finds
all of it. `verify` says what has changed since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimo.core.errors import UserError

MANIFEST = "manifest.json"


@contextlib.contextmanager
def write_folder(path: Path, *, parents: dict[str, str] | None = None) -> Iterator[Path]:
    """Give a folder to write into; it appears at `path` when the block ends without an error, replacing what was there.

    Args:
        path: Where the folder shall be.
        parents: What it was made from, name → hash: the lineage in its manifest.

    Raises:
        UserError: The disk is full or must not be written to; nothing has changed then.
    """
    with _for_people(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.parent / f".{path.name}.{os.getpid()}.part"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            yield aside
            _seal(aside, parents or {})
            _swap(aside, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def verify(folder: Path) -> list[str]:
    """What is wrong with a sealed folder: files that are missing or changed. Empty when it is as it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{MANIFEST} is missing or damaged"]
    problems = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
            problems.append(f"{name} has changed since it was written")
    return problems


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with _for_people(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        aside.write_text(text, encoding="utf-8")
        _sync(aside)
        os.replace(aside, path)


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Add one line to a log."""
    with _for_people(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a log; a last line that a crash cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records += [json.loads(line)] if line else []
        except ValueError as error:
            if number < len(lines):
                raise UserError("not JSON", where=f"{path}, line {number}", mend="Remove the line.") from error
    return records


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class RunDirectory:
    """Where everything of a run lies; see docs/architecture.md."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / "run.yaml"

    @property
    def tokens(self) -> Path:
        return self.path / "tokens"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def manifest(self) -> Path:
        return self.path / MANIFEST

    def log_event(self, kind: str, **facts: Any) -> None:
        """Add to `events.jsonl` what happened, and when."""
        append_jsonl(self.path / "events.jsonl", {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "event": kind, **facts})

    def latest_checkpoint(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, and a sentence for each damaged one that was passed over."""
        skipped: list[str] = []
        for folder in sorted(self.checkpoints.glob("step-*"), reverse=True):
            problems = verify(folder)
            if not problems:
                return folder, skipped
            skipped.append(f"{folder}: {'; '.join(problems)}")
        return None, skipped


def _seal(folder: Path, parents: dict[str, str]) -> None:
    """Sync every file and write the manifest."""
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        _sync(file)
        files[file.relative_to(folder).as_posix()] = {"sha256": sha256(file), "bytes": file.stat().st_size}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files, "parents": parents}, indent=1), encoding="utf-8")
    _sync(manifest)


def _swap(aside: Path, path: Path) -> None:
    """Put the new folder in its place; an old one is moved away first and removed last."""
    old = path.parent / f".{path.name}.{os.getpid()}.old"
    if path.exists():
        os.replace(path, old)
    os.replace(aside, path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Ask the system to have the file, or the folder's list of names, on disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _for_people(path: Path) -> Iterator[None]:
    """A disk that is full or read-only is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})", where=str(path), mend="Free space, or choose a folder."
        ) from error
