"""`bimo train TEXT --budget 20m`: the best model that this machine can make of a text in a stated time.

The clock runs from the command to its last line: the text is prepared, three shapes are tried for a moment, the rest of
the time is the schedule's. What was chosen, and why, is said and kept in run.yaml.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from rich.console import Console

from bimo.core import machine
from bimo.core.batch import Batch
from bimo.core.config import DataSettings, RunSettings
from bimo.core.spec import ModelSpec
from bimo.data import Document
from bimo.data.prepare import Prepared, Source
from bimo.model.gpt import GPT
from bimo.preparing import Text, open_text, prepare, say
from bimo.recipes import Outcome, open_run, train
from bimo.training import Callback, Event, Gradient, TimeBudget, Trainer
from bimo.training import budget as choosing
from bimo.training.budget import LADDER, Candidate, Pace
from bimo.training.callbacks.progress import duration
from bimo.training.plan import average_cost, estimate, sizes

_BYTES_PER_S = 3e6  # of text that are read, looked at and encoded, on two cores
_PREPARING = 0.08  # of the budget that the preparation may take
_TRYING = 0.025  # and the trials of each shape
_TOKENIZER_BYTES = 0.2e6  # of text that a tokenizer is made of, per second of budget
_HELD_OUT_BYTES = 200e3
_MEMORY = 0.8  # of what is free
_FORWARD = 0.4  # of the time of a training step, with room to spare
_CLOSING_S = 2.0  # checkpoint, model and lineage of a small model
_CLOSING_BYTES = 150e6  # per second, of a large one
_TRIED = 2048  # tokens of a trial's updates
_ROPE_THETA = 1000.0  # the context is short
_CALLBACKS = ("short_rows", "growing_depth")


def train_within(
    settings: RunSettings, seconds: float, console: Console, *, started: float, free: bool = True
) -> Outcome:
    """Train the best model for a time.

    Args:
        settings: What shall be so in any case: text, kind of model, optimizer.
        seconds: From `started` to the end.
        console: Where to show it.
        started: When the command began, by `time.monotonic`.
        free: Whether tokenizer and held-out text may be chosen too; else they are a recipe's.
    """
    run = open_run(settings, resume=False)
    text = open_text(settings.data, run.path)
    size = sum(corpus.total_bytes for corpus in text.corpora)
    text = _beginning(text, size, _PREPARING * seconds * _BYTES_PER_S, console)
    if free:
        settings = _of_the_text(settings, min(size, _PREPARING * seconds * _BYTES_PER_S), seconds)
    tokenizer, prepared = prepare(settings, text, console)
    spec = replace(settings.model, vocab_size=tokenizer.vocab_size)
    left = started + seconds - time.monotonic()
    trial = _Trial(settings, spec, left * _TRYING)
    ranked = trial.ranked(0.9 * left, sum(shards.n_tokens for shards in prepared.train))
    closing = _closing_s(ranked[0], prepared)
    deadline = started + seconds - closing
    before, left = time.monotonic() - started, max(1.0, deadline - time.monotonic())
    chosen = replace(ranked[0], tokens=ranked[0].pace.tokens_in(left / ranked[0].cost))
    settings = choosing.fitted(replace(settings, model=spec), chosen)
    times = {"whole": seconds, "before": before, "updates": left, "closing": closing}
    settings = replace(settings, notes=_reasons(ranked, settings, prepared, times))
    for line in settings.notes:
        say(console, f"budget: {line}")
    return train(settings, text, console, callbacks=[TimeBudget(until=deadline)])


def _of_the_text(settings: RunSettings, size: float, seconds: float) -> RunSettings:
    """Where nothing else was asked for: tokenizer and held-out text as large as the text and the time allow, and the
    kind of model and of run that learns most in a short time (docs/experiments.md)."""
    data, tokenizer, plain = settings.data, settings.tokenizer, RunSettings()
    if tokenizer == plain.tokenizer:
        megabytes = max(2.0, min(tokenizer.train_megabytes, _TOKENIZER_BYTES * seconds / 1e6))
        tokenizer = replace(tokenizer, vocab_size=choosing.vocabulary(size), train_megabytes=megabytes)
    if data.validation_share == DataSettings().validation_share and not data.validation_paths:
        share = _HELD_OUT_BYTES * max(0.3, min(3.0, seconds / 600)) / max(size, 1.0)
        data = replace(data, validation_share=max(0.002, min(0.1, share)))
    model, training = settings.model, settings.training
    if model == plain.model:
        model = replace(model, tied_embeddings=False, rope_theta=_ROPE_THETA)
    if not training.callbacks:
        training = replace(training, callbacks=list(_CALLBACKS))
    return replace(settings, data=data, tokenizer=tokenizer, model=model, training=training)


@dataclass(frozen=True)
class Beginning:
    """The first documents of a text, as many as can be prepared in time."""

    documents: Iterable[Document]
    limit: float

    def __iter__(self) -> Iterator[Document]:
        size = 0
        for document in self.documents:
            size += len(document.text.encode())
            if size > self.limit:
                return
            yield document


def _beginning(text: Text, size: float, limit: float, console: Console) -> Text:
    """A text that is too large is cut: reading on would cost the time that it should be trained on."""
    if size <= limit:
        return text
    say(console, f"budget: the text has {size / 1e6:,.0f} MB; the first {limit / 1e6:,.0f} MB can be used in the time")
    share = limit / size
    sources = [
        Source(
            s.name, Beginning(s.documents, share * corpus.total_bytes), f"{s.fingerprint} {limit}", s.validation_share
        )
        for s, corpus in zip(text.sources, text.corpora, strict=True)
    ]
    return Text(sources, text.corpora, text.problems)


class _Trial:
    """How fast this machine trains models of one kind, in three sizes around the one that seems best."""

    def __init__(self, settings: RunSettings, spec: ModelSpec, seconds: float) -> None:
        self.settings, self.seconds = settings, seconds
        self.device = machine.choose_device(settings.training.device).value
        free = machine.available_memory()
        self.shapes: list[tuple[ModelSpec, int, float]] = []
        for shape in (choosing.shaped(spec, layers, width) for layers, width in LADDER):
            own = sizes(shape)
            needed = sum(estimate(replace(settings, model=shape), own, self.device).values())
            if not free or needed < _MEMORY * free:
                self.shapes.append((shape, own.parameters, own.flops_per_token))

    def ranked(self, seconds: float, unique: float) -> list[Candidate]:
        """All shapes, the best for so many seconds of updates first."""
        machine.set_threads(self.settings.training.threads)
        precision = machine.choose_precision(self.device, self.settings.training.precision).value
        flops = machine.measure_speed(self.device, precision, seconds=0.5).flops
        guess = [(1.0, Pace(1 / (0.4 * flops), 1 / (0.4 * flops)))]
        first = choosing.rank(self.shapes, guess, seconds, unique)[0]
        middle = [shape for shape, _, _ in self.shapes].index(first.spec)
        tried = sorted({max(0, middle - 4), middle, min(len(self.shapes) - 1, middle + 2)})
        measured = [(self.shapes[i][2], self._pace(self.shapes[i][0])) for i in tried]
        return choosing.rank(self.shapes, measured, seconds, unique, cost=self._cost)

    def _cost(self, spec: ModelSpec) -> float:
        return average_cost(replace(self.settings, model=spec), sizes(spec))

    def _pace(self, spec: ModelSpec) -> Pace:
        """Train a model that is thrown away, for a moment."""
        watch = _Stopwatch()
        rows = max(1, _TRIED // spec.context_length)
        training = replace(self.settings.training, batch_size=rows, callbacks=[], execution="eager", watchdog=False)
        trainer = Trainer(GPT(spec), training, callbacks=[watch])
        trainer.prepare_machine()
        batch = random_batch(spec, rows)
        times: list[tuple[float, float]] = []
        end = time.perf_counter() + self.seconds
        while len(times) < 3 or time.perf_counter() < end:
            result = trainer.step(iter([batch]))
            update = time.perf_counter() - watch.at
            times.append((result.seconds - update, update))
        passes, updates = zip(*times[1:], strict=True)
        return Pace(statistics.median(passes) / batch.n_tokens, statistics.median(updates))


class _Stopwatch(Callback):
    """When the gradient of the newest step was ready."""

    def __init__(self) -> None:
        self.at = 0.0

    def on_gradient(self, trainer: Trainer, gradient: Gradient) -> None:
        self.at = time.perf_counter()

    def on_event(self, trainer: Trainer, event: Event) -> None:
        """Nothing that happens to a model that is thrown away is worth telling."""


def random_batch(spec: ModelSpec, rows: int) -> Batch:
    """Random ids, two documents in each row as real text has: attention then needs a mask."""
    ids = torch.randint(spec.vocab_size, (rows, spec.context_length))
    half = max(1, spec.context_length // 2)
    places = torch.arange(spec.context_length)
    documents = (places // half).to(torch.int32).expand_as(ids)
    return Batch(ids, ids, torch.ones(ids.shape), (places % half).expand_as(ids), documents)


def _closing_s(chosen: Candidate, prepared: Prepared) -> float:
    """What the end of a run takes: the last evaluations, checkpoint and model."""
    measuring = (prepared.valid.n_tokens + 8192) * chosen.pace.token_s * _FORWARD
    return measuring + _CLOSING_S + 5 * 4 * chosen.parameters / _CLOSING_BYTES


def _reasons(ranked: list[Candidate], settings: RunSettings, prepared: Prepared, times: dict[str, float]) -> list[str]:
    """What was chosen, and why, in a few lines."""
    chosen, training, spec = ranked[0], settings.training, settings.model
    reads = training.steps * training.batch_size * spec.context_length
    unique = sum(shards.n_tokens for shards in prepared.train)
    said = {name: duration(seconds) for name, seconds in times.items()}
    others = [f"{c.spec.n_layers} x {c.spec.d_model} {c.loss - chosen.loss:+.3f}" for c in ranked[1:4]]
    shape = f"{spec.n_layers} layers of width {spec.d_model}, {chosen.parameters:,} weights"
    return [
        f"{said['whole']} in all: {said['before']} went to the text and the trials, {said['updates']} are for updates, "
        f"{said['closing']} for the end",
        f"{shape}: some {reads:,} tokens fit into the time here, {reads / chosen.parameters:.1f} per weight; the text "
        f"is read {reads / max(unique, 1):.2f} times",
        f"other shapes would end higher, in nats per token by the rule: {', '.join(others)}",
        f"{training.batch_size} rows of {spec.context_length} per update, some {training.steps} updates, "
        f"rate {training.learning_rate:g} ({training.optimizer})",
    ]
