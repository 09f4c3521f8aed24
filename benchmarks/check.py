"""Speed of the checkup, in megabytes of CPU time per second and core, beside the plainest reading of the same files.

The peer reads, decodes, cuts and hashes each row, which any check needs at the least: that is the limit.

    python benchmarks/check.py ../shared/data/pretrain_en/train.txt.gz ../shared/data/mt_en_zh/train.jsonl.gz
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bimo.data.checkup import check

DEFAULT = [
    f"../shared/data/{name}"
    for name in ("pretrain_en/train.txt.gz", "pretrain_zh/train.txt.gz", "mt_en_zh/train.jsonl.gz")
]


def plain_reading(path: Path) -> int:
    """Rows of a file after reading, decoding, cutting and hashing, and no check at all."""
    text = path.read_bytes().decode()
    seen = set()
    for row in text.split("\n\n") if path.suffix == ".txt" else text.splitlines():
        seen.add(hash(row if path.suffix == ".txt" else "".join(map(str, json.loads(row).values()))))
    return len(seen)


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """The least CPU time of some runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, default=[Path(name) for name in DEFAULT])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{'file':32} {'MB':>6} {'read only':>10} {'checkup':>10} {'ratio':>6}   (MB/s of one core)")
    with tempfile.TemporaryDirectory() as folder:
        for file in options.files:
            plain = Path(folder) / f"{file.parent.name}-{file.name.removesuffix('.gz')}"
            with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as source, plain.open("wb") as target:
                shutil.copyfileobj(source, target)
            size = plain.stat().st_size / 1e6
            reading = size / cpu_seconds(lambda plain=plain: plain_reading(plain), options.repeats)
            checking = size / cpu_seconds(lambda plain=plain: check(str(plain)), options.repeats)
            print(f"{plain.name:32} {size:6.1f} {reading:10.1f} {checking:10.1f} {checking / reading:6.2f}")


if __name__ == "__main__":
    main()
