"""A folder of language packs that is watched: packs that come, change and go are told, damaged ones are left out.

- A pack is read when it has looked the same twice: what is still being copied is waited for.
- One that is damaged is left out, and said, until it changes; the one that was there before it goes on.
- One that is gone in two looks is given up: a pack that is swapped for another is gone for a moment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bimo.core.errors import UserError
from bimo.serving.logs import failure, log
from bimo.serving.packs import Pack

Signature = tuple[tuple[str, int, int, int], ...]
"""Path, size, time and number of each file."""
_MOST_FILES = 256


@dataclass(frozen=True, slots=True)
class _Kept:
    """A pack that was taken: its name, and what its folder looked like."""

    name: str
    signature: Signature


class PackFolder:
    """Watches a folder.

    Args:
        folder: Each folder in it is a pack; those that begin with a dot are not looked at.
        read: Reads and checks one.
        add: Takes one in; in place of one of its name, where that is there.
        remove: Gives one up, by its name.
        poll_s: Seconds between two looks.

    Attributes:
        problems: What is wrong with packs that are left out, by the names of their folders.
    """

    def __init__(
        self,
        folder: Path,
        read: Callable[[Path], Pack],
        add: Callable[[Pack], None],
        remove: Callable[[str], None],
        poll_s: float = 1.0,
    ) -> None:
        self.folder, self._poll_s = Path(folder), poll_s
        self._read, self._add, self._remove = read, add, remove
        self.problems: dict[str, str] = {}
        self._kept: dict[str, _Kept] = {}
        self._refused: dict[str, Signature] = {}
        self._seen: dict[str, Signature] = {}
        self._missing: set[str] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if not self.folder.is_dir():
            raise UserError("this is no folder", where=str(self.folder), mend="Make it, or name another: --packs.")

    @property
    def names(self) -> list[str]:
        """Of the packs that are there."""
        return [kept.name for kept in self._kept.values()]

    def look(self, *, at_once: bool = False) -> None:
        """Look once: take in what is new, give up what has gone.

        Args:
            at_once: Do not wait for a second look.
        """
        try:
            entries = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir(follow_symlinks=False))
        except OSError as error:  # a disk that is away for a while: what there is goes on
            log.error("packs cannot be seen", extra=failure(error))
            return
        present = {name: _signature(self.folder / name) for name in entries if not name.startswith(".")}
        for name, signature in present.items():
            kept = self._kept.get(name)
            if (kept and kept.signature == signature) or self._refused.get(name) == signature:
                continue
            if at_once or self._seen.get(name) == signature:
                self._take(name, signature)
        for name in [name for name in self._kept if name not in present]:
            if at_once or name in self._missing:
                gone = self._kept.pop(name)
                self._remove(gone.name)
                log.info("pack removed", extra={"model": gone.name})
        self._missing = {name for name in self._kept if name not in present}
        for left in self._refused.keys() - present.keys():
            del self._refused[left]
            self.problems.pop(left, None)
        self._seen = present

    def start(self) -> None:
        """Look again and again, in a thread."""
        self._thread = threading.Thread(target=self._watch, name="bimo-packs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self.look()
            except Exception as error:  # nobody is above this thread; the next look comes
                log.error("packs cannot be looked at", extra=failure(error))

    def _take(self, name: str, signature: Signature) -> None:
        kept = self._kept.get(name)
        try:
            pack = self._read(self.folder / name)
            other = next((n for n, k in self._kept.items() if k.name == pack.name and n != name), None)
            if other is not None:
                mend = "Give it a name of its own."
                raise UserError(f"the pack {pack.name!r} is there already, in {other}", where=name, mend=mend)
            self._add(pack)
        except Exception as error:  # of this pack alone, which is left out
            self._refused[name] = signature
            self.problems[name] = str(error) if isinstance(error, UserError) else f"it failed: {type(error).__name__}"
            log.error("pack refused", extra={"model": name, **failure(error), "reason": self.problems[name]})
            return
        self._refused.pop(name, None)
        self.problems.pop(name, None)
        if kept is not None and kept.name != pack.name:
            self._remove(kept.name)
        self._kept[name] = _Kept(pack.name, signature)
        log.info("pack replaced" if kept else "pack added", extra={"model": pack.name})


def _signature(folder: Path) -> Signature:
    """What a folder looks like; another one after any change."""
    found = []
    for path in folder.rglob("*"):
        try:
            about = path.lstat()
        except OSError:  # it goes at this moment: the next look sees another signature
            continue
        found.append((path.relative_to(folder).as_posix(), about.st_size, about.st_mtime_ns, about.st_ino))
        if len(found) > _MOST_FILES:
            break
    return tuple(sorted(found))
