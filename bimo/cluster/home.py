"""A run whose folder is an address (`s3://bucket/runs`): it works in a folder here, and fsspec keeps a copy there.

Workers of several machines need a folder that all of them see; the copy is what outlives them. It is taken when the
run ends, however it ends, and what lies there is fetched first when a run goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bimo.core.config import RunSettings
from bimo.core.errors import UserError, require
from bimo.data.addresses import file_system, is_address, local_path

_WORK = "runs"  # where a run works whose folder is an address


@dataclass(frozen=True)
class Home:
    """Where a run lies.

    Attributes:
        settings: The recipe with a folder of this machine.
        address: The run's folder elsewhere; "" when it lies here.
    """

    settings: RunSettings
    address: str = ""

    @property
    def path(self) -> Path:
        return Path(self.settings.folder) / self.settings.name

    def storage(self) -> dict[str, Any]:
        """What Ray is told about where to keep its own notes."""
        if not self.address:
            return {"storage_path": str(self.path)}
        system, place = file_system(self.address)
        arrow = require("pyarrow.fs", "ray")
        return {"storage_path": place, "storage_filesystem": arrow.PyFileSystem(arrow.FSSpecHandler(system))}


@contextlib.contextmanager
def at_home(settings: RunSettings, *, resume: bool = False) -> Iterator[Home]:
    """Give the run's home; what was made is at its address when the block ends.

    Raises:
        UserError: Nothing can be written to, or read from, the address.
    """
    folder = local_path(settings.folder)
    if not is_address(folder):
        yield Home(replace(settings, folder=str(Path(folder).expanduser().absolute())))
        return
    home = Home(replace(settings, folder=str(Path(_WORK).absolute())), f"{folder.rstrip('/')}/{settings.name}")
    system, place = file_system(home.address)
    with _for_people(home.address):
        there = system.exists(place)
        if there and not resume:
            mend = f"Go on with --resume {home.path}, or choose another --name."
            raise UserError("this run exists", where=home.address, mend=mend)
        if there and not home.path.exists():
            system.get(place, str(home.path), recursive=True)
        system.makedirs(place, exist_ok=True)
    try:
        yield home
    finally:
        if home.path.exists():
            with _for_people(home.address):
                system.put(f"{home.path}/", place, recursive=True)


@contextlib.contextmanager
def _for_people(address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ImportError) as error:
        raise UserError(
            f"cannot be used ({error})", where=address, mend="Check the address and your rights."
        ) from error
