"""Fine-tuning on rows of like length, and on rows that several records share: the same records and model, in turn.

    python benchmarks/packing_cpu.py [PAIRS.jsonl …] [--base MODEL] [--context 512] [--rows 4] [--method lora]

Per round each kind makes some updates; the table shows tokens of records per second (padding does not count), medians
and spread, how much of a batch is padding, and what `adapt.batches: auto` would choose. Records have "source" and
"target"; none named: ../shared/data/mt_en_de. Without --base: a new GPT of 4 layers, width 256.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import bimo
from bimo import LM, Trainer, TrainingSettings
from bimo.batching import with_batches
from bimo.core.config import AdaptSettings, RunSettings
from bimo.examples.task_rows import TaskRows
from bimo.materials import Rows
from bimo.model.adapting import attach
from bimo.tasks import make_task
from bimo.tasks.records import read_examples
from bimo.tokenizer import Tokenizer
from bimo.training.grouping import grouped
from bimo.training.row_packing import packed
from bimo.training.rows import TokenRows
from bimo.training.streams import BatchStream

_PAIRS = Path("../shared/data/mt_en_de/train.jsonl.gz")


def opened(args: argparse.Namespace) -> tuple[LM, TokenRows]:
    """The model, and the records as rows of its ids."""
    examples = read_examples(make_task("translation(both=True)"), args.pairs or [str(_PAIRS)])[: args.records]
    if args.base:
        lm = bimo.load(args.base)
        lm.model = bimo.unpack(lm.model)
    else:
        tokenizer = Tokenizer.train((text for e in examples for text in (e.source, e.target)), 8192)
        spec = bimo.ModelSpec(
            vocab_size=tokenizer.vocab_size,
            context_length=args.context,
            n_layers=4,
            n_heads=4,
            head_dim=64,
            d_model=256,
        )
        lm = bimo.new(spec, tokenizer)
    rows = TaskRows(lm.tokenizer, args.context, "skip", lambda _kind, /, **_facts: None).rows(examples)
    if args.method == "lora":
        attach(lm.model, 8, generator=torch.Generator().manual_seed(0))
    return lm, rows


def measured(lm: LM, stream: BatchStream, args: argparse.Namespace) -> list[float]:
    """Tokens of records per second, update by update."""
    settings = TrainingSettings(
        steps=10**6, optimizer="adamw", learning_rate=1e-4, schedule="constant", warmup_steps=0, device=args.device,
        threads=args.threads, evaluate_every=0, checkpoint_every=0, watchdog=False,
    )  # fmt: skip
    trainer = Trainer(lm.model, settings)
    trainer.prepare_machine()
    speeds = []
    for number in range(args.updates + 1):
        batch = stream.make(number)
        start = time.perf_counter()
        trainer.step(iter([batch]))
        speeds.append(read(batch) / (time.perf_counter() - start))
    return speeds[1:]  # the first one warms up


def read(batch: Any) -> int:
    """Tokens of records: up to the last trained one of a row, because every record ends with one."""
    return sum(int(row.nonzero().max()) + 1 for row in batch.weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*")
    parser.add_argument("--base", default="")
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--device", default="cpu")
    numbers = {"context": 512, "rows": 4, "records": 20_000, "threads": 2, "updates": 5, "rounds": 5}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    lm, rows = opened(args)
    streams = {
        "grouped": grouped(rows, args.rows * args.context, 0),
        "packed": packed([rows], [1.0], args.rows, args.context, 0),
    }
    speeds: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(args.rounds):
        for name, stream in streams.items():
            speeds[name] += measured(lm, stream, args)
    settings = RunSettings(
        model=lm.model.spec,
        adapt=AdaptSettings(context_length=args.context),
        training=TrainingSettings(batch_size=args.rows),
    )
    print(f"{len(rows):,} records of {rows.lengths.mean():.0f} tokens, context {args.context}, {args.method}")
    print(f"{'batches':10} {'tokens/s':>10} {'least … most':>20} {'padding':>8} {'widths':>7}")
    for name, stream in streams.items():
        whole = [stream.make(n) for n in range(len(stream))]
        padding = 1 - sum(rows.lengths) / sum(batch.n_tokens for batch in whole)
        found, widths = speeds[name], len({batch.ids.shape[1] for batch in whole})
        span = f"{min(found):,.0f} … {max(found):,.0f}"
        print(f"{name:10} {statistics.median(found):>10,.0f} {span:>20} {padding:>8.1%} {widths:>7}")
    print("auto:", with_batches(settings, Rows([rows], []), lm.model)[1])


if __name__ == "__main__":
    main()
