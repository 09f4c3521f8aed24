"""The only wiring: settings → text → tokenizer → shards → model → trainer → a run directory.

Every other part works alone; here they meet. Each function is a stage that prints what it found and leaves its result
in the run directory, so that the next run of the same recipe finds it there.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

import bimo
from bimo.core import machine
from bimo.core.artifacts import RunDirectory, append_jsonl, sha256, write_text
from bimo.core.config import CheckSettings, DataSettings, RunSettings
from bimo.core.errors import UserError
from bimo.data import Corpus, Document, Problem, is_validation
from bimo.data.checkup import quick_check, verdict
from bimo.data.loader import Loader, evaluation_batches
from bimo.data.packing import PackedRows
from bimo.data.prepare import Preparation, Prepared, Source
from bimo.evaluation.metrics import bits_per_byte
from bimo.live import Figures, LiveView, PlainView, Waiting
from bimo.lm import LM, load, new
from bimo.tokenizer import Tokenizer
from bimo.training import Callback, Checkpoints, EventsFile, FlightRecorder, MetricsFile, Trainer, Watchdog
from bimo.training.losses import Loss, loss_by_name

_SHOWN_PROBLEMS = 10
_SHOWN_FINDINGS = 5
_SHOWN_SAMPLE = 20  # characters below which another sample is drawn


@dataclass
class Text:
    """The text of a run: its sources, and what could not be read of them.

    Attributes:
        sources: In the order of the paths.
        corpora: Those of the sources that are read from files, for progress.
        problems: Each only once, however often the text is read.
    """

    sources: list[Source]
    corpora: list[Corpus] = field(default_factory=list)
    problems: dict[Problem, None] = field(default_factory=dict)

    def progress(self) -> float:
        """Share of the current pass that has been read."""
        total = sum(corpus.total_bytes for corpus in self.corpora)
        return sum(corpus.progress.read_bytes for corpus in self.corpora) / total if total else 0.0


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


def open_text(settings: DataSettings, folder: Path) -> Text:
    """The text that the settings name; standard input is kept in the run's folder, because it is read twice."""
    if not settings.paths:
        raise UserError("no text was named", mend="Add it: bimo train recipe.yaml --data.paths '[FILE_OR_FOLDER]'")
    text = Text([])
    paths = [str(_keep_stdin(folder)) if path == "-" else path for path in settings.paths]
    groups = [[path] for path in paths] if settings.weights else [paths]
    share = 0.0 if settings.validation_paths else settings.validation_share
    wanted = [(f"source-{i}", group, share) for i, group in enumerate(groups)]
    if settings.validation_paths:
        wanted.append(("validation", settings.validation_paths, 1.0))
    for name, group, held_out in wanted:
        corpus = Corpus(group, settings, text.problems.setdefault)
        text.corpora.append(corpus)
        text.sources.append(Source(name, corpus, corpus.fingerprint, held_out))
    return text


def prepare(settings: RunSettings, text: Text, console: Console) -> tuple[Tokenizer, Prepared]:
    """Tokenizer and token shards of a run, made or found in its folder."""
    run = RunDirectory(Path(settings.folder) / settings.name)
    for corpus in text.corpora:
        say(console, f"text: {len(corpus.files)} file(s), {corpus.total_bytes / 1e6:.1f} MB on disk. {corpus.reason}")
    if settings.data.check and not run.check.exists():
        _look_at_data(settings.data, text, run, console)
    tokenizer = _tokenizer(settings, run, text, console)
    with Waiting(console, "encoding", text.progress) as waiting:
        preparation = Preparation(
            tokenizer,
            run.tokens,
            threads=settings.data.workers,
            on_progress=waiting.tick,
            on_overlap=lambda document: text.problems.setdefault(_overlap(document)),
        )
        prepared = preparation.run(text.sources)
    _report_problems(text, run, console)
    n_tokens = sum(shards.n_tokens for shards in prepared.train)
    n_bytes = sum(shards.n_text_bytes for shards in prepared.train)
    n_documents = sum(shards.n_documents for shards in prepared.train)
    say(
        console,
        f"tokens: {n_tokens:,} to train on from {n_documents:,} documents ({n_bytes / n_tokens:.2f} bytes each), "
        f"{prepared.valid.n_tokens:,} held out from {prepared.valid.n_documents:,}",
    )
    return tokenizer, prepared


