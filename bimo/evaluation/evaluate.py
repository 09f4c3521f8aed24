"""`bimo evaluate`: how well a model does a task, with intervals, beside floors that it must beat and beside others.

One call of the engine answers all prompts; floors are fitted on training rows and answer the same examples; what is
significant is said in one sentence.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import bimo
from bimo.core.settings import Settings
from bimo.engine import EngineSettings, SamplingParams
from bimo.evaluation.answering import Model, Opened, Tell, answers_of, open_for_answers
from bimo.evaluation.asking import Asked, Data, choose_task, examples_from, spread
from bimo.evaluation.judging import Contender, Judge, quality
from bimo.evaluation.outcome import Evaluation, Measure, identity
from bimo.evaluation.rivals import Others, floors_for, named_apart, others_for
from bimo.evaluation.significance import ROUNDS
from bimo.tasks import Metric, Task, TaskExample, task_of
from bimo.tasks.naming import check_answer_length

_PACKAGES = ("sacrebleu", "scikit-learn", "numpy")


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """What is asked, how it is answered, and how it is scored."""

    limit: int = 0
    """At most so many examples, evenly spread over the data; 0: all."""
    fields: dict = field(default_factory=dict)
    """Your names of the task's fields: {"source": "english"}."""
    beams: int = 1
    """Above 1: answers are found by beam search; 1: greedy."""
    length_penalty: float = 1.0
    """Of beam search; above 0 favours long answers."""
    max_tokens: int = 0
    """How long an answer may be; 0: as the task says."""
    metrics: tuple[str, ...] = ()
    """More metrics than the task's own."""
    floors: tuple[str, ...] = ("task",)
    """Floors by name, "task" for those of the task; [] for none."""
    rounds: int = ROUNDS
    """Resamples behind intervals and p-values."""
    seed: int = 0
    """Of the resamples."""

    def problems(self) -> list[str]:
        found = [f"{name} must be at least 0, is {n}" for name, n in self._counts() if n < 0]
        if self.beams < 1:
            found.append(f"beams must be at least 1, is {self.beams}")
        if not 100 <= self.rounds <= 1_000_000:
            found.append(f"rounds must lie in 100 … 1000000, is {self.rounds}")
        if not all(isinstance(text, str) for pair in self.fields.items() for text in pair):
            found.append(f"fields must be names by names, are {self.fields}")
        return found

    def _counts(self) -> list[tuple[str, int]]:
        return [("limit", self.limit), ("max_tokens", self.max_tokens), ("seed", self.seed)]


def evaluate(
    model: Model | str | Path,
    data: Data,
    task: str | Task = "",
    *,
    train: Data = (),
    against: Others = (),
    on_progress: Tell = lambda stage, share: None,
    engine: EngineSettings | None = None,
    **options: Any,
) -> Evaluation:
    """Measure how well a model does a task.

    Args:
        model: A `bimo.LM`, or where a model lies.
        data: Paths of files with the task's fields, or records.
        task: Such as "translation(target='de')", or a task of your own; "": the one that the model was trained for.
        train: Training rows, for the floors: paths or records.
        against: Other models, or evaluation.json files of earlier runs, to compare with.
        on_progress: Told of the stage and the share of it that is done.
        engine: How a model that is given by its path is run.
        options: Fields of `EvaluationSettings`: limit, fields, beams, length_penalty, metrics, floors and more.

    Returns:
        The evaluation: `verdict` says it in one sentence, `scores` are the figures, `save(folder)` writes all.

    Raises:
        UserError: A model, a file, a task, a metric or a setting cannot be used.
    """
    settings = EvaluationSettings.from_dict(options)
    opened = open_for_answers(model, engine)
    chosen, asked, training, notes = _prepared(choose_task(task, opened.tasks), data, train, settings)
    check_answer_length(chosen, opened.engine.model.spec.context_length)
    judge = Judge(_metrics_of(chosen, settings), asked.examples, settings.rounds, settings.seed)
    params = _params(chosen, settings)
    names = [name for given in settings.floors for name in (chosen.floors if given == "task" else [given])]
    floors, left_out = floors_for(names, asked.examples, training, on_progress)
    others = others_for(against, chosen, asked.examples, params, on_progress)
    ours = answers_of(opened, chosen, asked.examples, params, on_progress)
    contenders = [judge.judge(opened.name, "model", ours)]
    for number, rival in enumerate(rivals := named_apart([*floors, *others], opened.name), start=1):
        contenders.append(judge.judge(rival.name, rival.kind, rival.answers))
        on_progress("comparing", number / len(rivals))
    return Evaluation(
        model=opened.name,
        task=task_of(chosen),
        data=asked.names,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        settings=settings.to_dict(),
        measures=tuple(measure_of(metric, asked.examples) for metric in judge.metrics),
        examples=tuple(asked.examples),
        contenders=tuple(contenders),
        sizes={group: {v: len(places) for v, places in own.items()} for group, own in judge.members.items()},
        order=order_of(judge.metrics[0], contenders[0], asked.examples),
        notes=(*notes, *left_out, *_notes(opened, contenders[0])),
    )


