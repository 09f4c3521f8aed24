"""What is asked of a model: its task, and the examples out of files or records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bimo.core.errors import UserError
from bimo.tasks import Task, TaskExample, make_task, task_of
from bimo.tasks.records import read_examples
from bimo.tasks.unknown import UnknownTask

Data = str | Path | Sequence[str | Path] | Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Asked:
    """Examples and what was left out of them.

    Attributes:
        examples: In the order of the data.
        names: Where they came from.
        notes: What was left out, in words.
    """

    examples: list[TaskExample]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def choose_task(task: str | Task, own: Sequence[Task]) -> Task:
    """The task that is meant; a bare name, or none, is that of the model's own tasks.

    Args:
        task: As `make_task` takes it; "": the only one that the model was trained for.
        own: What the model was trained for.

    Raises:
        UserError: There is no such task, or it is not clear which one is meant.
    """
    chosen = _chosen(task, own)
    if isinstance(chosen, UnknownTask):
        chosen.refuse()
    return chosen


def _chosen(task: str | Task, own: Sequence[Task]) -> Task:
    if not isinstance(task, str):
        return make_task(task)
    if not task:
        if len(own) != 1:
            has = ", ".join(map(task_of, own)) or "nothing that it says"
            what = f"which task? This model was trained for {has}"
            raise UserError(what, where="task", mend="Name one, such as --task translation(target='de').")
        return own[0]
    same = [known for known in own if known.name == task.strip()]
    return same[0] if len(same) == 1 else make_task(task)


def examples_from(task: Task, data: Data, fields: Mapping[str, str], what: str) -> Asked:
    """The examples of the task in files, folders, globs, or records; rows that cannot be used are noted.

    Args:
        task: What the records are for.
        data: One or many paths, or records with the task's fields.
        fields: The user's name of a field, by the task's.
        what: What to call the data, in notes and errors.

    Raises:
        UserError: There is no such file, or no row can be used.
    """
    given: list[str | Path | Mapping[str, object]] = [data] if isinstance(data, (str, Path)) else list(data)
    if not given:
        raise UserError("there is nothing in it", where=what, mend="Give files or records.")
    if all(isinstance(one, Mapping) for one in given):
        records: list[Mapping[str, object]] = [one for one in given if isinstance(one, Mapping)]
        return _whole(_from_records(task, records, fields, what), (f"{len(records):,} records",), what, [])
    if not all(isinstance(one, (str, Path)) for one in given):
        raise UserError(f"data are paths or records, not {type(given[0]).__name__}", where=what, mend="Give paths.")
    problems: list[str] = []
    names = [str(one) for one in given]
    found = read_examples(task, names, fields=fields, on_problem=lambda problem: problems.append(str(problem)))
    return _whole(found, tuple(names), what, problems)


def spread(examples: Sequence[TaskExample], limit: int) -> list[TaskExample]:
    """At most so many examples, evenly spread over all: files are often sorted. 0: all."""
    if not 0 < limit < len(examples):
        return list(examples)
    return [examples[i * len(examples) // limit] for i in range(limit)]


def _from_records(
    task: Task, records: Sequence[Mapping[str, object]], fields: Mapping[str, str], what: str
) -> list[TaskExample]:
    found: list[TaskExample] = []
    for number, record in enumerate(records, start=1):
        renamed = {ours: record[theirs] for ours, theirs in fields.items() if theirs in record}
        found += task.examples({**record, **renamed}, f"{what}, record {number}")
    return found


def _whole(found: list[TaskExample], names: tuple[str, ...], what: str, problems: list[str]) -> Asked:
    """Without examples that no tokenizer could read."""
    usable = [example for example in found if _is_text(example)]
    problems += [f"{example.where}: half of a surrogate pair is no text" for example in found if not _is_text(example)]
    if not usable:
        raise UserError(f"no row can be used; the first: {problems[0]}", where=what, mend="Mend the rows.")
    rows = f"{len(problems):,} row{'s' * (len(problems) != 1)}"
    notes = (f"{rows} of the {what} left out; the first: {problems[0]}",) if problems else ()
    return Asked(usable, names, notes)


def _is_text(example: TaskExample) -> bool:
    texts = [example.source, example.target, *(message["content"] for message in example.messages)]
    try:
        return all(text.encode() is not None for text in texts)
    except UnicodeEncodeError:
        return False