def train(
    settings: RunSettings,
    text: Text,
    console: Console,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """A whole run; what it leaves behind is described in docs/architecture.md."""
    run = open_run(settings, resume=resume)
    teachers: list[LM] = []
    loss = _loss(settings, teachers)  # what is wrong with it is said before the long work
    tokenizer, prepared = prepare(settings, text, console)
    if any(teacher.fingerprint != tokenizer.fingerprint for teacher in teachers):
        raise UserError(
            "the teacher has another tokenizer, so its ids mean other text",
            where="training.loss",
            mend="Use the teacher's tokenizer: --tokenizer.path TEACHER/tokenizer.json",
        )
    lm = new(settings.model, tokenizer, seed=settings.training.seed)
    settings = replace(settings, model=lm.model.spec)
    settings.save(run.settings)
    trainer = _trainer(settings, lm, prepared, run, console, loss, callbacks)
    if resume:
        _resume(trainer, run, console)
    rows = [PackedRows(shards, settings.model.context_length) for shards in prepared.train]
    training = settings.training
    loader = Loader(rows, batch_size=training.batch_size, seed=training.seed, weights=settings.data.weights or None)
    trainer.fit(loader)
    _finish(run, lm, trainer, settings, text)
    if trainer.stop_requested:
        run.log_event("stopped", step=trainer.state.step, why=trainer.stop_requested)
    if trainer.interrupted:
        return Outcome(lm, trainer, run, {})
    with Waiting(console, "measuring on all held-out text", lambda: 0.0):
        figures = _figures(lm, prepared, rows=None)
    append_jsonl(run.metrics, {"step": trainer.state.step, "tokens": trainer.state.tokens, "final": True, **figures})
    run.log_event("finished", step=trainer.state.step, **figures)
    return Outcome(lm, trainer, run, figures)


def open_run(settings: RunSettings, *, resume: bool) -> RunDirectory:
    """The run's folder: new, or one that has not begun to train, or (to resume) one that has."""
    run = RunDirectory(Path(settings.folder) / settings.name)
    if run.checkpoints.exists() and not resume:
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


def training_documents(text: Text) -> Iterator[Document]:
    """All documents that are not held out."""
    for source in text.sources:
        for document in source.documents:
            if not is_validation(document, source.validation_share):
                yield document


def say(console: Console, sentence: str) -> None:
    """Print a plain line."""
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _tokenizer(settings: RunSettings, run: RunDirectory, text: Text, console: Console) -> Tokenizer:
    """The tokenizer that the settings name, the one in the run's folder, or a new one."""
    own = settings.tokenizer
    if own.path:
        tokenizer = Tokenizer.load(own.path)
    elif (run.path / "tokenizer.json").exists():
        tokenizer = Tokenizer.load(run.path)
    else:
        limit = own.train_megabytes * 1e6
        total = sum(corpus.total_bytes for corpus in text.corpora)
        share = min(1.0, limit / total) if total else 1.0
        with Waiting(console, f"training a tokenizer of {own.vocab_size} ids", text.progress) as waiting:
            tokenizer = Tokenizer.train(waiting.watch(_sample(training_documents(text), share, limit)), own.vocab_size)
        if tokenizer.vocab_size < own.vocab_size:
            say(console, f"tokenizer: the text gives only {tokenizer.vocab_size} ids, not {own.vocab_size}")
    tokenizer.save(run.path)
    return tokenizer


def _sample(documents: Iterable[Document], share: float, limit: float) -> Iterator[str]:
    """Texts of a share of the documents, chosen by their hash, up to `limit` bytes in all."""
    size = 0
    for document in documents:
        # Other bits of the hash than those that settle what is held out.
        if (document.fingerprint & 0xFFFFFFFF) < share * 2**32:
            size += len(document.text.encode())
            if size > limit:
                return
            yield document.text


def _trainer(
    settings: RunSettings,
    lm: LM,
    prepared: Prepared,
    run: RunDirectory,
    console: Console,
    loss: Loss,
    callbacks: Sequence[Callback],
) -> Trainer:
    """The trainer of a run with its view, logs and checkpoints."""
    training = settings.training
    device = machine.choose_device(training.device)
    precision = machine.choose_precision(device.value, training.precision)
    machine.set_threads(training.threads)

    def evaluate(_model: nn.Module) -> dict[str, float]:
        return _figures(lm, prepared, training.evaluate_rows)

    def sample(_model: nn.Module) -> str:
        prompt, text = training.sample_prompt, ""
        for seed in (1, 2, 3):  # an early model often ends at once; the same seeds make samples comparable
            text = lm.generate(prompt, max_tokens=64, temperature=0.7, top_p=0.95, seed=seed)
            if len(text) >= _SHOWN_SAMPLE:
                break
        return prompt + text

    peak = machine.measure_speed(device.value, precision.value, seconds=1.0).flops
    model = lm.model
    say(console, f"device: {device.value} ({device.reason}); precision: {precision.value} ({precision.reason})")
    say(
        console,
        f"model: {model.n_parameters():,} parameters, {model.spec.n_layers} layers of width {model.spec.d_model}, "
        f"context {model.spec.context_length}; {training.steps} steps of "
        f"{training.batch_size * model.spec.context_length:,} tokens",
    )
    figures = Figures(model.flops_per_token(), peak)
    view: Callback = LiveView(console, figures) if console.is_terminal else PlainView(console, figures)
    watching = [EventsFile(run.events), FlightRecorder(run.flight)]
    watching += [Watchdog(run.set_aside)] if training.watchdog else []
    return Trainer(
        lm,
        training,
        loss=loss,
        callbacks=[*watching, view, MetricsFile(run.metrics), Checkpoints(), *callbacks],
        evaluate_fn=evaluate,
        generate_fn=sample,
        folder=run.checkpoints,
    )


def _loss(settings: RunSettings, teachers: list[LM]) -> Loss:
    """The loss that the settings name; models that it learns from are added to `teachers`."""

    def teacher(path: str) -> nn.Module:
        teachers.append(load(path))
        return teachers[-1].model

    return loss_by_name(settings.training.loss, {"teacher": teacher})


def _figures(lm: LM, prepared: Prepared, rows: int | None) -> dict[str, float]:
    """Bits per byte and loss on some rows of the held-out text, or (None) on all of it."""
    batches = evaluation_batches(PackedRows(prepared.valid, lm.model.spec.context_length), 16, rows)
    return bits_per_byte(lm.model.eval(), batches, torch.from_numpy(lm.tokenizer.token_bytes()))


def _resume(trainer: Trainer, run: RunDirectory, console: Console) -> None:
    checkpoint, skipped = run.latest_checkpoint()
    for sentence in skipped:
        say(console, f"passed over a damaged checkpoint: {sentence}")
        run.log_event("damaged checkpoint", what=sentence)
    if checkpoint is None:
        say(console, "no checkpoint yet: starting from the beginning")
        return
    trainer.resume(checkpoint)
    say(console, f"going on from {checkpoint} at step {trainer.state.step}")
    run.log_event("resumed", step=trainer.state.step, checkpoint=checkpoint.name)


def _finish(run: RunDirectory, lm: LM, trainer: Trainer, settings: RunSettings, text: Text) -> None:
    """Write the result and the lineage."""
    lm.save(run.model)
    lineage = {
        "bimo": bimo.__version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "step": trainer.state.step,
        "settings": hashlib.sha256(json.dumps(settings.to_dict(), sort_keys=True).encode()).hexdigest(),
        "tokenizer": lm.tokenizer.fingerprint,
        "data": {source.name: source.fingerprint for source in text.sources},
        "model": sha256(run.model / "model.safetensors"),
    }
    write_text(run.manifest, json.dumps(lineage, indent=1))


def _report_problems(text: Text, run: RunDirectory, console: Console) -> None:
    """What could not be read: the first few on the screen, all of them in events.jsonl."""
    problems = list(text.problems)
    for problem in problems[:_SHOWN_PROBLEMS]:
        say(console, f"left out: {problem}")
    if len(problems) > _SHOWN_PROBLEMS:
        say(console, f"left out: {len(problems) - _SHOWN_PROBLEMS} more, all listed in {run.path / 'events.jsonl'}")
    for problem in problems:
        run.log_event("left out", file=problem.file, row=problem.row, what=problem.what)


def _look_at_data(settings: DataSettings, text: Text, run: RunDirectory, console: Console) -> None:
    """The quick checkup: the worst on the screen, all of it in `check.json`."""
    sides: dict[bool, list[str]] = {True: [], False: []}
    for source in text.sources:
        if isinstance(source.documents, Corpus):
            sides[source.validation_share == 1].extend(source.documents.paths)
    if not sides[False]:
        return
    wanted = CheckSettings(text_field=settings.text_field, documents=settings.documents)
    with Waiting(console, "looking at the text", lambda: 0.0):
        report = quick_check(sides[False], sides[True], wanted)
    report.save(run.check)
    worst = [f"{finding.where}: {finding.what}" for finding in report.findings if finding.severity != "note"]
    for line in worst[:_SHOWN_FINDINGS]:
        say(console, f"data: {line}")
    say(console, f"data: {verdict(report, hint=False)}")
    if worst:
        names = " ".join(map(shlex.quote, sides[False]))
        say(console, f"data: all of it is in {run.check}; more: bimo check {names}")


def _overlap(document: Document) -> Problem:
    """What is said of a training document that would make the held-out figures better than they are."""
    what = "this document is in the validation text too, and is not trained on"
    return Problem(document.file, document.row, what, "Remove it from one of the two.")


def _keep_stdin(folder: Path) -> Path:
    """Standard input as a file, because the tokenizer and the encoding both read it."""
    path = folder / "stdin.txt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    return path
