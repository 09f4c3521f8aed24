"""Keys of a server: kept as hashes, compared in constant time, each with limits of its own.

A key has 256 random bits, so that a plain SHA-256 of it cannot be turned back; passwords of people would need more.
One line of the file for each: NAME sha256:HASH [requests=60] [tokens=100000] [parallel=4].
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bimo.core.errors import UserError

_PREFIX = "bimo-"
_NAME = re.compile(r"[A-Za-z0-9][\w.@-]{0,63}")
_LIMITS = ("requests", "tokens", "parallel")
_LONGEST_HEADER = 1024


@dataclass(frozen=True, slots=True)
class Key:
    """Somebody who may use the server.

    Attributes:
        name: For people, logs and metrics; also whose prefixes share the cache.
        hash: SHA-256 of the key, in hex.
        requests: Per minute; 0: no limit; None: as the server's settings say.
        tokens: Read and written ones per minute.
        parallel: Requests under way at once.
    """

    name: str
    hash: str
    requests: int | None = None
    tokens: int | None = None
    parallel: int | None = None


ANYBODY = Key("", "")
"""Who uses a server without keys."""


class KeyRing:
    """The keys of a server.

    Args:
        keys: All of them; none: everybody may use it.
    """

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self.keys = tuple(keys)

    def holder(self, authorization: bytes) -> Key | None:
        """Whose key a header `Authorization` holds; None: nobody's."""
        if not self.keys:
            return ANYBODY
        given = _hash(secret_of(authorization))
        found: Key | None = None
        for key in self.keys:  # all of them, whichever fits: the time says nothing
            if hmac.compare_digest(key.hash, given):
                found = key
        return found


def secret_of(authorization: bytes) -> str:
    """The key in a header: `Bearer KEY`, or the password of `Basic`, as browsers ask for it; '' when there is none."""
    scheme, _, rest = authorization[:_LONGEST_HEADER].decode("latin-1").strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def read_keys(path: Path) -> KeyRing:
    """The keys of a file.

    Raises:
        UserError: It cannot be read, holds no key, or a line is wrong; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        what = f"the keys cannot be read ({error.__class__.__name__})"
        raise UserError(what, where=str(path), mend="Make one: bimo serve --new_key NAME --keys FILE.") from error
    keys: dict[str, Key] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            key = _parsed(line.split(), f"{path}, line {number}")
            if key.name in keys:
                raise UserError(f"{key.name!r} stands twice", where=f"{path}, line {number}", mend="Rename one.")
            keys[key.name] = key
    if not keys:
        raise UserError("there is no key in it", where=str(path), mend="bimo serve --new_key NAME --keys FILE.")
    return KeyRing(tuple(keys.values()))


def new_key(path: Path, name: str) -> str:
    """Make a key, append its hash to a file that only its owner can read, and return it: it is not kept anywhere.

    Raises:
        UserError: The name is none, is taken, or the file cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name", where="--new_key", mend="Use letters, digits and . _ @ -, 64 at most.")
    if path.exists() and path.stat().st_size and any(key.name == name for key in read_keys(path).keys):
        raise UserError(f"there is a key called {name!r}", where=str(path), mend="Choose another name.")
    secret = _PREFIX + secrets.token_urlsafe(32)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
            file.write(f"{name} sha256:{_hash(secret)}\n")
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(path), mend="Name another file.") from error
    return secret


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", errors="surrogateescape")).hexdigest()


def _parsed(words: Sequence[str], where: str) -> Key:
    """A line's key; errors never show the line, which may hold a key that somebody has put there."""
    mend = "Write NAME sha256:HASH [requests=N] [tokens=N] [parallel=N]."
    if len(words) < 2 or not _NAME.fullmatch(words[0]) or not re.fullmatch(r"sha256:[0-9a-f]{64}", words[1]):
        raise UserError("it is no name with a hash", where=where, mend=mend)
    return Key(words[0], words[1].partition(":")[2], **_limits(words[2:], where, mend))


def _limits(words: Iterable[str], where: str, mend: str) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in _LIMITS or name in found or not re.fullmatch(r"[0-9]{1,12}", value):
            raise UserError("a limit is wrong", where=where, mend=mend)
        found[name] = int(value)
    return found
