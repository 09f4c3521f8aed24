"""Fine-tuning, wired: records of tasks → rows → a model, new or from a base, whole or beside it → a run directory.

The trainer, its callbacks and what it leaves behind are those of any run (`recipes.py`). Here come the records, what of
the model is trained, and what the run says of itself: which tokens were trained, what could not be used, how the scores
moved, and how much was forgotten.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from bimo.batching import batches_of, with_batches
from bimo.core import machine
from bimo.core.artifacts import RunDirectory, append_jsonl
from bimo.core.batch import Batch
from bimo.core.config import RunSettings
from bimo.core.errors import UserError
from bimo.evaluation.metrics import bits_per_byte, end_probability
from bimo.examples.preview import preview
from bimo.interop import save_adapter
from bimo.interop.adapter_writing import names_of
from bimo.live import Waiting
from bimo.lm import LM, new
from bimo.materials import Material, Rows, Telling, read_materials, rows_of, tokenizer_of
from bimo.model.adapting import adapter_in, attach, detach, unadapted
from bimo.model.heads import attach_head, detach_head
from bimo.model.lora import merge
from bimo.recipes import Outcome, base_of, open_run, resume_newest, run_trainer, say, write_lineage
from bimo.scoring import scores_of
from bimo.tasks.classification import labels_of
from bimo.tasks.naming import check_answer_length
from bimo.training import Callback, Trainer, launch
from bimo.training.losses import DirectPreference, LabelLoss, Loss, Preference, loss_by_name
from bimo.training.losses.preference import Reference
from bimo.training.pairs import PairRows
from bimo.training.parallel import in_one_piece, reshard
from bimo.training.rows import TokenRows

_EVALUATED_ROWS = 8  # at once
_GENERAL_ROWS = 32
ADAPTER = "adapter"
"""The folder of a run that holds its adapter, in peft's format."""


def finetune(
    settings: RunSettings, console: Console, *, resume: bool = False, callbacks: Sequence[Callback] = ()
) -> Outcome:
    """A whole run that learns tasks; every process of a run of many calls it with the same settings."""
    with launch.joined(settings.parallel, settings.training.device) as team:
        _check_team(settings, team.alone)
        run = team.by_first(lambda: open_run(settings, resume=resume))
        if not team.first:
            console = Console(quiet=True)
        if settings.adapt.method != "full" and not settings.adapt.base:
            raise UserError(
                f"the method is {settings.adapt.method}, and there is no base to begin with",
                where="adapt.base",
                mend="Name a model: --adapt.base model.gguf.",
            )
        return _finetune(settings, console, run, resume=resume, callbacks=callbacks)


def _finetune(
    settings: RunSettings, console: Console, run: RunDirectory, *, resume: bool, callbacks: Sequence[Callback]
) -> Outcome:
    team = launch.current()
    told = Telling(console, run, quiet=resume or not team.first)
    materials = read_materials(settings, told)
    lm = opened(settings, materials, run, console)
    settings = replace(settings, model=lm.model.spec)
    loss = loss_by_name(settings.training.loss, {})
    if settings.adapt.label_head and isinstance(loss, Preference):
        raise UserError(
            f"a head of labels has no answers to compare, and {settings.training.loss} compares two",
            where="adapt.label_head",
            mend="Leave out one of the two.",
        )
    rows = rows_of(materials, lm.tokenizer, settings, told, in_pairs=isinstance(loss, Preference))
    settings, why = with_batches(settings, rows, lm.model)
    batches = batches_of(settings, rows, materials)
    settings = _with_steps(settings, len(batches))
    if team.first:
        settings.save(run.settings)
        _say_what_is_trained(console, lm, materials, rows, label_head=settings.adapt.label_head)
        if why:
            say(console, f"batches are {why}")
    if isinstance(loss, DirectPreference):
        loss = replace(loss, reference=_reference(lm.model, settings))
    generator = torch.Generator().manual_seed(settings.training.seed)
    if settings.adapt.label_head:
        loss = LabelLoss(attach_head(lm.model, _n_labels(materials), generator))
    before = {} if resume else _measured(lm, rows, settings, loss)
    if settings.adapt.base and team.first and not resume and not settings.adapt.label_head:
        before |= scores_of(lm, materials, settings.adapt.scored_answers, console)
    _choose_what_is_trained(lm.model, settings, generator)

    def evaluate(_model: nn.Module) -> dict[str, float]:
        return _figures(lm, rows.valid, loss, settings.training.evaluate_rows)

    trainer = run_trainer(settings, lm, run, console, loss=loss, callbacks=callbacks, evaluate=evaluate)
    if resume:
        resume_newest(trainer, run, console)
    trainer.fit(batches)
    figures: dict[str, float] = {}
    if not trainer.interrupted:
        with Waiting(console, "measuring on all held-out records", lambda: 0.0):
            figures = _measured(lm, rows, settings, loss)
    with in_one_piece(lm, team):
        team.by_first(lambda: _finish(run, lm, trainer, settings, console, (materials, rows, before, figures)))
    return Outcome(lm, trainer, run, figures)


