"""A task of a user's own whose file was not named: the model opens without it, and says so when the task is used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, name_and_parameters
from bimo.tasks.task import TaskExample

_log = logging.getLogger("bimo")
_MEND = "Name the file that registers it: --modules FILE.py, or import it before the model is opened."


@dataclass(frozen=True)
class UnknownTask:
    """Stands for a task that nobody has registered; it keeps its text, and can do nothing.

    Attributes:
        text: As the model's folder says it.
    """

    text: str

    fields = metrics = floors = ()
    max_tokens = 1

    @property
    def name(self) -> str:
        return name_and_parameters(self.text)[0]

    def examples(self, record: Mapping[str, object], where: str) -> NoReturn:
        self.refuse()

    def answer(self, text: str) -> NoReturn:
        self.refuse()

    def settled(self, examples: Sequence[TaskExample]) -> NoReturn:
        self.refuse()

    def refuse(self) -> NoReturn:
        """Raise a UserError that names the mend."""
        raise UserError(f"the task {self.name!r} is one of somebody's own, and is not there", where="task", mend=_MEND)


def unknown_task(text: str, where: str) -> UnknownTask | None:
    """What stands for a task of that text, and a warning; None where the task is known."""
    name = name_and_parameters(text)[0]
    if not REGISTRIES["task"].problem(name):
        return None
    _log.warning("%s: the model was trained for %r, a task that is not there. %s", where, text, _MEND)
    return UnknownTask(text)
