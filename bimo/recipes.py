"""The only wiring: settings → text → tokenizer → shards → model → trainer → a run directory.

Every other part works alone; here they meet. Each function is a stage that prints what it found and leaves its result
in the run directory, so that the next run of the same recipe finds it there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

import bimo
from bimo.core import machine
from bimo.core.artifacts import RunDirectory, append_jsonl, sha256, write_text
from bimo.core.config import RunSettings
from bimo.core.errors import UserError
from bimo.data.addresses import is_address
from bimo.data.loader import Loader, evaluation_batches
from bimo.data.packing import PackedRows
from bimo.data.prepare import Prepared, open_prepared
from bimo.evaluation.metrics import bits_per_byte
from bimo.live import Figures, LiveView, PlainView, Waiting
from bimo.lm import LM, load, new
from bimo.model.packed import unpack
from bimo.preparing import Text, open_text, prepare, say, training_documents
from bimo.tokenizer import Tokenizer
from bimo.training import Callback, Checkpoints, EventsFile, FlightRecorder, MetricsFile, Trainer, Watchdog, launch
from bimo.training.losses import Loss, loss_by_name
from bimo.training.parallel import in_one_piece, reshard
from bimo.training.utilisation import promised_flops

__all__ = ["Outcome", "Text", "free_name", "open_run", "open_text", "prepare", "say", "train", "training_documents"]

_JOB = ".job"  # in the run's folder: which start of torchrun it belongs to
_EVALUATED_TOKENS = 2048  # at once on a CPU: 16 rows of 1,024 took more memory than the training itself
_SHOWN_SAMPLE = 20  # characters below which another sample is drawn


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        lm: The trained model.
        trainer: Its `interrupted` says whether a signal ended the run, `stop_requested` what ended it early.
        run: Where everything lies.
        figures: Bits per byte and loss on all held-out text; empty when the run was interrupted.
    """

    lm: LM
    trainer: Trainer
    run: RunDirectory
    figures: dict[str, float]