def _n_labels(materials: Sequence[Material]) -> int:
    """How many labels a head has.

    Raises:
        UserError: There is no task of labels, or there is another one.
    """
    if len(materials) == 1 and labels_of([materials[0].task]):
        return len(labels_of([materials[0].task]))
    names = ", ".join(material.task.name for material in materials)
    raise UserError(
        f"a head of labels is for the task classification alone, the tasks are {names}",
        where="adapt.label_head",
        mend="Leave it out: then labels are said as words.",
    )


def _choose_what_is_trained(model: Any, settings: RunSettings, generator: torch.Generator) -> None:
    """Freeze what stays, and add what is trained beside it; a head of labels is always trained."""
    adapt = settings.adapt
    if adapt.method == "lora":
        names_of(model, adapt.base)  # not only at the end
        attach(model, adapt.rank, adapt.alpha, adapt.targets, adapt.dropout, generator)
    elif adapt.method == "frozen":
        model.requires_grad_(False)
    if adapt.label_head:
        model.label_head.requires_grad_(True)


def _check_team(settings: RunSettings, alone: bool) -> None:
    in_parts = settings.parallel.shard != 1 or settings.parallel.tensor != 1
    if not alone and in_parts and settings.adapt.method == "lora":
        raise UserError(
            "an adapter is trained beside weights that each process holds whole",
            where="parallel",
            mend="Leave shard and tensor at 1: parallel.data shares out the rows.",
        )


def opened(settings: RunSettings, materials: Sequence[Material], run: RunDirectory, console: Console) -> LM:
    """The model that the run begins with, and its tokenizer, also in the run's folder."""
    if settings.adapt.base:
        lm = base_of(settings, console)
    else:
        lm = new(settings.model, tokenizer_of(settings, materials, run, console), seed=settings.training.seed)
    lm.tokenizer.save(run.path)
    lm.tasks = [material.task for material in materials]
    for task in lm.tasks:
        check_answer_length(task, lm.model.spec.context_length)
    return lm


def _with_steps(settings: RunSettings, batches: int) -> RunSettings:
    """Epochs of so many batches as updates."""
    if not settings.adapt.epochs:
        return settings
    training = replace(settings.training, steps=max(1, round(settings.adapt.epochs * batches)))
    return replace(settings, training=training)


