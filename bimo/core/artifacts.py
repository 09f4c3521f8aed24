"""Files that are whole or not there, and the run directory.

A folder is written beside its place, synced, sealed with a manifest of sha256 sums and renamed; whoever finds it finds
all of it. `verify` says what has changed since.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

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
        _check_replaceable(path)
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
        sealed = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # one flipped bit can make it any JSON
        return [f"{MANIFEST} is missing or damaged"]
    problems = []
    for name, (size, digest) in sealed.items():
        path = folder / name
        try:
            if path.stat().st_size != size or sha256(path) != digest:
                problems.append(f"{name} has changed since it was written")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror or error})")
    return problems


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with _for_people(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            aside.write_text(text, encoding="utf-8")
            _sync(aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Add one line to a log, after cutting away a last line that a crash has left unfinished."""
    line = json.dumps(record, ensure_ascii=False) + "\n"
    with _for_people(path), path.open("ab+") as file:
        _cut_torn_line(file)
        file.write(line.encode())  # in one write: appending processes do not mix their lines


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a log; a last line that a crash cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")  # bytes: a crash can also cut a character
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
    def check(self) -> Path:
        return self.path / "check.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def flight(self) -> Path:
        return self.path / "flight.jsonl"

    @property
    def set_aside(self) -> Path:
        return self.path / "set_aside"

    @property
    def manifest(self) -> Path:
        return self.path / MANIFEST

    def log_event(self, kind: str, **facts: Any) -> None:
        """Add to `events.jsonl` what happened, and when."""
        append_jsonl(self.events, {"time": time.strftime("%Y-%m-%dT%H:%M:%S"), "event": kind, **facts})

    def latest_checkpoint(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, and a sentence for each damaged one that was passed over."""
        skipped: list[str] = []
        for folder in sorted(self.checkpoints.glob("step-*"), reverse=True):
            problems = verify(folder)
            if not problems:
                return folder, skipped
            skipped.append(f"{folder}: {'; '.join(problems)}")
        return None, skipped


def _check_replaceable(path: Path) -> None:
    """Only a folder that was sealed here may be replaced, and only with nothing in it that its seal does not name."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    what = "this is a file, not a folder"
    if path.is_dir():
        what = "this folder holds other things"
        if (path / "run.yaml").exists():
            what = "this is a run, with its tokens and checkpoints"
        elif {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()} <= _sealed(path):
            return
    raise UserError(f"{what}, which would be lost", where=str(path), mend="Choose a new name.")


def _sealed(folder: Path) -> set[str]:
    """The files that a folder's manifest names, and the manifest; empty when there is none."""
    try:
        return {MANIFEST, *json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _cut_torn_line(file: BinaryIO) -> None:
    """Drop what follows the last line break, or end it if it is whole: a record glued to half a line would be lost."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    if file.read(1) in (b"", b"\n"):
        return
    file.seek(0)
    head, line_break, tail = file.read().rpartition(b"\n")
    try:
        json.loads(tail)
    except ValueError:
        file.truncate(len(head) + len(line_break))
    else:
        file.write(b"\n")


def _seal(folder: Path, parents: dict[str, str]) -> None:
    """Sync every file, write the manifest, and sync the lists of names."""
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        _sync(file)
        files[file.relative_to(folder).as_posix()] = {"sha256": sha256(file), "bytes": file.stat().st_size}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files, "parents": parents}, indent=1), encoding="utf-8")
    _sync(manifest)
    for directory in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        _sync(directory)


def _swap(aside: Path, path: Path) -> None:
    """Put the new folder in its place. The old one, where it was there, is at `aside` then or gone."""
    if not path.exists():
        os.replace(aside, path)
    elif not _exchange(aside, path):
        old = path.parent / f".{path.name}.{os.getpid()}.old"
        os.replace(path, old)
        try:
            os.replace(aside, path)
        except OSError:
            os.replace(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step, so that a kill leaves no moment without either; False: cannot.

    Linux has this since 3.15, not on every file system. Elsewhere two renames do, with a moment between them.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    at_working_folder, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE in fcntl.h and linux/fs.h
    if rename is None:
        return False
    return rename(at_working_folder, os.fsencode(one), at_working_folder, os.fsencode(other), exchange) == 0


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
