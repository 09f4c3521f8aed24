"""Fine-tuning, wired: records of tasks → rows → a model, new or from a base, whole or beside it → a run directory.

The trainer, its callbacks and what it leaves behind are those of any run (`recipes.py`). Here come the records, what of
the model is trained, and what the run says of itself: which tokens were trained, what could not be used, how the scores
moved, and how much was forgotten.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bimo.core import machine
from bimo.core.artifacts import RunDirectory, append_jsonl
from bimo.core.config import RunSettings, TaskData
from bimo.core.errors import UserError
from bimo.data import Problem
from bimo.evaluation.metrics import bits_per_byte, end_probability
from bimo.examples.preview import preview
from bimo.examples.task_rows import TaskRows
from bimo.interop import save_adapter
from bimo.live import Waiting
from bimo.lm import LM, load, new
from bimo.model.adapting import adapter_in, attach, detach
from bimo.model.lora import merge
from bimo.model.packed import unpack
from bimo.recipes import Outcome, open_run, resume_newest, run_trainer, say, write_lineage
from bimo.tasks import Task, TaskExample, make_task
from bimo.tasks.records import read_examples
from bimo.tokenizer import Tokenizer
from bimo.training import Callback, Trainer, launch
from bimo.training.grouping import grouped, mixed
from bimo.training.losses import loss_by_name
from bimo.training.parallel import in_one_piece, reshard
from bimo.training.rows import TokenRows

_SHOWN_PROBLEMS = 10
_HELD_OUT = 20  # one of so many records, where no validation records are given
_EVALUATED_ROWS = 8  # at once
_GENERAL_ROWS = 32
ADAPTER = "adapter"
"""The folder of a run that holds its adapter, in peft's format."""


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

    train: list[TokenRows]
    valid: list[TokenRows]


def finetune(
    settings: RunSettings, console: Console, *, resume: bool = False, callbacks: Sequence[Callback] = ()
) -> Outcome:
    """A whole run that learns tasks; every process of a run of many calls it with the same settings."""
    with launch.joined(settings.parallel, settings.training.device) as team:
        _check_team(settings, team.alone)
        run = team.by_first(lambda: open_run(settings, resume=resume))
        if not team.first:
            console = Console(quiet=True)
        return _finetune(settings, console, run, resume=resume, callbacks=callbacks)


def _finetune(
    settings: RunSettings, console: Console, run: RunDirectory, *, resume: bool, callbacks: Sequence[Callback]
) -> Outcome:
    team = launch.current()
    told = _Telling(console, run, quiet=resume or not team.first)
    materials = [read_material(data, settings, told) for data in settings.tasks]
    lm = opened(settings, materials, run, console)
    settings = replace(settings, model=lm.model.spec)
    rows = rows_of(materials, lm.tokenizer, settings, told)
    settings = _with_steps(settings, rows)
    if team.first:
        settings.save(run.settings)
        _say_what_is_trained(console, lm, materials, rows)
    before = {} if resume else _measured(lm, rows, settings)
    if settings.adapt.method == "lora":
        generator = torch.Generator().manual_seed(settings.training.seed)
        adapt = settings.adapt
        attach(lm.model, adapt.rank, adapt.alpha, adapt.targets, adapt.dropout, generator)

    def evaluate(_model: nn.Module) -> dict[str, float]:
        return _figures(lm, rows.valid, settings.training.evaluate_rows)

    loss = loss_by_name(settings.training.loss, {})
    trainer = run_trainer(settings, lm, run, console, loss=loss, callbacks=callbacks, evaluate=evaluate)
    if resume:
        resume_newest(trainer, run, console)
    tokens = settings.training.batch_size * _length(settings)
    seed = settings.training.seed
    streams = [grouped(part, tokens, seed) for part in rows.train]
    trainer.fit(mixed(streams, [material.weight for material in materials], seed))
    figures: dict[str, float] = {}
    if not trainer.interrupted:
        with Waiting(console, "measuring on all held-out records", lambda: 0.0):
            figures = _measured(lm, rows, settings)
    with in_one_piece(lm, team):
        team.by_first(lambda: _finish(run, lm, trainer, settings, console, (materials, rows, before, figures)))
    return Outcome(lm, trainer, run, figures)


