"""From answers to scores: every metric with its interval, for each group, and the difference between two contenders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bimo.core.errors import UserError
from bimo.evaluation.answer import Answer
from bimo.evaluation.scores import make_metric
from bimo.evaluation.significance import ROUNDS, Difference, Value, difference_of, value_of
from bimo.tasks.task import Metric, TaskExample

_MOST_VALUES = 20  # of a group that are shown, the most frequent ones
Kind = Literal["model", "floor", "other model"]
GroupScores = Mapping[str, Mapping[str, Mapping[str, Value]]]


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who answered, and what the answers score.

    Attributes:
        name: As tables show it.
        kind: model, floor or other model.
        answers: One for each example.
        scores: By the metric's name.
        groups: The same for each value of each group: `groups["origin"]["manual"]["chrF"]`.
        differences: How far the model lies from this contender, by metric; nothing for the model itself.
    """

    name: str
    kind: Kind
    answers: tuple[Answer, ...]
    scores: Mapping[str, Value]
    groups: GroupScores
    differences: Mapping[str, Difference] = field(default_factory=dict)


class Judge:
    """Scores contenders on the same examples.

    Args:
        metrics: By name or as objects; the first one decides.
        examples: What was asked.
        rounds: Resamples for intervals and p-values.
        seed: Of the resamples.

    Raises:
        UserError: A metric is unknown, or two have one name.
    """

    def __init__(
        self, metrics: Sequence[str | Metric], examples: Sequence[TaskExample], rounds: int = ROUNDS, seed: int = 0
    ) -> None:
        self.metrics = [make_metric(metric) for metric in metrics]
        twice = [name for name, count in Counter(metric.name for metric in self.metrics).items() if count > 1]
        if twice:
            raise UserError(f"two metrics are called {twice[0]!r}", where="metrics", mend="Name each once.")
        self.examples, self.rounds, self.seed = list(examples), rounds, seed
        self.members = members_of(self.examples)
        self._model: list[np.ndarray] = []

    def judge(self, name: str, kind: Kind, answers: Sequence[str]) -> Contender:
        """The scores of a contender; the model comes first, and the others are compared with it.

        Raises:
            UserError: A metric or floor breaks its contract.
        """
        if len(answers) != len(self.examples):
            what = f"it gives {len(answers)} answers to {len(self.examples)} examples"
            raise UserError(what, where=name, mend="It must answer each example once.")
        own = tuple(answer if isinstance(answer, Answer) else Answer(str(answer)) for answer in answers)
        rows = [self._rows(metric, own) for metric in self.metrics]
        if kind == "model":
            self._model = rows
        return Contender(
            name,
            kind,
            own,
            {metric.name: self._value(metric, sums) for metric, sums in zip(self.metrics, rows, strict=True)},
            {group: self._of_group(group, values, rows) for group, values in self.members.items()},
            {} if kind == "model" else self._differences(rows),
        )

    def _rows(self, metric: Metric, answers: Sequence[Answer]) -> np.ndarray:
        rows = np.asarray(metric.rows(answers, self.examples), float)
        if rows.ndim != 2 or len(rows) != len(answers):
            raise UserError(
                f"rows gives {rows.shape} for {len(answers)} answers",
                where=f"metric {metric.name}",
                mend="rows gives one line of sums for each answer: (answers, sums).",
            )
        return rows

    def _value(self, metric: Metric, sums: np.ndarray) -> Value:
        return value_of(metric, sums, rounds=self.rounds, seed=self.seed)

    def _of_group(
        self, group: str, values: Mapping[str, Sequence[int]], rows: Sequence[np.ndarray]
    ) -> dict[str, dict[str, Value]]:
        pairs = [
            (metric, sums)
            for metric, sums in zip(self.metrics, rows, strict=True)
            if group != "label" or getattr(metric, "within_label", True)
        ]
        return {
            value: {metric.name: self._value(metric, sums[list(places)]) for metric, sums in pairs}
            for value, places in values.items()
        }

    def _differences(self, rows: Sequence[np.ndarray]) -> dict[str, Difference]:
        return {
            metric.name: difference_of(metric, ours, theirs, rounds=self.rounds, seed=self.seed)
            for metric, ours, theirs in zip(self.metrics, self._model, rows, strict=True)
        }


def members_of(examples: Sequence[TaskExample]) -> dict[str, dict[str, list[int]]]:
    """Which examples have each value of each group; groups of one value, or of one for each example, say nothing."""
    found: dict[str, dict[str, list[int]]] = {}
    for place, example in enumerate(examples):
        for group, value in example.group.items():
            found.setdefault(group, {}).setdefault(value, []).append(place)
    telling = {group: values for group, values in found.items() if 1 < len(values) < max(3, len(examples))}
    return {
        group: dict(sorted(values.items(), key=lambda item: (-len(item[1]), item[0]))[:_MOST_VALUES])
        for group, values in telling.items()
    }


def quality(metric: Metric, answers: Sequence[Answer], examples: Sequence[TaskExample]) -> np.ndarray:
    """How good each answer is for itself, the more the better: float64 (answers,); NaN where nothing is known.

    Among equally good answers the surer one is better when it is right, and worse when it is wrong.
    """
    scores = np.asarray(metric.total(np.asarray(metric.rows(answers, examples), float)), float)
    if not metric.higher_is_better:
        scores = -scores
    sure = np.array([answer.how.probabilities.get(str(answer), 0.0) for answer in answers], float)
    right = np.array([str(answer) == example.target for answer, example in zip(answers, examples, strict=True)], float)
    return scores + 1e-6 * (2 * right - 1) * sure
