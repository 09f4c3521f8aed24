"""From a user's files to the examples of a task; what cannot be used is named with file and row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from bimo.core.config import DataSettings
from bimo.core.errors import UserError
from bimo.data.documents import Problem, ProblemHandler, UnreadableError
from bimo.data.files import find_files, kind_of
from bimo.data.po import is_po, po_rows
from bimo.data.readers import read_documents
from bimo.data.records import table_rows
from bimo.data.tables import Broken, Row
from bimo.data.tmx import is_tmx, tmx_rows
from bimo.tasks.task import Task, TaskExample

_LIST = "Give a .jsonl, .csv or .parquet file with the fields that the task needs."


def read_examples(
    task: Task,
    paths: Sequence[str],
    *,
    fields: Mapping[str, str] | None = None,
    on_problem: ProblemHandler | None = None,
) -> list[TaskExample]:
    """The examples in files, in their order.

    Args:
        task: What the records are for.
        paths: Files, folders or globs.
        fields: The user's name of a field, by the task's: {"source": "english"}.
        on_problem: Told of each row that is left out. None: the first one is an error.

    Raises:
        UserError: There is no such file, a row cannot be used and nobody is told, or no row can be used.
    """
    tell = on_problem or _refuse
    names = _checked(task, fields or {})
    found: list[TaskExample] = []
    first: Problem | None = None
    for place, record in records_of(paths, tell, _languages_of(task)):
        try:
            found += task.examples({**record, **_renamed(record, names)}, place.where)
        except UserError as error:
            problem = replace(place, what=error.what, mend=error.mend)
            first = first or problem
            tell(problem)
    if not found:
        why = f"; the first: {first.what}" if first else ""
        raise UserError(f"no row can be used{why}", where=", ".join(paths), mend=first.mend if first else _LIST)
    return found


def records_of(
    paths: Sequence[str], tell: ProblemHandler, languages: tuple[str, str] | None = None
) -> Iterator[tuple[Problem, Mapping[str, object]]]:
    """Each record with its place, which says nothing else; a document of plain text has the one field "text".

    Of a translation memory (.tmx) or a message catalogue (.po) those in `languages`, source and target; None: whichever
    come first.
    """
    files = find_files(paths, tell)
    plain = [str(file) for file in files if kind_of(file) == "text" and not (is_tmx(file) or is_po(file))]
    if plain:
        for document in read_documents(plain, DataSettings(), tell):
            yield Problem(document.file, document.row, ""), {"text": document.text}
    for file in files:
        if is_tmx(file) or is_po(file):
            pairs = tmx_rows if is_tmx(file) else po_rows
            yield from _table_records(file, pairs(file, languages), tell)
        elif kind_of(file) != "text":
            yield from _table_records(file, table_rows(file), tell)


def _languages_of(task: Task) -> tuple[str, str] | None:
    """Source and target language of a task that has them, as the translation has."""
    source, target = getattr(task, "source", ""), getattr(task, "target", "")
    return (source, target) if source and target else None


def _table_records(
    file: Path, rows: Iterator[Row], tell: ProblemHandler
) -> Iterator[tuple[Problem, Mapping[str, object]]]:
    try:
        for row, record in rows:
            if isinstance(record, Broken):
                tell(Problem(str(file), row, record.what, record.mend))
            else:
                yield Problem(str(file), row, ""), record
    except UnreadableError as error:
        tell(Problem(str(file), error.row, error.what, error.mend))


def _checked(task: Task, fields: Mapping[str, str]) -> Mapping[str, str]:
    """The user's names; every key must be a field of the task."""
    odd = next((name for name in fields if name not in (*task.fields, "origin", "lang")), None)
    if odd is not None:
        known = ", ".join((*task.fields, "origin", "lang"))
        raise UserError(
            f"the task {task.name!r} has no field {odd!r}", where="fields", mend=f"Known: {known}; write task's: yours."
        )
    return fields


def _renamed(record: Mapping[str, object], names: Mapping[str, str]) -> dict[str, object]:
    return {ours: record[theirs] for ours, theirs in names.items() if theirs in record}


def _refuse(problem: Problem) -> NoReturn:
    raise UserError(problem.what, where=problem.where, mend=problem.mend or "Mend or drop the row.")