def _check_team(settings: RunSettings, alone: bool) -> None:
    in_parts = settings.parallel.shard != 1 or settings.parallel.tensor != 1
    if not alone and in_parts and settings.adapt.method == "lora":
        raise UserError(
            "an adapter is trained beside weights that each process holds whole",
            where="parallel",
            mend="Leave shard and tensor at 1: parallel.data shares out the rows.",
        )


class _Telling:
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


def read_material(data: TaskData, settings: RunSettings, told: _Telling) -> Material:
    """The records of a task; where none are given to measure on, a share is held out by a hash of what is read."""
    task = make_task(data.task)
    on_problem = None if settings.adapt.on_bad_row == "stop" else told.problem
    train = read_examples(task, data.train, fields=data.fields, on_problem=on_problem)
    task = task.settled(train)
    if data.valid:
        valid = read_examples(task, data.valid, fields=data.fields, on_problem=on_problem)
    else:
        held = [_hash(example) % _HELD_OUT == 0 for example in train]
        valid = [example for example, out in zip(train, held, strict=True) if out] or train[:1]
        train = [example for example, out in zip(train, held, strict=True) if not out]
    known = {_hash(example) for example in valid}
    kept = [example for example in train if _hash(example) not in known]
    if len(kept) < len(train):
        count = len(train) - len(kept)
        what = f"{count} records of {task.name} stand among those to measure on, and are not trained on"
        told("overlap", what=what, count=count)
    if not kept:
        raise UserError(
            "no record is left to train on", where=", ".join(data.train), mend="Give more records, or others as valid."
        )
    return Material(task, kept, valid, data.weight)


def _hash(example: TaskExample) -> int:
    """Of what is read and said; both directions of a pair have the same."""
    words = "\0".join(sorted((example.source, example.target))) if example.source else example.target
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "big")


def opened(settings: RunSettings, materials: Sequence[Material], run: RunDirectory, console: Console) -> LM:
    """The model that the run begins with, and its tokenizer, also in the run's folder."""
    if settings.adapt.base:
        lm = load(settings.adapt.base)
        unpack(lm.model)
        say(console, f"base: {settings.adapt.base}, {lm.model.n_parameters():,} parameters")
    else:
        lm = new(settings.model, _tokenizer(settings, materials, run, console), seed=settings.training.seed)
    lm.tokenizer.save(run.path)
    lm.source = None
    lm.tasks = [material.task for material in materials]
    return lm


def _tokenizer(
    settings: RunSettings, materials: Sequence[Material], run: RunDirectory, console: Console
) -> Tokenizer:
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


def rows_of(materials: Sequence[Material], tokenizer: Tokenizer, settings: RunSettings, told: _Telling) -> Rows:
    """Rows of ids to train and to measure on."""
    found = Rows([], [])
    for material in materials:
        for examples, into in ((material.train, found.train), (material.valid, found.valid)):
            into.append(TaskRows(tokenizer, _length(settings), settings.adapt.on_long_row, told).rows(examples))
    return found


def _length(settings: RunSettings) -> int:
    """Tokens of a row at most."""
    return min(settings.adapt.context_length or settings.model.context_length, settings.model.context_length)


def _with_steps(settings: RunSettings, rows: Rows) -> RunSettings:
    """Epochs as updates."""
    if not settings.adapt.epochs:
        return settings
    tokens = settings.training.batch_size * _length(settings)
    batches = sum(len(grouped(part, tokens, 0)) for part in rows.train)
    training = replace(settings.training, steps=max(1, round(settings.adapt.epochs * batches)))
    return replace(settings, training=training)


def _say_what_is_trained(console: Console, lm: LM, materials: Sequence[Material], rows: Rows) -> None:
    """Counts, and one row of each task with its trained tokens in colour."""
    for material, part in zip(materials, rows.train, strict=True):
        say(
            console,
            f"{material.task.name}: {len(material.train):,} records to train on, {len(material.valid):,} to measure "
            f"on; {len(part):,} rows of {len(part.ids) / len(part):.0f} tokens, {part.trained.mean():.0%} trained",
        )
        ids, marks = (array[part.starts[0] : part.starts[1]].tolist() for array in (part.ids, part.trained))
        console.print("[dim]read[/dim] and [bold green]trained[/bold green]:", preview(ids, marks, lm.tokenizer))


