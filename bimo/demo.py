"""`bimo demo`: the whole path in under three minutes, on text that every machine has or on any path given.

It finds text, trains a tokenizer and a small GPT for a stated time, holds the result against two honest floors, writes
a paragraph, and says what to type next. The model and its rate are settled; how many steps fit is measured.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bimo.core.batch import Batch
from bimo.core.config import DataSettings, ModelSpec, RunSettings, TokenizerSettings, TrainingSettings
from bimo.core.errors import UserError
from bimo.data import Corpus, Document, is_validation
from bimo.data.prepare import Source
from bimo.data.stdlib_text import python_documents
from bimo.evaluation.floors import NGramModel, xz_bits_per_byte
from bimo.live import Waiting, duration
from bimo.model.gpt import GPT
from bimo.recipes import Outcome, Text, free_name, say, train
from bimo.training import TimeBudget, Trainer
from bimo.training.callbacks.stopping import mean_cost

_MOST_TEXT = 16 * 2**20  # bytes; more would not be seen in the time there is
_FLOOR_TEXT = 8 * 2**20
_XZ_TEXT = 2 * 2**20
_VALIDATION_SHARE = 0.02


def demo(paths: Sequence[str], console: Console, *, seconds: float, folder: str) -> Outcome:
    """Run the demonstration.

    Args:
        paths: Files and folders; none: Python's own documentation.
        console: Where to show it.
        seconds: Time to train.
        folder: Where runs are kept.
    """
    text, documents = _find_text(paths, console)
    settings = _settings(free_name(folder, "demo"), folder, _beginning(documents))
    settings = replace(settings, training=_fitting(settings, seconds, console))
    outcome = train(settings, text, console, callbacks=[TimeBudget(seconds)])
    if outcome.trainer.interrupted:
        say(console, f"stopped; go on with: bimo train --resume {outcome.run.path}")
        return outcome
    _report(outcome, documents, console)
    _next_commands(outcome.run.path, console)
    return outcome


def _find_text(paths: Sequence[str], console: Console) -> tuple[Text, list[Document]]:
    """Gather the text, at most as much as the demonstration can use."""
    text = Text([])
    if paths:
        corpus = Corpus(paths, DataSettings(), text.problems.setdefault)
        found: Iterable[Document] = corpus
        what = f"{len(corpus.files)} file(s) in {', '.join(paths)}. {corpus.reason}"
    else:
        found, what = python_documents(), "the documentation and docstrings that come with Python"
    documents: list[Document] = []
    size = 0
    with Waiting(console, "reading", lambda: size / _MOST_TEXT) as waiting:
        for document in waiting.watch(found):
            documents.append(document)
            size += len(document.text.encode())
            if size > _MOST_TEXT:
                say(console, f"the demonstration takes the first {_MOST_TEXT / 2**20:.0f} MiB of this text")
                break
    if not documents:
        raise UserError("there is no text to train on", where=", ".join(paths), mend="Give files that hold text.")
    say(console, f"found {size / 1e6:.1f} MB of text, {len(documents):,} documents: {what}")
    fingerprint = hashlib.sha256("".join(f"{d.fingerprint:x}" for d in documents).encode()).hexdigest()
    text.sources = [Source("demo", documents, fingerprint, _validation_share(documents))]
    return text, documents


def _validation_share(documents: list[Document]) -> float:
    """Enough to hold out at least a few documents, also of a small text."""
    share = _VALIDATION_SHARE
    while share < 0.5 and sum(is_validation(document, share) for document in documents) < 2:
        share *= 2
    return share


def _beginning(documents: list[Document]) -> str:
    """A few words of a held-out document, below its title: what the model is asked to continue, always the same."""
    share = _validation_share(documents)
    text = next((d.text for d in documents if is_validation(d, share) and len(d.text) > 200), documents[0].text)
    words = " ".join((text.partition("\n")[2].strip() or text).split())[:24]
    return words.rpartition(" ")[0] or words


def _settings(name: str, folder: str, prompt: str) -> RunSettings:
    """A model that learns most in a minute or two on two cores."""
    return RunSettings(
        name=name,
        folder=folder,
        tokenizer=TokenizerSettings(vocab_size=2048),
        model=ModelSpec(n_layers=4, n_heads=3, d_model=192, context_length=256, tied_embeddings=False, rope_theta=1e3),
        training=TrainingSettings(
            batch_size=4,
            callbacks=["short_rows", "growing_depth"],
            log_every=100,
            checkpoint_every=0,
            evaluate_rows=32,
            sample_prompt=prompt,
        ),
    )


def _fitting(settings: RunSettings, seconds: float, console: Console) -> TrainingSettings:
    """As many steps as fit into the time, measured on a model of the same shape that is thrown away."""
    training, spec = settings.training, settings.model
    trainer = Trainer(GPT(spec), training)
    trainer.prepare_machine()
    ids = torch.randint(spec.vocab_size, (training.batch_size, spec.context_length))
    # Two documents in each row, as real text has, because attention then needs a mask.
    half = spec.context_length // 2
    positions = (torch.arange(spec.context_length) % half).expand_as(ids)
    documents = (torch.arange(spec.context_length) // half).to(torch.int32).expand_as(ids)
    batch = Batch(ids, ids, torch.ones(ids.shape), positions, documents)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 8 or time.perf_counter() - start < 1.0:
        times.append(trainer.step(iter([batch])).seconds)
    step_s = statistics.median(times[2:])
    step_s *= mean_cost(trainer)  # on average over the run: what was tried was the whole depth
    steps = max(20, min(20_000, round(0.9 * seconds / step_s)))  # the rest goes to evaluations and samples
    say(console, f"a step takes {1000 * step_s:.0f} ms here: some {steps} steps fit into {duration(seconds)}")
    looks = max(1, steps // 6)
    warmup = min(training.warmup_steps, steps // 4)
    return replace(training, steps=steps, evaluate_every=looks, sample_every=looks, warmup_steps=warmup)


def _floors(documents: list[Document]) -> dict[str, float]:
    """What counting and what copying reach on the same split."""
    share = _validation_share(documents)
    valid = [d.text.encode() for d in documents if is_validation(d, share)]
    train_text = [d.text.encode() for d in documents if not is_validation(d, share)]
    return {
        "byte 5-gram, modified Kneser-Ney": NGramModel(_first(train_text, _FLOOR_TEXT)).bits_per_byte(valid),
        "xz, with the training text to refer to": xz_bits_per_byte(_first(train_text, _XZ_TEXT), valid),
    }


def _first(documents: list[bytes], limit: int) -> list[bytes]:
    """The first documents, up to a number of bytes."""
    taken, size = [], 0
    for document in documents:
        taken.append(document)
        size += len(document)
        if size > limit:
            break
    return taken


def _report(outcome: Outcome, documents: list[Document], console: Console) -> None:
    """Held-out figures beside the floors, and a paragraph."""
    lm, trainer, ours = outcome.lm, outcome.trainer, outcome.figures["bits_per_byte"]
    with Waiting(console, "measuring the floors", lambda: 0.0):
        floors = _floors(documents)
    table = Table(title="bits per byte on held-out text, less is better", title_justify="left")
    table.add_column("method")
    table.add_column("bits per byte", justify="right")
    table.add_row("this GPT", f"{ours:.3f}", style="bold")
    for name, value in floors.items():
        table.add_row(name, f"{value:.3f}")
    table.add_row("knowing nothing", f"{8:.3f}")
    console.print(table)
    best = min(floors.values())
    say(
        console,
        f"After {trainer.state.tokens:,} tokens in {duration(trainer.state.seconds)} the GPT is "
        f"{'below' if ours < best else 'not yet below'} the better floor: {ours - best:+.3f} bits per byte.",
    )
    prompt = trainer.settings.sample_prompt
    texts = [lm.generate(prompt, max_tokens=160, temperature=0.7, top_p=0.95, seed=seed) for seed in range(3)]
    say(console, "\nA paragraph of its own:\n")
    say(console, prompt + max(texts, key=len).rstrip() + "\n")


def _next_commands(run: Path, console: Console) -> None:
    say(console, f"Everything is in {run}. What next:")
    say(console, f"  bimo generate {run} 'Once upon a time'")
    say(console, f"  bimo doctor --model {run}")
    say(console, "  bimo train recipes/small.yaml --data.paths '[YOUR_TEXT]' --name mine")
    say(console, f"  python -c \"import bimo; print(bimo.load('{run}').generate('The', max_tokens=40))\"")
