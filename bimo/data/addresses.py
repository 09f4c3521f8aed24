"""Text that lies elsewhere: addresses such as `s3://bucket/text/*.jsonl.gz`, read in a stream through fsspec.

An address travels as a Path (`s3:/bucket/text`), so that everything after the finding of files treats all files alike;
here it becomes an address again. A scheme has at least two letters: `C:` is a disk of Windows. fsspec knows many
schemes; some need a package of their own (s3fs, gcsfs, adlfs), which its error names.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from bimo.core.errors import UserError, nearest

_ADDRESS = re.compile(r"^([a-z][a-z0-9+.\-]+):(//?|$)")  # one slash is left where the address was a Path
_LOCAL = ("file", "local")


def is_address(path: str | Path) -> bool:
    """Whether this is an address of another place; `file://` names a file of this machine, see `local_path`."""
    return _ADDRESS.match(str(path)) is not None and not Path(path).exists()


def local_path(path: str) -> str:
    """`file:///text/a.txt` as `/text/a.txt`; any other path as it is."""
    scheme, separator, rest = path.partition("://")
    return rest if separator and scheme in _LOCAL else path


def address_of(path: str | Path) -> str:
    """The address with its two slashes."""
    return _ADDRESS.sub(r"\1://", str(path), count=1)


def name_of(path: Path) -> str:
    """How a file is called for people."""
    return address_of(path) if is_address(path) else str(path)


def open_binary(path: Path) -> BinaryIO:
    """A file, or what lies at an address, to be read as bytes.

    Raises:
        OSError: It cannot be read.
    """
    if not is_address(path):
        return path.open("rb")
    system, place = file_system(address_of(path))
    opened = cast(Any, system.open(place, "rb"))
    return cast(BinaryIO, opened if hasattr(opened, "read1") else io.BufferedReader(opened))


def facts_of(path: Path) -> tuple[int, str]:
    """Bytes, and what changes when the content does (a time, or the store's mark); (0, '') when it cannot be asked."""
    try:
        system, place = file_system(address_of(path))
        facts = system.info(place)
    except OSError:
        return 0, ""
    marks = (facts.get(name) for name in ("ETag", "etag", "mtime", "LastModified", "last_modified", "created"))
    return int(facts.get("size") or 0), str(next((mark for mark in marks if mark is not None), ""))


def files_at(text: str, wanted: Callable[[Path], bool]) -> list[Path]:
    """Files that an address means: itself, those of a folder that are wanted, or those of a pattern; sorted."""
    system, place = file_system(text)
    scheme = text.partition("://")[0]
    try:
        if system.isfile(place):
            return [Path(text)]
        found = system.glob(place) if any(c in place for c in "*?[") else system.find(place)
        files = [name for name in found if system.isfile(name)]
    except OSError as error:
        raise UserError(f"cannot be listed ({error})", where=text, mend="Check the address and your rights.") from error
    paths = [Path(f"{scheme}://{str(name).partition('://')[2] or str(name).lstrip('/')}") for name in files]
    root = len(PurePosixPath(place).parts)
    return sorted(p for p in paths if wanted(p) and not any(part.startswith(".") for part in p.parts[root:]))


def file_system(text: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the place in it.

    Raises:
        UserError: No such scheme, or a package that it needs is missing.
    """
    import fsspec  # torch brings it; here: most runs read files of this machine

    try:
        system, place = fsspec.core.url_to_fs(text)
    except ImportError as error:
        raise UserError(f"cannot be read ({error})", where=text, mend="Install the package that it names.") from error
    except ValueError as error:
        scheme = text.partition("://")[0]
        hint = nearest(scheme, fsspec.available_protocols())
        raise UserError(
            f"no such kind of address{hint}", where=text, mend="For example s3://, gs:// or https://"
        ) from error
    return system, place