def _figures(lm: LM, parts: Sequence[TokenRows], most: int = 0) -> dict[str, float]:
    """Loss, bits per byte of the answers, and the probability of their end; with `most`, on that many rows of each."""
    team, token_bytes = launch.current(), torch.from_numpy(lm.tokenizer.token_bytes())
    figures: list[dict[str, float]] = []
    for part in parts:
        keep = torch.zeros(len(part), dtype=torch.bool)
        keep[:: max(1, len(part) // most) if most else 1] = True
        chosen = part.chosen(keep.numpy())
        batches = list(chosen.in_order(_EVALUATED_ROWS))
        found = bits_per_byte(lm.model.eval(), map(team.share, batches), token_bytes, team.total)
        ends = end_probability(lm.model, batches, lm.tokenizer.end_ids)
        figures.append({"bits_per_byte": found["bits_per_byte"], "loss": found["valid_loss"], "end_probability": ends})
    reshard(lm.model)
    mean = {key: sum(found[key] for found in figures) / len(figures) for key in figures[0]}
    if len(parts) == 1:
        return mean
    each = {f"loss {n + 1} {task.name}": figures[n]["loss"] for n, task in enumerate(lm.tasks)}
    return mean | each


def _measured(lm: LM, rows: Rows, settings: RunSettings) -> dict[str, float]:
    """All held-out records, and text of another kind."""
    machine.set_threads(settings.training.threads or machine.usable_cores())
    figures = _figures(lm, rows.valid)
    if settings.adapt.general_text:
        general = lm.rows_of([Path(path) for path in settings.adapt.general_text], None, "general_text")
        batches = [batch for batch, _ in zip(general.in_order(4), range(_GENERAL_ROWS // 4), strict=False)]
        token_bytes = torch.from_numpy(lm.tokenizer.token_bytes())
        found = bits_per_byte(lm.model.eval(), batches, token_bytes)
        figures["general_bits_per_byte"] = found["bits_per_byte"]
    return figures


def _finish(
    run: RunDirectory,
    lm: LM,
    trainer: Trainer,
    settings: RunSettings,
    console: Console,
    found: tuple[Sequence[Material], Rows, dict[str, float], dict[str, float]],
) -> None:
    """Write the result, the adapter, the lineage and the last lines of the logs."""
    materials, rows, before, after = found
    if settings.adapt.method == "lora":
        _merge(run, lm, settings, rows, console)
    lm.save(run.model)
    data = {f"{n + 1} {m.task.name}": f"{len(m.train)} records" for n, m in enumerate(materials)}
    write_lineage(run, lm, trainer, settings, data | {"base": settings.adapt.base})
    state = trainer.state
    if trainer.stop_requested:
        run.log_event("stopped", step=state.step, why=trainer.stop_requested)
    if after:
        append_jsonl(run.metrics, {"step": state.step, "tokens": state.tokens, "final": True, **after})
        run.log_event("finished", step=state.step, before=before, after=after)
        for name, value in after.items():
            was = f"{before[name]:.4f} → " if name in before else ""
            say(console, f"{name.replace('_', ' ')}: {was}{value:.4f}")


@torch.no_grad()
def _merge(run: RunDirectory, lm: LM, settings: RunSettings, rows: Rows, console: Console) -> None:
    """The adapter in a folder of its own, and added to the weights in float32; what that changes is measured."""
    batch = next(iter(rows.valid[0].in_order(2)))
    beside = lm.model.eval()(batch.ids)
    save_adapter(run.path / ADAPTER, lm.model, adapter_in(lm.model, settings.name), settings.adapt.base)
    merge(lm.model, detach(lm.model, settings.name))
    difference = float((lm.model(batch.ids) - beside).abs().max())
    run.log_event("merged", largest_difference=difference, largest_logit=float(beside.abs().max()))
    say(console, f"adapter: {run.path / ADAPTER}; merged, no logit differs by more than {difference:.1e}")
