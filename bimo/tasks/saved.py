"""What a model was trained for, in `tasks.json` beside its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bimo.core.errors import UserError
from bimo.core.json_files import read_json
from bimo.tasks.naming import make_task, task_of
from bimo.tasks.task import Task
from bimo.tasks.unknown import unknown_task

FILE = "tasks.json"
_MOST_TASKS = 100


def tasks_file(tasks: Sequence[Task]) -> dict[str, bytes]:
    """The file's name and content, to be written with a model; nothing for a model without tasks."""
    named = {"tasks": [task_of(task) for task in tasks]}
    return {FILE: json.dumps(named, ensure_ascii=False, indent=1).encode()} if tasks else {}


def saved_tasks(folder: Path) -> list[Task]:
    """The tasks of the model in a folder (or of a run); none where nothing is said.

    For a task that nobody has registered stands an `UnknownTask`, and a warning is given.

    Raises:
        UserError: The file is damaged, or has parameters that a task does not take.
    """
    path = next((path for path in (folder / FILE, folder / "model" / FILE) if path.is_file()), None)
    if path is None:
        return []
    texts = read_json(path).get("tasks")
    if not isinstance(texts, list) or len(texts) > _MOST_TASKS or not all(isinstance(text, str) for text in texts):
        raise UserError("tasks is no list of texts", where=str(path), mend="Copy the model's folder again.")
    try:
        found: list[Any] = [unknown_task(text, str(path)) or make_task(text) for text in texts]
    except UserError as error:
        raise UserError(error.what, where=str(path), mend=error.mend) from error
    return found
