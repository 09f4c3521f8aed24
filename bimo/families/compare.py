"""`bimo compare`: the families side by side on a person's own rows, wired.

Equal for all: tokenizer, rows and their order, number of weights, width and depth, optimizer and schedule, seconds of
updates, threads, prompts, greedy answers. Each family chooses its learning rate among the same ones, by trials that are
paid out of its own seconds, and keeps its best weights by held-out rows that were never trained on.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import bimo
from bimo.core import machine
from bimo.core.config import TrainingSettings
from bimo.core.spec import ModelSpec
from bimo.evaluation.asking import Data
from bimo.evaluation.evaluate import measure_of, order_of
from bimo.evaluation.judging import Contender, Judge
from bimo.evaluation.outcome import Evaluation
from bimo.evaluation.rivals import Rival, floors_for, named_apart
from bimo.families.asking import Answers, ask_all
from bimo.families.comparison import Comparison, Member, findings_of
from bimo.families.encoder import Encoder
from bimo.families.encoder_decoder import EncoderDecoder
from bimo.families.family import Common, Family
from bimo.families.gpt import GPTFamily
from bimo.families.material import Encoded, Material, encode, read_material
from bimo.families.peer import need_transformers
from bimo.families.settings import CompareSettings
from bimo.families.turns import Lessons, Run, Tell, train_all
from bimo.model.gpt import GPT
from bimo.tasks import Task, task_of
from bimo.training.grouping import grouped

_TRAINED, _OF_LEFT, _LEAST = 0.6, 0.75, 0.25  # shares of the time for training: of all; of what is left; at least
_ANSWERED = 0.92  # share of the time after which no portion of answers begins
_FEW = 100  # measured examples below which intervals are wide
_FEW_UPDATES = 200  # below which a model from random weights has learned little of anything
_WAITED = 0.3  # seconds of waiting for a core per second: the machine was busy with something else
Say = Callable[[str], None]


def compare(
    data: Data,
    task: str | Task,
    *,
    valid: Data = (),
    on_progress: Tell = lambda stage, share: None,
    on_done: Say = lambda sentence: None,
    **options: Any,
) -> Comparison:
    """Train the families on the same rows for the same time, and compare their answers.

    Args:
        data: Training rows: paths of files with the task's fields, or records.
        task: Such as "translation(target='de')", "summarization", "classification", or a task of your own.
        valid: Rows to measure on; none: a tenth of the training rows, which is not trained on then.
        on_progress: Told of the stage and the share of it that is done.
        on_done: Told in a sentence of each stage that is finished.
        options: Fields of `CompareSettings`: minutes, n_layers, d_model, fields, limit and more.

    Returns:
        The comparison: `advice` says it in one sentence, `scores` are the figures, `save(folder)` writes all.

    Raises:
        UserError: transformers is missing, a row, task or setting cannot be used, or there are too few rows.
    """
    settings = CompareSettings.from_dict(options)
    need_transformers()
    machine.choose_device(settings.device)  # one that is not there is said before the work, not after it
    watch = _Watch(on_done)
    on_progress("reading", 0.0)
    material = read_material(task, data, valid, settings)
    encoded = encode(material, settings)
    judge = Judge([*material.task.metrics], material.measured, settings.rounds, settings.seed)
    watch.done(
        "reading",
        f"{len(material.train):,} rows to train on, {len(material.held_out):,} held out to choose rates by, "
        f"{len(material.measured):,} to measure; {encoded.tokenizer.vocab_size:,} ids, "
        f"context {encoded.context_length}",
    )
    names = [name for given in settings.floors for name in (material.task.floors if given == "task" else [given])]
    floors, _ = floors_for(names, material.measured, [*material.train, *material.held_out], on_progress)
    watch.done("floors", ", ".join(floor.name for floor in floors) or "none")
    families = families_for(_common(material, encoded, settings))
    for family in families:
        on_done(f"{family.name}: {family.n_parameters:,} weights, {family.about}")
    runs = train_all(families, _lessons(encoded, families, settings, watch.passed()), on_progress)
    watch.done("training", "; ".join(f"{run.family.name} {run.seconds + run.trial_seconds:.1f} s" for run in runs))
    answers = ask_all(families, encoded.prompts, watch.start + _ANSWERED * 60 * settings.minutes, on_progress)
    watch.done("answering", f"{len(answers.places):,} of {len(encoded.prompts):,} examples by each family")
    on_progress("scoring", 0.0)
    evaluation = _evaluation(material, runs, answers, floors, settings, judge)
    contenders = evaluation.contenders
    findings = findings_of(judge.metrics[0], contenders, evaluation, settings.rounds, settings.seed)
    members = tuple(_member(run, len(material.train), s) for run, s in zip(runs, answers.seconds, strict=True))
    watch.done("scoring", ", ".join(metric.name for metric in judge.metrics))
    on_progress("scoring", 1.0)
    notes = (*material.notes, *encoded.notes, *_notes(runs, answers, encoded, settings))
    return Comparison(replace(evaluation, notes=notes), members, findings, watch.spent, notes)


def families_for(common: Common) -> list[Family]:
    """Those that can do the task, with equally many weights.

    Raises:
        UserError: A family cannot be made with so many.
    """
    families: list[Family] = [GPTFamily(common), EncoderDecoder(common)]
    return [*families, Encoder(common)] if common.labels else families


class _Watch:
    """Where the time goes, stage by stage."""

    def __init__(self, say: Say) -> None:
        self.say, self.spent = say, dict[str, float]()
        self.start = self.last = time.perf_counter()

    def passed(self) -> float:
        return time.perf_counter() - self.start

    def done(self, stage: str, what: str) -> None:
        now = time.perf_counter()
        self.spent[stage], self.last = now - self.last, now
        self.say(f"{stage}, {self.spent[stage]:.0f} s: {what}")


def _common(material: Material, encoded: Encoded, settings: CompareSettings) -> Common:
    spec = ModelSpec(
        vocab_size=encoded.tokenizer.vocab_size,
        context_length=encoded.context_length,
        n_layers=settings.n_layers,
        d_model=settings.width,
        n_heads=settings.width // 32,
        rope_theta=1000.0,
        dropout=settings.dropout,
    )
    device = machine.choose_device(settings.device).value
    precision = machine.choose_precision(device, "auto").value
    training = TrainingSettings(
        steps=10**9,
        optimizer=settings.optimizer,
        schedule="constant",
        warmup_steps=0,
        watchdog=False,
        execution="eager",
        checkpoint_activations="none",
        precision="bf16" if precision == "bf16" else "fp32",
        device=device,
        threads=settings.threads or machine.usable_cores(),
        seed=settings.seed,
    )
    n_parameters = GPT(spec).n_parameters()
    return Common(
        material.task, encoded.tokenizer, spec, n_parameters, training, precision, material.labels,
        encoded.answer_tokens, settings.beams,
    )  # fmt: skip


def _lessons(encoded: Encoded, families: Sequence[Family], settings: CompareSettings, passed: float) -> Lessons:
    """Batches, rates, and each family's equal share of the time."""
    whole = 60 * settings.minutes
    seconds = max(_LEAST * whole, min(_TRAINED * whole, _OF_LEFT * (whole - passed)))
    labels = any(isinstance(family, Encoder) for family in families)
    usual = TrainingSettings(optimizer=settings.optimizer).learning_rate
    return Lessons(
        grouped(encoded.train, settings.batch(labels), settings.seed),
        list(encoded.held_out.in_order(16)),
        seconds / len(families),
        [usual * rate for rate in dict.fromkeys(settings.rates)],
        encoded.tokenizer.pad_id,
    )


