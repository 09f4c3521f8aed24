"""The one error for people: what is wrong, where, and how to mend it.

`UserError` ends a command with exit code 2 and one sentence; anything else that escapes is a bug and keeps its
traceback. `require` turns a missing optional package into such a sentence.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(Exception):
    """Something the user gave or asked for cannot be used.

    Args:
        what: What is wrong, one clause without a full stop.
        where: File, line, field or flag that it was found in.
        mend: What to do about it, as an instruction.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, where, mend
        sentence = f"{where}: {what}" if where else what
        super().__init__(f"{sentence}. {mend}" if mend else sentence)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the closest of the known names, or '' when none is close."""
    import difflib  # here: nearly everything imports this file, hardly ever to raise

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra of bimo brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"this needs the package {module.split('.')[0]!r}, which cannot be imported ({error})",
            mend=f'Install it with: pip install "bimo[{extra}]"',
        ) from error