def _prepared(
    task: Task, data: Data, train: Data, settings: EvaluationSettings
) -> tuple[Task, Asked, list[TaskExample], list[str]]:
    """The settled task, what is asked, training examples, and notes about them."""
    asked = examples_from(task, data, settings.fields, "data")
    given = [train] if isinstance(train, (str, Path)) else list(train)
    training = examples_from(task, train, settings.fields, "training data") if given else None
    notes = [*asked.notes, *(training.notes if training else ())]
    if not getattr(task, "labels", None):
        task = task.settled(training.examples if training else asked.examples)
        if not training and getattr(task, "labels", None):
            notes.append("The labels are those of the rows that were asked: nothing else names them.")
    examples = spread(asked.examples, settings.limit)
    if len(examples) < len(asked.examples):
        notes.append(f"{len(examples):,} of {len(asked.examples):,} examples, evenly spread.")
    known = {identity(example) for example in training.examples} if training else set()
    leaked = sum(identity(example) in known for example in examples)
    if leaked:
        notes.append(f"{leaked:,} of {len(examples):,} examples stand in the training rows, too: a leak.")
    return task, replace(asked, examples=examples), training.examples if training else [], notes


def _metrics_of(task: Task, settings: EvaluationSettings) -> list[str | Metric]:
    """The task's own, those of the settings, and what is always of use; each once."""
    always = ["calibration_error"] if getattr(task, "labels", None) else ["bits_per_byte", "perplexity"]
    found: list[str | Metric] = list(task.metrics)
    return found + [name for name in dict.fromkeys([*settings.metrics, *always]) if name not in found]


def _params(task: Task, settings: EvaluationSettings) -> SamplingParams:
    return SamplingParams(
        max_tokens=settings.max_tokens or task.max_tokens,
        temperature=0.0,
        beams=settings.beams,
        length_penalty=settings.length_penalty,
    )


def order_of(metric: Metric, ours: Contender, asked: Sequence[TaskExample]) -> tuple[int, ...]:
    """Places of the examples, the best answered first; without those of which nothing is known."""
    found = quality(metric, ours.answers, asked)
    return tuple(int(place) for place in np.argsort(-found, kind="stable") if math.isfinite(found[place]))


def measure_of(metric: Metric, asked: Sequence[TaskExample]) -> Measure:
    """The metric as outcomes name it."""
    signature = getattr(metric, "signature", None)
    return Measure(metric.name, metric.higher_is_better, signature(asked) if callable(signature) else "")


def _notes(opened: Opened, ours: Contender) -> list[str]:
    """What the model could not do."""
    found, n = [], len(ours.answers)
    context = f"the model's context of {opened.engine.model.spec.context_length:,} tokens"
    shortened = sum(answer.how.shortened for answer in ours.answers)
    if shortened:
        found.append(f"{shortened:,} of {n:,} prompts do not fit {context}: their texts were shortened.")
    errors = sum(answer.how.finish_reason == "error" for answer in ours.answers)
    if errors:
        found.append(f"The model could not answer {errors:,} of {n:,} examples: these answers are empty.")
    unseen = sum(answer.how.foresight is None and not answer.how.probabilities for answer in ours.answers)
    if 0 < unseen < n:
        found.append(f"{unseen:,} targets do not fit {context} behind their prompts: likelihoods are without them.")
    unknown = [name for name, value in ours.scores.items() if not math.isfinite(value.value)]
    if unknown:
        found.append(f"Cannot be computed of these answers: {', '.join(unknown)}.")
    if n == 1:
        found.append("One example says nothing of chance: there are no intervals.")
    return found


def _versions() -> dict[str, str]:
    """Of bimo, and of the packages that score where they are installed."""
    found = {"bimo": bimo.__version__}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