def train(
    settings: RunSettings,
    text: Text,
    console: Console,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """A whole run; what it leaves behind is described in docs/architecture.md.

    Every process of a run of many calls this with the same settings; the first one prepares, prints and writes.
    """
    with launch.joined(settings.parallel, settings.training.device) as team:
        again = team.told(resume or _restarted(settings))
        run = team.by_first(lambda: open_run(settings, resume=resume))
        if team.first:
            write_text(run.path / _JOB, launch.job())
        else:
            console = Console(quiet=True)
        return _train(settings, text, console, run, again=again, callbacks=callbacks)


def _train(
    settings: RunSettings,
    text: Text,
    console: Console,
    run: RunDirectory,
    *,
    again: bool,
    callbacks: Sequence[Callback],
) -> Outcome:
    team = launch.current()
    teachers: list[LM] = []
    loss = _loss(settings, teachers)  # what is wrong with it is said before the long work
    base = base_of(settings, console) if settings.adapt.base else None
    if base is not None:
        own = base.tokenizer
        team.by_first(lambda: own.save(run.path))  # where the preparation looks for one
    tokenizer, prepared = _prepared(settings, text, console, run)
    if any(teacher.fingerprint != tokenizer.fingerprint for teacher in teachers):
        raise UserError(
            "the teacher has another tokenizer, so its ids mean other text",
            where="training.loss",
            mend="Use the teacher's tokenizer: --tokenizer.path TEACHER/tokenizer.json",
        )
    lm = base or new(settings.model, tokenizer, seed=settings.training.seed)
    settings = replace(settings, model=lm.model.spec)
    if team.first:
        settings.save(run.settings)

    def evaluate(_model: nn.Module) -> dict[str, float]:
        return _figures(lm, prepared, settings.row_length, settings.training.evaluate_rows)

    trainer = run_trainer(settings, lm, run, console, loss=loss, callbacks=callbacks, evaluate=evaluate)
    if again:
        resume_newest(trainer, run, console)
    rows = [PackedRows(shards, settings.row_length) for shards in prepared.train]
    training, share = settings.training, {"rank": team.data_rank, "world_size": team.data_size}
    weights = settings.data.weights or None
    trainer.fit(Loader(rows, batch_size=training.batch_size, seed=training.seed, weights=weights, **share))
    figures = {}
    if not trainer.interrupted:
        with Waiting(console, "measuring on all held-out text", lambda: 0.0):
            figures = _figures(lm, prepared, settings.row_length, rows=None)
    with in_one_piece(lm, team):
        team.by_first(lambda: _finish(run, lm, trainer, settings, text, figures))
    return Outcome(lm, trainer, run, figures)


def base_of(settings: RunSettings, console: Console) -> LM:
    """The model that the run begins with, ready to be trained.

    Raises:
        UserError: There is none, it has no tokenizer, or the settings name another one.
    """
    lm = load(settings.adapt.base)
    path = settings.tokenizer.path
    if path and Tokenizer.load(path).fingerprint != lm.tokenizer.fingerprint:
        raise UserError(
            f"{path} is not the tokenizer of {settings.adapt.base}, whose ids would mean other text",
            where="tokenizer.path",
            mend="Leave it out: the base's own is used.",
        )
    unpack(lm.model)
    say(console, f"base: {settings.adapt.base}, {lm.model.n_parameters():,} parameters")
    lm.source = None
    lm.label_head = None  # it knows the labels of another training, and states that are trained away from it
    return lm


def _prepared(settings: RunSettings, text: Text, console: Console, run: RunDirectory) -> tuple[Tokenizer, Prepared]:
    """The text as tokens: made by the first process, opened by the others."""
    team = launch.current()
    made: list[tuple[Tokenizer, Prepared]] = []
    team.by_first(lambda: made.append(prepare(settings, text, console)))
    if made:
        return made[0]
    tokenizer = Tokenizer.load(run.path)
    return tokenizer, open_prepared(run.tokens, text.sources, tokenizer.fingerprint)


def _restarted(settings: RunSettings) -> bool:
    """Whether torchrun has started this very run again after a process was lost: it goes on by itself then."""
    job = Path(settings.folder) / settings.name / _JOB
    return launch.restarted() and job.exists() and job.read_text(encoding="utf-8") == launch.job()


def open_run(settings: RunSettings, *, resume: bool) -> RunDirectory:
    """The run's folder: new, or one that has not begun to train, or (to resume) one that has."""
    if is_address(settings.folder):
        raise UserError(
            "a run's folder must lie on this machine",
            where=settings.folder,
            mend="Choose a local --folder; with --cluster, text may lie at any address.",
        )
    run = RunDirectory(Path(settings.folder) / settings.name)
    if run.checkpoints.exists() and not resume and not _restarted(settings):
        raise UserError(
            "this run exists",
            where=str(run.path),
            mend=f"Go on with: bimo train --resume {run.path}, or choose another --name.",
        )
    if resume and not run.settings.exists():
        raise UserError("no run to resume", where=str(run.path), mend="See which runs there are: ls runs")
    try:
        run.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be made ({error.strerror})", where=str(run.path), mend="Choose --folder.") from error
    return run


def free_name(folder: str, name: str) -> str:
    """The name, or the name with the next free number, when a run of that name exists."""
    taken = {path.name for path in Path(folder).glob(f"{name}*")}
    return name if name not in taken else next(n for i in range(2, 10**6) if (n := f"{name}-{i}") not in taken)


def run_trainer(
    settings: RunSettings,
    lm: LM,
    run: RunDirectory,
    console: Console,
    *,
    loss: Loss,
    callbacks: Sequence[Callback],
    evaluate: Callable[[nn.Module], dict[str, float]],
) -> Trainer:
    """The trainer of a run with its view, logs and checkpoints."""
    training = settings.training
    device = machine.choose_device(training.device)
    precision = machine.choose_precision(device.value, training.precision)
    team = launch.current()
    machine.set_threads(training.threads or max(1, machine.usable_cores() // team.local_size))

    def sample(_model: nn.Module) -> str:
        prompt, text = training.sample_prompt, ""
        for seed in (1, 2, 3):  # an early model often ends at once; the same seeds make samples comparable
            text = lm.generate(prompt, max_tokens=64, temperature=0.7, top_p=0.95, seed=seed)
            if len(text) >= _SHOWN_SAMPLE:
                break
        return prompt + text

    def sample_by_first(model: nn.Module) -> str:
        with in_one_piece(lm, team):
            return team.by_first(lambda: sample(model))

    peak = team.by_first(lambda: machine.measure_speed(device.value, precision.value, seconds=1.0).flops)
    model = lm.model
    say(console, f"device: {device.value} ({device.reason}); precision: {precision.value} ({precision.reason})")
    say(
        console,
        f"model: {model.n_parameters():,} parameters, {model.spec.n_layers} layers of width {model.spec.d_model}, "
        f"context {model.spec.context_length}; {training.steps} steps of "
        f"{training.batch_size * settings.row_length:,} tokens",
    )
    figures = Figures(peak, promised_flops(device.value) * team.size)
    view: Callback = LiveView(console, figures) if console.is_terminal else PlainView(console, figures)
    watching = [EventsFile(run.events), FlightRecorder(run.flight)]
    watching += [Watchdog(run.set_aside)] if training.watchdog else []
    return Trainer(
        lm,
        training,
        loss=loss,
        callbacks=[*watching, view, MetricsFile(run.metrics), Checkpoints(), *callbacks],
        evaluate_fn=evaluate,
        generate_fn=sample_by_first,
        folder=run.checkpoints,
    )


def _loss(settings: RunSettings, teachers: list[LM]) -> Loss:
    """The loss that the settings name; models that it learns from are added to `teachers`."""

    def teacher(path: str) -> nn.Module:
        teachers.append(load(path))
        return teachers[-1].model

    return loss_by_name(settings.training.loss, {"teacher": teacher})


def _figures(lm: LM, prepared: Prepared, context: int, rows: int | None) -> dict[str, float]:
    """Bits per byte and loss on some rows of the held-out text, or (None) on all of it."""
    team = launch.current()
    alone_on_cpu = lm.model.lm_head.weight.device.type == "cpu" and team.alone
    together = max(1, _EVALUATED_TOKENS // context) if alone_on_cpu else 16
    batches = evaluation_batches(PackedRows(prepared.valid, context), together, rows)
    token_bytes = torch.from_numpy(lm.tokenizer.token_bytes())
    figures = bits_per_byte(lm.model.eval(), map(team.share, batches), token_bytes, team.total)
    reshard(lm.model)
    return figures


def resume_newest(trainer: Trainer, run: RunDirectory, console: Console) -> None:
    """Let a trainer go on from the newest checkpoint of its run that is whole."""
    team = trainer.team
    checkpoint, skipped = team.by_first(run.latest_checkpoint)
    for sentence in skipped if team.first else ():
        say(console, f"passed over a damaged checkpoint: {sentence}")
        run.log_event("damaged checkpoint", what=sentence)
    if checkpoint is None:
        say(console, "no checkpoint yet: starting from the beginning")
        return
    trainer.resume(checkpoint)
    say(console, f"going on from {checkpoint} at step {trainer.state.step}")
    if team.first:
        run.log_event("resumed", step=trainer.state.step, checkpoint=checkpoint.name)


def _finish(
    run: RunDirectory, lm: LM, trainer: Trainer, settings: RunSettings, text: Text, figures: dict[str, float]
) -> None:
    """Write the result, the lineage and the last lines of the logs."""
    lm.save(run.model)
    write_lineage(run, lm, trainer, settings, {source.name: source.fingerprint for source in text.sources})
    state = trainer.state
    if trainer.stop_requested:
        run.log_event("stopped", step=state.step, why=trainer.stop_requested)
    if figures:
        append_jsonl(run.metrics, {"step": state.step, "tokens": state.tokens, "final": True, **figures})
        run.log_event("finished", step=state.step, **figures)


def write_lineage(
    run: RunDirectory, lm: LM, trainer: Trainer, settings: RunSettings, data: Mapping[str, object]
) -> None:
    """What the result was made of: versions, settings, tokenizer, data, and the weights themselves."""
    lineage = {
        "bimo": bimo.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "step": trainer.state.step,
        "settings": hashlib.sha256(json.dumps(settings.to_dict(), sort_keys=True).encode()).hexdigest(),
        "tokenizer": lm.tokenizer.fingerprint,
        "data": data,
        "model": sha256(run.model / "model.safetensors"),
    }
    write_text(run.manifest, json.dumps(lineage, indent=1))