def _reference(model: Any, settings: RunSettings) -> Reference:
    """What the model was when the run began: itself without its additions, or a copy."""
    kept = model if settings.adapt.method == "lora" else copy.deepcopy(model).requires_grad_(False).eval()

    def read(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        was_training = kept.training
        kept.to(batch.ids.device).eval()  # the copy was made before the trainer chose a device
        try:
            with unadapted(kept):
                return kept.hidden(batch.ids, positions=batch.positions, documents=batch.documents), kept.lm_head.weight
        finally:
            kept.train(was_training)

    return read


def _say_what_is_trained(
    console: Console, lm: LM, materials: Sequence[Material], rows: Rows, *, label_head: bool
) -> None:
    """Counts, and one row of each task with its trained tokens in colour."""
    for material, part in zip(materials, rows.train, strict=True):
        table = part.rows if isinstance(part, PairRows) else part
        say(
            console,
            f"{material.task.name}: {len(material.train):,} records to train on, {len(material.valid):,} to measure; "
            f"{len(table):,} rows of {len(table.ids) / len(table):.0f} tokens, {table.trained.mean():.0%} trained",
        )
        ids, marks = (array[table.starts[0] : table.starts[1]].tolist() for array in (table.ids, table.trained))
        shown = preview(ids, marks, lm.tokenizer, labels_of([material.task]) if label_head else ())
        console.print("[dim]read[/dim] and [bold green]trained[/bold green]:", shown)


def _figures(lm: LM, parts: Sequence[TokenRows | PairRows], loss: Loss, most: int = 0) -> dict[str, float]:
    """What is measured of each task, and its mean; with `most`, on that many rows of each."""
    lm.model.eval()
    figures = []
    for part in parts:
        keep = np.zeros(len(part), np.bool_)
        keep[:: max(1, len(part) // most) if most else 1] = True
        chosen = part.chosen(keep)
        if isinstance(chosen, PairRows):
            assert isinstance(loss, Preference), "pairs are made for such a loss"
            figures.append(_figures_of_pairs(lm, chosen, loss))
        elif isinstance(loss, LabelLoss):
            figures.append(_figures_of_labels(lm, chosen, loss))
        else:
            figures.append(_figures_of_answers(lm, chosen))
    reshard(lm.model)
    mean = {key: sum(found[key] for found in figures) / len(figures) for key in figures[0]}
    if len(parts) == 1:
        return mean
    return mean | {f"loss {n + 1} {task.name}": figures[n]["loss"] for n, task in enumerate(lm.tasks)}


def _figures_of_answers(lm: LM, rows: TokenRows) -> dict[str, float]:
    """Loss, bits per byte of the answers, and the probability of their end."""
    team, token_bytes = launch.current(), torch.from_numpy(lm.tokenizer.token_bytes())
    batches = list(rows.in_order(_EVALUATED_ROWS))
    found = bits_per_byte(lm.model, map(team.share, batches), token_bytes, team.total)
    ends = end_probability(lm.model, batches, lm.tokenizer.end_ids)
    return {"bits_per_byte": found["bits_per_byte"], "loss": found["valid_loss"], "end_probability": ends}


@torch.no_grad()
def _figures_of_pairs(lm: LM, rows: PairRows, loss: Preference) -> dict[str, float]:
    """Loss, and the share of pairs in which the better answer has gained."""
    total, right = 0.0, 0
    model, cap = lm.model, lm.model.spec.logit_softcap
    for batch in rows.in_order(_EVALUATED_ROWS):
        batch = batch.to(model.lm_head.weight.device)
        hidden = model.hidden(batch.ids)
        total += float(loss.sum(hidden, model.lm_head.weight, batch, cap))
        right += int((loss.margins(hidden, model.lm_head.weight, batch, cap) > 0).sum())
    return {"loss": total / len(rows), "preferred": right / len(rows)}


@torch.no_grad()
def _figures_of_labels(lm: LM, rows: TokenRows, loss: LabelLoss) -> dict[str, float]:
    """Loss, and the share of rows that get their label."""
    total, right = 0.0, 0
    for batch in rows.in_order(_EVALUATED_ROWS):
        batch = batch.to(lm.model.lm_head.weight.device)
        hidden = lm.model.hidden(batch.ids)
        total += float(loss.sum(hidden, lm.model.lm_head.weight, batch))
        right += loss.right(hidden, batch)
    return {"loss": total / len(rows), "accuracy": right / len(rows)}


def _measured(lm: LM, rows: Rows, settings: RunSettings, loss: Loss) -> dict[str, float]:
    """All held-out records, and text of another kind."""
    machine.set_threads(settings.training.threads or machine.usable_cores())
    figures = _figures(lm, rows.valid, loss)
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
    if settings.adapt.label_head:
        lm.label_head = detach_head(lm.model)
    if settings.adapt.method == "lora":
        _merge(run, lm, settings, rows, console)
    lm.model.requires_grad_(True)
    if after:
        after |= scores_of(lm, materials, settings.adapt.scored_answers, console, show=True)
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
    batch = next(iter(rows.valid[0].in_order(2))).to(lm.model.lm_head.weight.device)
    beside = lm.model.eval()(batch.ids)
    save_adapter(run.path / ADAPTER, lm.model, adapter_in(lm.model, settings.name), settings.adapt.base)
    merge(lm.model, detach(lm.model, settings.name))
    difference = float((lm.model(batch.ids) - beside).abs().max())
    run.log_event("merged", largest_difference=difference, largest_logit=float(beside.abs().max()))
    say(console, f"adapter: {run.path / ADAPTER}; merged, no logit differs by more than {difference:.1e}")
