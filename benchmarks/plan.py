"""Plans against truth: `bimo plan` beside the run that it foretells, on shapes drawn at random.

    python benchmarks/plan.py [--first 0] [--count 12] [--seed 7] [--steps 6] [--text my.txt]

For each drawn recipe: the plan, then `bimo train` itself for as many updates, each in a process of its own. Printed are
the peak memory and the median time of an update, foretold and measured, and their ratio. Part of a list can be run at a
time (--first, --count): the draws are the same for the same seed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bimo.core.spec import ModelSpec
from bimo.data.stdlib_text import python_documents

RUN = """
import json, sys
from bimo.cli import main
from bimo.core.machine import peak_memory
code = main(json.loads(sys.argv[1]))
print("PEAK", peak_memory())
sys.exit(code)
"""


def draw(number: int, seed: int, steps: int) -> dict[str, object]:
    """A recipe, from half a million to 60 million weights."""
    chance = random.Random(seed * 1000 + number)
    while True:
        heads = chance.choice([2, 3, 4, 6, 8, 10, 12])
        width = heads * chance.choice([32, 48, 64])
        layers = chance.randint(2, 12)
        ids = chance.choice([512, 1024, 2048, 4096, 8192, 16384])
        tied = chance.random() < 0.7
        spec = ModelSpec(n_layers=layers, n_heads=heads, d_model=width, vocab_size=ids)
        weights = layers * (4 * width * width + 3 * width * spec.d_ff) + ids * width * (1 if tied else 2)
        if 0.5e6 < weights < 60e6:
            break
    context = chance.choice([64, 128, 256, 512, 1024])
    batch = max(1, chance.choice([1024, 2048, 4096, 8192, 16384]) // context)
    return {
        "model.n_layers": layers, "model.n_heads": heads, "model.d_model": width,
        "model.n_kv_heads": chance.choice([heads, max(h for h in (1, 2, 3) if heads % h == 0)]),
        "model.context_length": context, "model.tied_embeddings": tied,
        "model.feedforward": chance.choice(["swiglu", "swiglu", "gelu"]),
        "tokenizer.vocab_size": ids, "training.batch_size": batch,
        "training.optimizer": chance.choice(["adamw", "muon"]), "training.steps": steps,
        "training.warmup_steps": 2, "training.evaluate_rows": chance.choice([16, 64]),
    }  # fmt: skip


def arguments(recipe: dict[str, object]) -> list[str]:
    return [
        word
        for key, value in recipe.items()
        for word in (f"--{key}", str(value).lower() if isinstance(value, bool) else str(value))
    ]


def run(command: list[str]) -> tuple[str, float]:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", RUN, json.dumps(command)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout, time.monotonic() - start


def compare(number: int, recipe: dict[str, object], text: str, folder: Path) -> tuple[float, float]:
    """Plan, run, print a row; ratios of foretold to measured memory and step time."""
    own = ["--folder", str(folder), "--name", f"run-{number}", *arguments(recipe)]
    _, plan_s = run(["plan", text, "--output", str(folder / "plan.json"), *own])
    plan = json.loads((folder / "plan.json").read_text())
    out, run_s = run(["train", text, *own])
    peak = int(out.rpartition("PEAK ")[2])
    lines = [json.loads(line) for line in (folder / f"run-{number}" / "flight.jsonl").read_text().splitlines()]
    step = statistics.median([line["seconds"] for line in lines if "seconds" in line][1:])
    memory_ratio, step_ratio = plan["memory_bytes"] / peak, plan["step_seconds"] / step
    r = recipe
    print(
        f"| {number} | {plan['parameters'] / 1e6:.1f} | {r['model.n_layers']} x {r['model.d_model']} "
        f"| {r['tokenizer.vocab_size']} "
        f"| {r['training.batch_size']} x {r['model.context_length']} | {r['training.optimizer']} "
        f"| {plan['memory_bytes'] / 1e6:.0f} | {peak / 1e6:.0f} | {memory_ratio:.2f} "
        f"| {plan['step_seconds']:.2f} | {step:.2f} | {step_ratio:.2f} "
        f"| {plan['total_seconds']:.0f} | {run_s:.0f} | {plan_s:.0f} |",
        flush=True,
    )
    return memory_ratio, step_ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--text", default="", help="Default: Python's own documentation.")
    options = parser.parse_args()
    print("| # | M weights | layers x width | ids | rows x context | optimizer | MB foretold | MB | ratio "
          "| s per step foretold | s | ratio | s in all foretold | s | s to plan |")  # fmt: skip
    print("|" + "---|" * 15, flush=True)
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = options.text or str(folder / "text.txt")
        if not options.text:
            (folder / "text.txt").write_text("\n\n".join(document.text for document in python_documents()))
        for number in range(options.first, options.first + options.count):
            ratios.append(compare(number, draw(number, options.seed, options.steps), text, folder))
    memory, step = zip(*ratios, strict=True)
    print(f"memory within 10 %: {sum(abs(r - 1) <= 0.1 for r in memory)} of {len(memory)}; "
          f"step within 15 %: {sum(abs(r - 1) <= 0.15 for r in step)} of {len(step)}")  # fmt: skip


if __name__ == "__main__":
    main()
