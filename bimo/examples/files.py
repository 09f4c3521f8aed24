"""Examples out of files: documents of plain text, records of tables; what cannot be used is left out and told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bimo.core.config import DataSettings
from bimo.core.errors import UserError
from bimo.data.documents import Problem, UnreadableError
from bimo.data.files import ACCEPTED, KINDS, find_files, kind_of
from bimo.data.readers import read_documents
from bimo.data.records import table_rows
from bimo.data.tables import Broken
from bimo.examples.fields import Content, Fields
from bimo.training.inputs import Tell

_TOLD = 10  # problems that are told one by one


def file_examples(paths: Sequence[Path], tell: Tell) -> Iterator[tuple[str, Content]]:
    """Examples of files and folders, with file and row.

    Raises:
        UserError: A path gives no file, a file's kind is unknown, or nothing can be used.
    """
    problems = _Problems(tell)
    files = find_files([str(path) for path in paths], problems.add)
    for file in files:
        if Path(file.name.removesuffix(".gz")).suffix.lower() not in KINDS:
            raise UserError("this kind of file is not known", where=str(file), mend=f"Accepted are {ACCEPTED}.")
    plain = [str(file) for file in files if kind_of(file) == "text"]
    if plain:
        for document in read_documents(plain, DataSettings(), problems.add):
            yield f"{document.file}, line {document.row}", document.text
    for file in files:
        if kind_of(file) != "text":
            yield from _table_examples(file, problems)
    problems.finish()


class _Problems:
    """Tells the first problems one by one, and of the others how many they are."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.count = tell, 0

    def add(self, problem: Problem) -> None:
        self.count += 1
        if self.count <= _TOLD:
            self.tell("left out", what=str(problem), file=problem.file, row=problem.row)

    def finish(self) -> None:
        if self.count > _TOLD:
            self.tell("left out", what=f"{self.count - _TOLD} more problems in these files", count=self.count)


def _table_examples(file: Path, problems: _Problems) -> Iterator[tuple[str, Content]]:
    """The rows of a table that can be used. The fields are settled by the first of them."""
    fields: Fields | None = None
    refusal: UserError | None = None
    try:
        for row, record in table_rows(file):
            where = Problem(str(file), row, "").where
            if isinstance(record, Broken):
                problems.add(Problem(str(file), row, record.what, record.mend))
                continue
            try:
                fields = fields or Fields.of(record, where)
                content = fields.content(record, where)
            except UserError as error:
                refusal = error
                if fields is None:
                    break
                problems.add(Problem(str(file), row, error.what, error.mend))
                continue
            yield where, content
    except UnreadableError as error:
        problems.add(Problem(str(file), error.row, error.what, error.mend))
    if fields is None and refusal is not None:
        raise refusal
