"""From text to a task: `translation(source='en', target='de')`, out of the registry that users add theirs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, made_part, name_and_parameters
from bimo.tasks.task import Task
from bimo.tasks.unknown import UnknownTask


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
    length = getattr(task, "max_tokens", None)
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        what = f"max_tokens must be a whole number from 1 on, is {length!r}"
        raise UserError(what, where=f"task: {text}", mend="It is how long an answer may be.")
    return task  # type: ignore[no-any-return]  # just looked at


def check_answer_length(task: Task, context_length: int) -> None:
    """An answer for whose length somebody has asked fits into the context; what a task brings itself is shortened.

    Raises:
        UserError: It does not.
    """
    if task.max_tokens >= context_length and task.max_tokens != getattr(type(task), "max_tokens", None):
        what = f"an answer may have {task.max_tokens} tokens, and the model sees {context_length} in all"
        raise UserError(what, where=f"task: {task_of(task)}", mend="Give a smaller max_tokens.")


_MEND = "See docs/tasks.md: a task of your own is one class with examples, answer and metrics."


def task_of(task: Task) -> str:
    """The text that `make_task` makes the same task of."""
    if isinstance(task, UnknownTask):
        return task.text
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
