"""Which files a path means, what kind each of them is, and their bytes.

A path is a file, a folder, a glob, an address (`s3://…`) or '-'. In folders and globs only files with a known suffix
count, hidden and empty ones are passed over, and links that lead back to an enclosing folder are reported instead of
followed for ever.
"""

from __future__ import annotations

import glob
import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bimo.core.errors import UserError
from bimo.data.addresses import facts_of, files_at, is_address, local_path, open_binary
from bimo.data.documents import Problem, ProblemHandler, UnreadableError

Kind = Literal["text", "jsonl", "csv", "parquet"]

KINDS: dict[str, Kind] = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".csv": "csv", ".parquet": "parquet"}
ACCEPTED = ".txt, .md, .jsonl, .csv and .parquet files (each also .gz), folders and globs of them, s3://… and '-'"
STANDARD_INPUT = Path("-")
CHUNK_BYTES = 1 << 20


@dataclass
class ReadProgress:
    """How far the reading is, in bytes on disk. One may be shared by several calls of `read_documents`."""

    total_bytes: int = 0
    """Sum over the files that were found; standard input and pipes count as 0."""
    read_bytes: int = 0

    @property
    def share(self) -> float:
        """0 … 1; stays 0 where the total is not known."""
        return min(1.0, self.read_bytes / self.total_bytes) if self.total_bytes else 0.0


def find_files(paths: Sequence[str], on_problem: ProblemHandler | None = None) -> list[Path]:
    """List the files that the paths mean: paths in the order given, files sorted within each, none twice.

    A file that is named itself is listed whatever its suffix; folders and globs give files with a known suffix. Folders
    that cannot be listed go to `on_problem`. Raises `UserError` for a path that gives no file.
    """
    report = on_problem or (lambda problem: None)
    found: dict[object, Path] = {}  # by what identifies a file, so that two names of one file count once
    for path in paths:
        files = _files_of(path, report)
        if not files:
            what = "no readable file lies in this folder" if os.path.isdir(path) else "no such file or folder"
            raise UserError(what, where=path, mend=f"Accepted are {ACCEPTED}.")
        for file in files:
            found.setdefault(_identity(file), file)
    return list(found.values())


def empty_files(paths: Sequence[str]) -> list[Path]:
    """Files with a known suffix and nothing in them, in the folders among the paths: `find_files` passes them over."""
    folders = [Path(os.path.expanduser(path)) for path in paths if os.path.isdir(os.path.expanduser(path))]
    inner = (Path(name) / file for folder in folders for name, _, files in os.walk(folder) for file in files)
    return sorted(
        f for f in inner if _suffix(f) in KINDS and not f.name.startswith(".") and f.is_file() and size_of(f) == 0
    )


def other_files(paths: Sequence[str]) -> list[Path]:
    """Files in the folders among the paths that are passed over because of their suffix; hidden ones do not count."""
    folders = [Path(os.path.expanduser(path)) for path in paths if os.path.isdir(os.path.expanduser(path))]
    inner = (Path(name) / file for folder in folders for name, _, files in os.walk(folder) for file in files)
    return sorted(f for f in inner if _suffix(f) not in KINDS and not any(p.startswith(".") for p in f.parts))


def kind_of(file: Path) -> Kind:
    """What a file holds, by its suffix before '.gz'; any unknown suffix means text."""
    return KINDS.get(_suffix(file), "text")


def is_compressed(file: Path) -> bool:
    """Whether the name ends in '.gz'."""
    return file.suffix.lower() == ".gz"


def size_of(file: Path) -> int:
    """Bytes on disk; 0 for standard input, pipes, and what cannot be asked."""
    if is_address(file):
        return facts_of(file)[0]
    try:
        return file.stat().st_size if file != STANDARD_INPUT and file.is_file() else 0
    except OSError:
        return 0


