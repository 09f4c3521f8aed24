"""Verbs that make a model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimo.cli.options import INTERRUPTED, add_cluster, duration_s, make_console, memory_bytes, print_now, run_options
from bimo.core.artifacts import RunDirectory, write_text
from bimo.core.errors import UserError

if TYPE_CHECKING:
    from bimo.core.config import RunSettings
    from bimo.flags import Parser


def plan(arguments: list[str]) -> int:
    """Say what a recipe will take before it is trained: memory, time of a step, time of the whole."""

    def add(parser: Parser) -> None:
        parser.add_argument("--output", type=str, default="", help="Where the plan goes, as JSON.")
        parser.add_argument(
            "--memory", type=str, default="", help="Plan for so much, such as 8GB. Default: what is free."
        )

        parser.add_argument("--device", type=str, default="", help="A GPU by its data sheet, such as h100 or l40s.")
        parser.add_argument("--gpus", type=int, default=1, help="With --device: how many.")
        parser.add_argument("--utilisation", type=float, default=0.45, help="With --device: share of its peak assumed.")

    settings, options = run_options("plan", plan, arguments, add)
    found: Any
    if options.device:
        from bimo.training.many_gpus import lines_of as lines_of_many
        from bimo.training.many_gpus import plan_for

        found = plan_for(settings, options.device, options.gpus, options.utilisation)
        lines = lines_of_many(found)
    else:
        from bimo.planning import plan as run
        from bimo.training.plan import lines_of

        found = run(settings, memory_bytes(options.memory))
        lines = lines_of(found)
    if options.output:
        write_text(Path(options.output), json.dumps(found.to_dict(), indent=1))
    print_now("\n".join(lines))
    return 0 if found.fits else 1


def train(arguments: list[str]) -> int:
    """Train a model by a recipe: text in, a run directory out. Ctrl-C saves; --resume RUN goes on."""
    started = time.monotonic()
    settings, options = run_options("train", train, arguments, _add_train)
    if options.cluster:
        _refuse_on_a_cluster(settings)
        return _train_on_a_cluster(settings, options)
    resume = bool(options.resume)
    from bimo import recipes

    run = RunDirectory(Path(settings.folder) / settings.name)
    console = make_console()
    if settings.tasks:
        return _train_on_tasks(settings, options)
    if options.budget:
        if resume:
            raise UserError("a run that goes on keeps its steps", where="--budget", mend="Leave --budget out.")
        if settings.adapt.base:
            mend = "Leave --budget out, and give training.steps."
            raise UserError("a budget chooses the model, and adapt.base names one", where="--budget", mend=mend)
        from bimo.budgeting import train_within

        free = not options.config
        outcome = train_within(settings, duration_s(options.budget), console, started=started, free=free)
    else:
        recipes.open_run(settings, resume=resume)
        outcome = recipes.train(settings, recipes.open_text(settings.data, run.path), console, resume=resume)
    stopped = outcome.trainer.stop_requested
    if not outcome.trainer.team.first:
        return INTERRUPTED if outcome.trainer.interrupted else 0
    if stopped:
        print(f"\nstopped ({stopped}) and saved at step {outcome.trainer.state.step}.")
    if outcome.trainer.interrupted:
        print(f"Go on with: bimo train --resume {run.path}")
        return INTERRUPTED
    print(f"done: {outcome.figures['bits_per_byte']:.4f} bits per byte on held-out text. The model is in {run.model}")
    print(f"Try: bimo generate {run.path} 'Once upon a time'")
    return 0


def _train_on_tasks(settings: RunSettings, options: Any) -> int:
    """Records in the place of text."""
    from bimo.finetuning import finetune

    if options.budget:
        mend = "Give it as a callback: --training.callbacks '[time_budget(seconds=1200)]'."
        raise UserError("a budget is for plain text", where="--budget", mend=mend)
    outcome = finetune(settings, make_console(), resume=bool(options.resume))
    run, trainer = outcome.run, outcome.trainer
    if not trainer.team.first:
        return INTERRUPTED if trainer.interrupted else 0
    if trainer.stop_requested:
        print(f"\nstopped ({trainer.stop_requested}) and saved at step {trainer.state.step}.")
    if trainer.interrupted:
        print(f"Go on with: bimo train --resume {run.path}")
        return INTERRUPTED
    print(f"done: the model is in {run.model}")
    return 0


def _add_train(parser: Parser) -> None:
    add_cluster(parser)
    text = "Time for all of it, such as 20m or 1h30m: size, tokens, batch and rate are chosen for the best model in it."
    parser.add_argument("--budget", type=str, default="", help=text)


def _refuse_on_a_cluster(settings: RunSettings) -> None:
    """Its workers read plain text and begin with a new model; anything else would be passed over in silence."""
    odd = "tasks" if settings.tasks else "adapt.base" if settings.adapt.base else ""
    if odd:
        mend = "Leave --cluster out; torchrun shares out such a run."
        raise UserError("a run on a cluster learns plain text, from a new model", where=odd, mend=mend)


def _train_on_a_cluster(settings: RunSettings, options: Any) -> int:
    """The same on Ray."""
    from bimo.cluster.training import train_on

    figures = train_on(
        settings, make_console(), cluster=options.cluster, workers=options.workers, resume=bool(options.resume)
    )
    run = Path(settings.folder) / settings.name
    print(f"done: {figures['bits_per_byte']:.4f} bits per byte on held-out text. The model is in {run / 'model'}")
    return 0
