"""`bimo tune`, wired: a recipe's text, its trials, and what the search came to in the run's folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from bimo.core import machine
from bimo.core.config import RunSettings
from bimo.core.errors import UserError, require
from bimo.data.loader import Loader, evaluation_batches
from bimo.data.packing import PackedRows
from bimo.data.prepare import Prepared
from bimo.evaluation.metrics import bits_per_byte
from bimo.lm import load, new
from bimo.preparing import open_text, prepare, say
from bimo.recipes import open_run
from bimo.tokenizer import Tokenizer
from bimo.training import Fault, Trainer, find_rate
from bimo.training.losses import loss_by_name
from bimo.training.search import Curve, Search
from bimo.training.trial import TrialClock, trial_settings
from bimo.training.tune import Effort, Report, Tuned, Tuning, save

_SWEEP_STEPS = (20, 100)  # fewer say nothing, more say no more
_SWEEP_REACH = 300.0  # below the recipe's rate


@dataclass(frozen=True)
class Trials:
    """Trains choices on the same tokens.

    Attributes:
        tokenizer: Of all models.
        prepared: What they read.
    """

    tokenizer: Tokenizer
    prepared: Prepared

    def measure(self, settings: RunSettings, seconds: float, seed: int, report: Report) -> Curve:
        """Train for some seconds; see `training.tune.Measure`."""
        clock = TrialClock(seconds, report)
        trainer, loader = self._trainer(settings, seed, [clock])
        try:
            trainer.fit(loader)
        except Fault as fault:  # this choice cannot be trained; the search goes on and knows
            return Curve(math.inf, clock.elapsed, trainer.state.step, trainer.state.tokens, str(fault.what))
        if trainer.interrupted:
            raise KeyboardInterrupt
        return clock.curve(trainer)

    def sweep(self, settings: RunSettings, seconds: float) -> float | None:
        """The rate that the finder proposes; None when the time is too short for a sweep, or no rate lets it fall."""
        short = replace(settings, training=replace(settings.training, steps=_SWEEP_STEPS[1], warmup_steps=0))
        trainer, loader = self._trainer(short, settings.training.seed, [])
        rate = settings.training.learning_rate
        limits = {"low": rate / _SWEEP_REACH}
        try:
            start = time.monotonic()
            find_rate(trainer, loader, **limits, steps=10)
            steps = int(10 * seconds / (time.monotonic() - start))
            if steps < _SWEEP_STEPS[0]:
                return None
            return find_rate(trainer, loader, **limits, steps=min(steps, _SWEEP_STEPS[1])).suggestion
        except UserError:
            return None

    def _trainer(self, settings: RunSettings, seed: int, callbacks: Sequence[Any]) -> tuple[Trainer, Loader]:
        training = trial_settings(settings.training, seed)
        lm = new(settings.model, self.tokenizer, seed=seed)
        context = lm.model.spec.context_length

        def evaluate(_model: nn.Module) -> dict[str, float]:
            batches = evaluation_batches(PackedRows(self.prepared.valid, context), 16, training.evaluate_rows)
            return bits_per_byte(lm.model.eval(), batches, torch.from_numpy(self.tokenizer.token_bytes()))

        loss = loss_by_name(training.loss, {"teacher": _teacher})
        trainer = Trainer(lm, training, loss=loss, callbacks=callbacks, evaluate_fn=evaluate)
        rows = [PackedRows(shards, context) for shards in self.prepared.train]
        loader = Loader(rows, batch_size=training.batch_size, seed=seed, weights=settings.data.weights or None)
        return trainer, loader


def tune(
    settings: RunSettings,
    effort: Effort,
    console: Console,
    *,
    search_through: Callable[[Tuning, Trials], Tuned] | None = None,
) -> Path:
    """Search within the effort; the recipe that it writes.

    Args:
        settings: The recipe.
        effort: Budget, trials, seeds.
        console: Where to say what happens.
        search_through: Trains the trials elsewhere, on a cluster; None: here, one after the other.
    """
    require("optuna", "tune")  # said before the long work
    begun = time.monotonic()
    run = open_run(settings, resume=False)
    tokenizer, prepared = prepare(settings, open_text(settings.data, run.path), console)
    machine.set_threads(settings.training.threads)
    settings = replace(settings, model=replace(settings.model, vocab_size=tokenizer.vocab_size))
    search = Search(run.path / "tune.db", settings)
    trials = Trials(tokenizer, prepared)
    tuning = Tuning(search, effort, trials.measure, tell=lambda sentence: say(console, sentence))
    tuning.start = begun  # the text counts into the time
    if search_through is None:
        tuned = tuning.run(lambda seconds: trials.sweep(settings, seconds))
    else:
        tuned = search_through(tuning, trials)
    recipe = save(tuned, run.path, settings.name)
    say(console, f"best: {tuned.best.choice}; the recipe is {recipe}, all trials are in {run.path / 'tune.json'}")
    return recipe


def _teacher(path: str) -> nn.Module:
    return load(path).model
