"""From text to a task: `translation(source='en', target='de')`, out of the registry that users add theirs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, made_part, name_and_parameters
from bimo.tasks.task import Task


def make_task(text: str | Task) -> Task:
    """The task of that name with these parameters; one that is a task already is given back.

    Raises:
        UserError: There is none of that name, or it has no such parameter, or what is registered is no task.
    """
    if isinstance(text, str):
        name, parameters = name_and_parameters(text)
        task = made_part("task", text, REGISTRIES["task"].get(name), parameters)
    else:
        task = text
    missing = [part for part in ("examples", "answer", "settled", "metrics", "floors") if not hasattr(task, part)]
    if missing:
        raise UserError(f"{type(task).__name__} is no task: it has no {missing[0]}", where=f"task: {text}", mend=_MEND)
    return task  # type: ignore[no-any-return]  # just looked at


_MEND = "See docs/tasks.md: a task of your own is one class with examples, answer and metrics."


def task_of(task: Task) -> str:
    """The text that `make_task` makes the same task of."""
    if not is_dataclass(task):
        return task.name
    given = [(f.name, getattr(task, f.name), _default(f)) for f in fields(task) if f.init]
    shown = [f"{name}={_plain(value)!r}" for name, value, default in given if value != default]
    return f"{task.name}({', '.join(shown)})" if shown else task.name


def _default(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not MISSING else MISSING


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
