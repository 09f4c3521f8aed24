"""What watching costs: training with everything on beside the bare loop, in turn, in one process.

The bare loop is the textbook: batch, forward, loss, backward, clip, update, with the same model, loss and micro-batches
and no callback. Everything on is what `bimo train` does: watchdog with good states in memory, flight recorder, events,
metrics, and a sealed checkpoint every 200 steps, whose time is measured alone and shared out. Both go through the same
batches in blocks of steps that alternate; the table gives medians over the blocks.

    python benchmarks/training_overhead.py [--blocks 12]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bimo import GPT, ModelSpec, Trainer, TrainingSettings
from bimo.core import machine
from bimo.core.artifacts import RunDirectory
from bimo.core.batch import Batch
from bimo.model.recompute import recompute
from bimo.training import Checkpoints, EventsFile, FlightRecorder, MetricsFile, Watchdog
from bimo.training.losses import chunked_cross_entropy
from bimo.training.optimizers import adamw
from bimo.training.streams import BatchStream

SIZES = {
    "demo: 4 layers of 192, 4 x 256 tokens": (ModelSpec(n_layers=4, n_heads=3, n_kv_heads=1, d_model=192,
                                                        vocab_size=2048, context_length=256), 4, 50),
    "small: 6 layers of 384, 16 x 256 tokens": (ModelSpec(n_layers=6, n_heads=6, d_model=384,
                                                          vocab_size=4096, context_length=256), 16, 8),
}  # fmt: skip
MICRO_TOKENS, EVERY = 2048, 200


def stream(spec: ModelSpec, rows: int) -> BatchStream:
    def batch(number: int) -> Batch:
        ids = torch.randint(
            spec.vocab_size, (rows, spec.context_length + 1), generator=torch.Generator().manual_seed(number)
        )
        return Batch(ids[:, :-1], ids[:, 1:], torch.ones(rows, spec.context_length))

    return BatchStream(batch, 10**9, {})


def bare(spec: ModelSpec, rows: int) -> Callable[[], None]:
    """One step of the textbook."""
    model = GPT(spec).train()
    optimizer = adamw(model, TrainingSettings())
    batches = iter(stream(spec, rows))

    def step() -> None:
        batch = next(batches)
        count = batch.weight_sum()
        total = torch.zeros(())
        for part in batch.split(max(1, MICRO_TOKENS // spec.context_length)):
            with recompute():
                hidden = model.hidden(part.ids)
                loss = chunked_cross_entropy(hidden, model.lm_head.weight, part.targets, part.weights) / count
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total.item()

    return step


def watched(spec: ModelSpec, rows: int, folder: Path) -> tuple[Trainer, Callable[[], None]]:
    """One step with all that hangs on it, but for the checkpoints."""
    run = RunDirectory(folder)
    callbacks = [EventsFile(run.events), FlightRecorder(run.flight), Watchdog(run.set_aside)]
    callbacks += [MetricsFile(run.metrics), Checkpoints()]
    settings = TrainingSettings(steps=10**6, batch_size=rows, precision="fp32", checkpoint_every=0, evaluate_every=0)
    trainer = Trainer(GPT(spec), settings, callbacks=callbacks, folder=run.checkpoints)
    trainer.data = stream(spec, rows)
    trainer.prepare_machine()
    trainer._begin()
    batches = iter(trainer.data)
    return trainer, lambda: trainer._advance(batches)


def timed(step: Callable[[], None], steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=12, help="Blocks of steps of each.")
    options = parser.parse_args()
    machine.set_threads(0)
    machine.keep_memory_on_heap()
    print(f"{machine.cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| size | bare, median (min … max) ms | watched ms | checkpoint ms | per step of 200 | watched : bare |")
    print("|---|---|---|---|---|---|")
    for name, (spec, rows, steps) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            plain, (trainer, all_on) = bare(spec, rows), watched(spec, rows, Path(folder))
            timed(plain, 5), timed(all_on, 5)
            pairs = [(timed(plain, steps), timed(all_on, steps)) for _ in range(options.blocks)]
            saves = []
            for _ in range(5):
                begin = time.perf_counter()
                trainer.save_checkpoint()
                saves.append(time.perf_counter() - begin)
                timed(all_on, 1)
        ours, theirs = [b for _, b in pairs], [a for a, _ in pairs]
        shared = statistics.median(saves) / EVERY
        ratio = statistics.median((b + shared) / a for a, b in pairs)
        spread = f"{1000 * min(theirs):.1f} … {1000 * max(theirs):.1f}"
        print(
            f"| {name} | {1000 * statistics.median(theirs):.1f} ({spread}) | {1000 * statistics.median(ours):.1f} | "
            f"{1000 * statistics.median(saves):.0f} | {1000 * shared:.2f} | {ratio:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
