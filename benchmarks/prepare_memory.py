"""Five gigabytes of text prepared and trained on within one gigabyte of memory.

Makes a corpus of the given size, then, each in a process of its own: trains the tokenizer and prepares the shards, and
trains a small model on rows drawn from all over them. Prints the peak resident memory of each, and the speed.

    python benchmarks/prepare_memory.py --gigabytes 5 --folder /some/disk
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = ("prepare", "train")
RECIPE = [
    "--tokenizer.vocab_size", "4096", "--tokenizer.train_megabytes", "50", "--data.validation_share", "0.001",
    "--model.n_layers", "2", "--model.n_heads", "2", "--model.d_model", "64", "--training.steps", "300",
    "--training.precision", "fp32", "--training.evaluate_rows", "16",
]  # fmt: skip


def make_corpus(path: Path, n_bytes: int) -> None:
    """Words with natural frequencies, in lines and documents, English and Chinese mixed."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, weights=range(26, 0, -1), k=rng.randint(2, 9))) for _ in range(30_000)]
    words += ["".join(chr(rng.randint(0x4E00, 0x6FFF)) for _ in range(rng.randint(1, 4))) for _ in range(10_000)]
    rng.shuffle(words)
    weights = [1 / (rank + 3) for rank in range(len(words))]  # Zipf
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < n_bytes:
            drawn = rng.choices(words, weights, k=100_000)
            lines = [" ".join(drawn[i : i + 12]) for i in range(0, len(drawn), 12)]
            text = "\n".join(line + ("\n" if rng.random() < 0.1 else "") for line in lines) + "\n"
            written += file.write(text)


def stage(name: str, folder: Path) -> None:
    """Child process: one command of bimo, and its peak memory."""
    from bimo.cli import main

    start = time.perf_counter()
    code = main([name, "--data.paths", f"[{folder / 'corpus.txt'}]", "--folder", str(folder), "--name", "run", *RECIPE])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{name}: exit code {code}, {time.perf_counter() - start:.0f} s, peak memory {peak / 2**20:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, default=None, help="where there is room for twice the text")
    parser.add_argument("--child", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        stage(options.child, options.folder)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        corpus = Path(folder) / "corpus.txt"
        make_corpus(corpus, int(options.gigabytes * 1e9))
        print(f"corpus: {corpus.stat().st_size / 1e9:.2f} GB")
        for name in STAGES:
            subprocess.run([sys.executable, __file__, "--child", name, "--folder", folder], check=True)


if __name__ == "__main__":
    main()