def byte_chunks(file: Path, progress: ReadProgress) -> Iterator[bytes]:
    """The decompressed bytes in chunks of 1 MiB. Raises `UnreadableError` where reading fails, after all before."""
    with ExitStack() as stack:
        try:
            if file == STANDARD_INPUT:
                raw: Any = stack.enter_context(open(sys.stdin.fileno(), "rb", closefd=False))
            else:
                raw = stack.enter_context(open_binary(file))
            stream = gzip.GzipFile(fileobj=raw) if is_compressed(file) else raw
        except OSError as error:
            raise UnreadableError(_reason(error)) from error
        counted, before = size_of(file) > 0, progress.read_bytes
        for chunk in _gathered(stream.read1):
            if counted:
                progress.read_bytes = before + raw.tell()
            yield chunk


def _gathered(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Full chunks from a source that gives small ones; what came before an error is not lost."""
    failure: Exception | None = None
    ended = False
    while not ended:
        parts, size = [], 0
        try:
            while size < CHUNK_BYTES and not ended:
                parts.append(read(CHUNK_BYTES - size))
                size += len(parts[-1])
                ended = not parts[-1]
        except (OSError, EOFError, zlib.error) as error:
            failure, ended = error, True
        if size:
            yield b"".join(parts)
    if failure is not None:
        raise UnreadableError(_reason(failure)) from failure


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "the compressed data end too early; the file is truncated"
    if isinstance(error, (gzip.BadGzipFile, zlib.error)):
        return f"the compressed data are damaged ({error})"
    return f"it cannot be read ({getattr(error, 'strerror', None) or error})"


def _files_of(path: str, report: ProblemHandler) -> list[Path]:
    if path == str(STANDARD_INPUT):
        return [STANDARD_INPUT]
    if is_address(path) and local_path(path) == path:
        return files_at(path, lambda file: _suffix(file) in KINDS and size_of(file) > 0)
    # os.path: Path.is_dir raises where an enclosing folder may not be entered
    place = os.path.expanduser(local_path(path))
    if os.path.isdir(place):
        return sorted(_files_in(Path(place), report))
    if os.path.exists(place):
        return [Path(place)]
    # '*.log' asks for logs; '*' asks for what can be read
    suffix = Path(place).suffix
    any_suffix = bool(suffix) and not glob.has_magic(suffix)
    files: list[Path] = []
    for match in map(Path, glob.glob(place, recursive=True)):
        if match.is_dir():
            files += _files_in(match, report)
        elif match.is_file() and match.stat().st_size and (any_suffix or _suffix(match) in KINDS):
            files.append(match)
    return sorted(files)


def _files_in(folder: Path, report: ProblemHandler) -> Iterator[Path]:
    """Files with a known suffix in the folder and below it; links are followed, but not round in a circle."""

    def cannot_list(error: OSError) -> None:
        report(Problem(str(error.filename), 0, f"the folder cannot be listed ({error.strerror})"))

    for name, folders, files in os.walk(folder, onerror=cannot_list, followlinks=True):
        here = Path(name)
        enclosing = {parent.resolve() for parent in (here, *here.parents)} | set(here.resolve().parents)
        for inner in [inner for inner in folders if (here / inner).is_symlink()]:
            if (here / inner).resolve() in enclosing:
                folders.remove(inner)
                what = "this link leads back to a folder that holds it, and is not followed"
                report(Problem(str(here / inner), 0, what, "Remove the link."))
        folders[:] = sorted(inner for inner in folders if not inner.startswith("."))
        for file in (here / name for name in files if not name.startswith(".")):
            if _suffix(file) in KINDS and size_of(file) > 0:  # not a size of 0: a pipe, or nothing in it
                yield file


def _suffix(file: Path) -> str:
    """The last suffix that is not '.gz', in small letters."""
    return Path(file.stem if is_compressed(file) else file.name).suffix.lower()


def _identity(file: Path) -> object:
    try:
        status = file.stat()
    except OSError:
        return file
    return (status.st_dev, status.st_ino)
