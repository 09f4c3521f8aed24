"""Who else answers the same examples: floors, other models, and models of earlier evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bimo.core.errors import UserError
from bimo.engine import SamplingParams
from bimo.evaluation.answering import Model, Tell, answers_of, open_for_answers
from bimo.evaluation.floors import make_floor
from bimo.evaluation.judging import Kind
from bimo.evaluation.outcome import earlier_answers
from bimo.tasks import Task, TaskExample

Others = Model | str | Path | Sequence[Model | str | Path]


@dataclass(frozen=True, slots=True)
class Rival:
    """Answers that the model's are held against.

    Attributes:
        name: Of who gave them.
        kind: floor or other model.
        answers: One for each example.
    """

    name: str
    kind: Kind
    answers: Sequence[str]


def floors_for(
    names: Sequence[str], asked: Sequence[TaskExample], training: Sequence[TaskExample], tell: Tell
) -> tuple[list[Rival], list[str]]:
    """The answers of floors, and a note about those that need training rows where there are none.

    Raises:
        UserError: A floor is unknown, or a package that it needs is not installed.
    """
    found, untrained = [], []
    for number, (name, floor) in enumerate([(name, make_floor(name)) for name in names]):
        tell(f"the floor {name}", number / len(names))
        if floor.needs_training and not training:
            untrained.append(floor.name)
            continue
        floor.fit(training)
        found.append(Rival(floor.name, "floor", floor.answer(asked)))
        tell(f"the floor {name}", 1.0)
    note = f"Left out without training rows (--train FILES): {', '.join(untrained)}."
    return found, [note] if untrained else []


def others_for(
    against: Others, task: Task, asked: Sequence[TaskExample], params: SamplingParams, tell: Tell
) -> list[Rival]:
    """The answers of other models, which answer now or have answered in an evaluation.json.

    Raises:
        UserError: A model cannot be opened, or a file answered other examples.
    """
    listed = list(against) if isinstance(against, Sequence) and not isinstance(against, str) else [against]
    earlier = {}
    for place, other in enumerate(listed):  # files first: they may be wrong, and the work of models is long
        if isinstance(other, (str, Path)) and str(other).endswith(".json"):
            if not Path(other).is_file():
                raise UserError("no such file", where=str(other), mend="Name an evaluation.json, or a model.")
            name, answers = earlier_answers(Path(other), asked)
            earlier[place] = Rival(f"{name}, earlier", "other model", answers)
    found = []
    for place, other in enumerate(listed):
        if place not in earlier:
            opened = open_for_answers(other)
            earlier[place] = Rival(opened.name, "other model", answers_of(opened, task, asked, params, tell))
        found.append(earlier[place])
    return found


def named_apart(rivals: Sequence[Rival], taken: str) -> list[Rival]:
    """The same with names that nobody else has."""
    names, found = {taken}, []
    for rival in rivals:
        name, number = rival.name, 1
        while name in names:
            number += 1
            name = f"{rival.name} ({number})"
        names.add(name)
        found.append(replace(rival, name=name))
    return found
