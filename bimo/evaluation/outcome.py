"""What an evaluation found: a verdict in one sentence, JSON with every answer, and an earlier one read again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bimo.core.artifacts import write_text
from bimo.core.errors import UserError
from bimo.core.json_files import finite, read_json
from bimo.evaluation.answer import Answer
from bimo.evaluation.judging import Contender
from bimo.evaluation.significance import Difference, Value, figure
from bimo.tasks.task import TaskExample

JSON_NAME, PAGE_NAME = "evaluation.json", "evaluation.html"
_LARGEST = 2**31  # bytes of an earlier evaluation


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric that was used.

    Attributes:
        name: As tables show it.
        higher_is_better: Which way is up.
        signature: How exactly it was computed, where it says so.
    """

    name: str
    higher_is_better: bool
    signature: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was found about the answers of one model.

    Attributes:
        model: Its name.
        task: As text that `make_task` reads.
        data: Where the examples came from.
        created: When, ISO 8601.
        versions: Of bimo and of the packages that scored.
        settings: As given.
        measures: The metrics; the first one decides.
        examples: What was asked.
        contenders: The model first, then floors and other models.
        sizes: Number of examples for each value of each group.
        order: Places of the examples, the best answers of the model first; those whose score is unknown are left out.
        notes: What should be known beside the figures.
    """

    model: str
    task: str
    data: tuple[str, ...]
    created: str
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    measures: tuple[Measure, ...]
    examples: tuple[TaskExample, ...]
    contenders: tuple[Contender, ...]
    sizes: Mapping[str, Mapping[str, int]]
    order: tuple[int, ...]
    notes: tuple[str, ...]

    @property
    def ours(self) -> Contender:
        """The model."""
        return self.contenders[0]

    @property
    def scores(self) -> dict[str, float]:
        """The model's scores by metric."""
        return {name: value.value for name, value in self.ours.scores.items()}

    @property
    def beaten(self) -> list[str]:
        """Floors below the model in the deciding metric, with p < 0.05."""
        return [c.name for c in self._others("floor") if self._stands(c) == "beats"]

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        measure = self.measures[0]
        value = self.ours.scores[measure.name]
        start = f"{measure.name} {interval(value)} on {len(self.examples):,} example{'s' * (len(self.examples) != 1)}"
        clauses = [self._clause(list(self._others("floor")), "no floor was measured")]
        clauses += [self._clause([other], "") for other in self._others("other model")]
        return f"{start}: {'; '.join(clauses)}"

    def _others(self, kind: str) -> list[Contender]:
        return [contender for contender in self.contenders if contender.kind == kind]

    def _stands(self, other: Contender) -> str:
        """How the model stands to another contender in the deciding metric, as a verb."""
        found = other.differences[self.measures[0].name]
        if math.isnan(found.p):
            return "cannot be compared with"
        if not found.significant:
            return "does not differ significantly from"
        return "beats" if found.better else "is beaten by"

    def _clause(self, others: Sequence[Contender], without: str) -> str:
        """For example: beats copy and nearest (p < 0.05), does not differ significantly from lead (p = 0.31)."""
        named: dict[str, list[str]] = {}
        for other in others:
            verb, p = self._stands(other), other.differences[self.measures[0].name].p
            named.setdefault(verb, []).append(f"{other.name} (p = {p:.2g})" if "differ" in verb else other.name)
        certain = {"beats": " (p < 0.05)", "is beaten by": " (p < 0.05)"}
        parts = [f"{verb} {listed(names)}{certain.get(verb, '')}" for verb, names in named.items()]
        return ", ".join(parts) or without

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every answer among them."""
        rows = [
            {
                "id": identity(example),
                "where": example.where,
                "group": dict(example.group),
                "source": example.source,
                "target": example.target,
                "answers": {contender.name: contender.answers[place].to_dict() for contender in self.contenders},
            }
            for place, example in enumerate(self.examples)
        ]
        found = {name: getattr(self, name) for name in ("model", "task", "created")}
        found |= {"verdict": self.verdict, "data": list(self.data), "versions": dict(self.versions)}
        found |= {"settings": dict(self.settings), "notes": list(self.notes)}
        found |= {"metrics": [asdict(measure) for measure in self.measures]}
        found |= {"contenders": [_plain(contender) for contender in self.contenders], "groups": _copied(self.sizes)}
        return found | {"examples": rows}

    def save(self, folder: str | Path) -> Path:
        """Write evaluation.json and evaluation.html into a folder, which is made; returns the page.

        Raises:
            UserError: The folder cannot be written to.
        """
        from bimo.evaluation.outcome_page import page_of  # it knows this class

        folder = Path(folder)
        text = json.dumps(finite(self.to_dict()), indent=1, ensure_ascii=False)
        write_text(folder / JSON_NAME, text + "\n")
        write_text(folder / PAGE_NAME, page_of(self))
        return folder / PAGE_NAME


def identity(example: TaskExample) -> str:
    """Of what is asked and what is right: the same for the same example, wherever it stands."""
    asked = json.dumps([[dict(message) for message in example.messages], example.target], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def earlier_answers(path: Path, examples: Sequence[TaskExample]) -> tuple[str, list[Answer]]:
    """The model's name and answers in an earlier evaluation, to the same examples in their order.

    Raises:
        UserError: It is no evaluation, or it did not answer some of the examples.
    """
    content = read_json(path, _LARGEST)
    mend = "Give the evaluation.json of the same task and data."
    try:
        name = str(content["model"])
        model = content["contenders"][0]["name"]
        found = {row["id"]: Answer.from_dict(row["answers"][model]) for row in content["examples"]}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError("this is no evaluation that bimo wrote", where=str(path), mend=mend) from error
    missing = [example.where for example in examples if identity(example) not in found]
    if missing:
        what = f"it did not answer {len(missing)} of the {len(examples)} examples, such as {missing[0]}"
        raise UserError(what, where=str(path), mend=mend)
    return name, [found[identity(example)] for example in examples]


def interval(value: Value) -> str:
    """34.2 (95 %: 32.9 to 35.5), for a person."""
    if math.isnan(value.low):
        return figure(value.value)
    return f"{figure(value.value)} (95 %: {figure(value.low)} to {figure(value.high)})"


def listed(names: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _plain(contender: Contender) -> dict[str, Any]:
    scores: dict[str, Any] = {name: _dict(value) for name, value in contender.scores.items()}
    differences = {name: _dict(found) for name, found in contender.differences.items()}
    groups = {
        group: {value: {name: _dict(score) for name, score in own.items()} for value, own in values.items()}
        for group, values in contender.groups.items()
    }
    found = {"name": contender.name, "kind": contender.kind, "scores": scores, "groups": groups}
    return found | ({"model_less_this": differences} if differences else {})


def _dict(found: Value | Difference) -> dict[str, Any]:
    return asdict(found)


def _copied(sizes: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {group: dict(values) for group, values in sizes.items()}