def _evaluation(
    material: Material,
    runs: Sequence[Run],
    answers: Answers,
    floors: Sequence[Rival],
    settings: CompareSettings,
    judge: Judge,
) -> Evaluation:
    """Scores of families and floors on the examples that all have answered."""
    examples = [material.measured[place] for place in answers.places]
    judge = Judge(judge.metrics, examples, settings.rounds, settings.seed)
    contenders: list[Contender] = []
    for run, own in zip(runs, answers.by_family, strict=True):
        contenders.append(judge.judge(run.family.name, "other model" if contenders else "model", own))
    for floor in named_apart(floors, runs[0].family.name):
        chosen = [floor.answers[place] for place in answers.places]
        contenders.append(judge.judge(floor.name, "floor", chosen))
    versions = {"bimo": bimo.__version__}
    versions |= {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
    return Evaluation(
        model=runs[0].family.name,
        task=task_of(material.task),
        data=material.names,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions,
        settings=settings.to_dict(),
        measures=tuple(measure_of(metric, examples) for metric in judge.metrics),
        examples=tuple(examples),
        contenders=tuple(contenders),
        sizes={group: {v: len(places) for v, places in own.items()} for group, own in judge.members.items()},
        order=order_of(judge.metrics[0], contenders[0], examples),
        notes=(),
    )


def _member(run: Run, rows: int, answer_seconds: float) -> Member:
    every = run.seconds + run.trial_seconds
    return Member(
        name=run.family.name,
        about=run.family.about,
        parameters=run.family.n_parameters,
        seconds=every,
        trial_seconds=run.trial_seconds,
        rate=run.rate,
        tried={f"{rate:.3g}": loss for rate, loss in run.tried.items()},
        updates=run.updates,
        examples=run.examples,
        tokens=run.tokens,
        epochs=run.examples / rows,
        held_out=run.best,
        kept=run.kept,
        answer_seconds=answer_seconds,
        waited=run.waited / max(run.seconds, 1e-9),
    )


def _notes(runs: Sequence[Run], answers: Answers, encoded: Encoded, settings: CompareSettings) -> list[str]:
    """What should be known beside the figures."""
    found, n, asked = [], len(answers.places), len(encoded.prompts)
    if n < asked:
        found.append(
            f"The time was over after {n:,} of {asked:,} examples, evenly spread: give more --minutes for all."
        )
    if n < _FEW:
        found.append(f"{n} measured examples are few: only large differences can be shown.")
    empty = sum(encoded.prompts[place] is None for place in answers.places)
    if empty:
        found.append(f"{empty:,} examples do not fit the context: their answers are empty, for all families.")
    fewest = min(run.updates for run in runs)
    if fewest < _FEW_UPDATES:
        updates = f"{fewest:,} update{'s are' if fewest > 1 else ' is'} few"
        found.append(f"{updates}: what leads now may not lead after more --minutes.")
    for run in runs:
        name = run.family.name
        if run.diverged or not run.losses:
            found.append(f"The training of the {name} diverged at its rate: lower --rates.")
        if len(run.tried) > 1 and run.rate in (min(run.tried), max(run.tried)):
            end = "lowest" if run.rate == min(run.tried) else "highest"
            found.append(f"The {name} chose the {end} rate that was tried: a wider --rates may suit it better.")
        if run.kept < 1:
            found.append(f"The {name} was best on held-out rows after {run.kept:.0%} of its time; these weights count.")
        if run.waited > _WAITED * run.seconds:
            found.append(f"Threads of the {name} waited for a core: other programs took a part of its seconds.")
    found.append(
        "Intervals and p-values speak of the examples: another seed (--seed) trains other weights, which moves the "
        "figures, too."
    )
    return found
