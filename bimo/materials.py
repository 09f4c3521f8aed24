"""What a run learns from: the records of its tasks, what is left out of them, and the same as rows of ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from bimo.core.artifacts import RunDirectory
from bimo.core.config import RunSettings, TaskData
from bimo.core.errors import UserError
from bimo.data import Problem
from bimo.examples.task_rows import TaskRows
from bimo.live import Waiting
from bimo.preparing import say
from bimo.tasks import Task, TaskExample, make_task
from bimo.tasks.classification import labels_of
from bimo.tasks.records import read_examples
from bimo.tokenizer import Tokenizer
from bimo.training.pairs import PairRows
from bimo.training.rows import TokenRows

_SHOWN_PROBLEMS = 10
_HELD_OUT = 20  # one of so many records, where no validation records are given


@dataclass(frozen=True)
class Material:
    """A task with its records.

    Attributes:
        task: With what the training records have settled.
        train: To learn from.
        valid: To measure on; none of them is in `train`.
        weight: Its share of the batches.
    """

    task: Task
    train: list[TaskExample]
    valid: list[TaskExample]
    weight: float


@dataclass(frozen=True)
class Rows:
    """The same as rows of ids."""

    train: list[TokenRows | PairRows]
    valid: list[TokenRows | PairRows]


class Telling:
    """Says what happened to the records: the first on the screen, all of it in `events.jsonl`."""

    def __init__(self, console: Console, run: RunDirectory, *, quiet: bool) -> None:
        self.console, self.run, self.quiet = console, run, quiet
        self.count = 0

    def problem(self, problem: Problem) -> None:
        """A record that cannot be used."""
        self("left out", what=str(problem), file=problem.file, row=problem.row)

    def __call__(self, kind: str, /, **facts: Any) -> None:
        if self.quiet:
            return
        self.count += 1
        if self.count <= _SHOWN_PROBLEMS:
            say(self.console, f"{kind}: {facts['what']}")
        elif self.count == _SHOWN_PROBLEMS + 1:
            say(self.console, f"more of this is listed in {self.run.events}")
        self.run.log_event(kind, **facts)


def read_materials(settings: RunSettings, told: Telling) -> list[Material]:
    """The records of all tasks; what is measured on by any of them is learned by none.

    Raises:
        UserError: A task has no files, or no record is left to train on.
    """
    materials = [_read(data, settings, told) for data in settings.tasks]
    known = {_hash(example) for material in materials for example in material.valid}
    return [_without(material, known, told) for material in materials]


def _without(material: Material, known: set[int], told: Telling) -> Material:
    """A task without the training records that are measured on, its own or another task's."""
    kept = [example for example in material.train if _hash(example) not in known]
    name, count = material.task.name, len(material.train) - len(kept)
    if count:
        what = f"{count} records of {name} stand among those to measure on, and are not trained on"
        told("overlap", what=what, count=count)
    if not kept:
        mend = "Give more records, or others as valid."
        raise UserError("no record is left to train on", where=f"tasks: {name}", mend=mend)
    return replace(material, train=kept)


def _read(data: TaskData, settings: RunSettings, told: Telling) -> Material:
    """The records of a task; where none are given to measure on, a share is held out by a hash of what is read."""
    task = make_task(data.task)
    on_problem = None if settings.adapt.on_bad_row == "stop" else told.problem
    paths, valid_paths = data.train or settings.data.paths, data.valid or settings.data.validation_paths
    if not paths:
        mend = "Name files behind the recipe, or under train."
        raise UserError("no file of records was named", where=f"tasks: {task.name}", mend=mend)
    train = read_examples(task, paths, fields=data.fields, on_problem=on_problem)
    task = task.settled(train)
    if valid_paths:
        valid = read_examples(task, valid_paths, fields=data.fields, on_problem=on_problem)
    else:
        held = [_hash(example) % _HELD_OUT == 0 for example in train]
        valid = [example for example, out in zip(train, held, strict=True) if out] or train[:1]
        train = [example for example, out in zip(train, held, strict=True) if not out]
    return Material(task, train, valid, data.weight)


def _hash(example: TaskExample) -> int:
    """Of what is read and said, with the turns before it; both directions of a pair have the same."""
    words = "\0".join(sorted((example.source, example.target))) if example.source else example.target
    before = [message["content"] for message in example.messages[:-1] if message["role"] != "system"]
    words = "\0".join((*before, words))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")


def tokenizer_of(
    settings: RunSettings, materials: Sequence[Material], run: RunDirectory, console: Console
) -> Tokenizer:
    """The tokenizer that the settings name, the one in the run's folder, or one of the records that are trained on."""
    own = settings.tokenizer
    if own.path:
        return Tokenizer.load(own.path)
    if (run.path / "tokenizer.json").exists():
        return Tokenizer.load(run.path)
    examples = [example for material in materials for example in material.train]
    texts = (text for e in examples for text in (*(message["content"] for message in e.messages), e.target))
    with Waiting(console, f"training a tokenizer of {own.vocab_size} ids", lambda: 0.0):
        tokenizer = Tokenizer.train(texts, own.vocab_size)
    if tokenizer.vocab_size < own.vocab_size:
        say(console, f"tokenizer: the records give only {tokenizer.vocab_size} ids, not {own.vocab_size}")
    return tokenizer


def rows_of(
    materials: Sequence[Material], tokenizer: Tokenizer, settings: RunSettings, told: Telling, *, in_pairs: bool
) -> Rows:
    """Rows of ids to train and to measure on; in pairs for a loss that compares two answers."""
    found = Rows([], [])
    for material in materials:
        labels = labels_of([material.task]) if settings.adapt.label_head else ()
        for examples, into in ((material.train, found.train), (material.valid, found.valid)):
            maker = TaskRows(tokenizer, settings.row_length, settings.adapt.on_long_row, told, labels)
            into.append(maker.pairs(examples) if in_pairs else maker.rows(examples))
    return found
