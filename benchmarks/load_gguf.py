"""Time and memory of opening a GGUF file, bimo beside transformers, model and tokenizer each.

Each opening happens in a process of its own, after all imports, in turn, several rounds; the file is in the system's
cache. Memory is the growth of the resident set while opening, at its peak. Two states of bimo are shown: opened (the
blocks stay packed in the mapped file), and unpacked to float32, as transformers leaves it.

    pip install "bimo[bench]" && python benchmarks/load_gguf.py SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

Open = Callable[[], object]


def bimo_open(path: Path) -> Open:
    """The weights stay packed."""
    import bimo
    import bimo.lm
    from bimo.model import formats

    assert formats.FORMATS, "imported"
    return lambda: bimo.load(path)


def bimo_unpacked(path: Path) -> Open:
    """The weights become float32."""
    import bimo

    opened = bimo_open(path)

    def run() -> object:
        lm = opened()
        bimo.unpack(lm.model)  # type: ignore[attr-defined]  # an LM
        return lm

    return run


def transformers_open(path: Path) -> Open:
    """As its documentation says: from_pretrained with gguf_file, float32."""
    import gguf
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    assert gguf.GGUFReader, "imported"
    import transformers.models.llama.modeling_llama
    import transformers.models.llama.tokenization_llama

    def run() -> object:
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
        model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        return model, transformers.AutoTokenizer.from_pretrained(**where)

    return run


CONTENDERS: dict[str, Callable[[Path], Open]] = {
    "bimo": bimo_open,
    "bimo, unpacked": bimo_unpacked,
    "transformers": transformers_open,
}


def memory(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(name: str, path: Path) -> dict[str, float]:
    """Seconds and bytes of one opening, in this process."""
    opened = CONTENDERS[name](path)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = memory("VmRSS"), time.perf_counter()
    kept = opened()
    seconds = time.perf_counter() - start
    assert kept is not None, "held until memory is read"
    return {"seconds": seconds, "bytes": memory("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="A .gguf file.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.file)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for _ in range(options.rounds):
        for name, found in results.items():
            command = [sys.executable, __file__, str(options.file), "--one", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(output.splitlines()[-1]))
    size = options.file.stat().st_size
    print(f"{options.file.name}: {size / 1e6:.1f} MB, {options.rounds} rounds\n")
    print("| | seconds, median (min … max) | transformers : this | peak memory | of the file's size |")
    print("|---|---|---|---|---|")
    peer = statistics.median(run["seconds"] for run in results["transformers"])
    for name, found in results.items():
        seconds = sorted(run["seconds"] for run in found)
        middle, peak = statistics.median(seconds), statistics.median(run["bytes"] for run in found)
        spread = f"{middle:.2f} ({seconds[0]:.2f} … {seconds[-1]:.2f})"
        print(f"| {name} | {spread} | {peer / middle:.1f} | {peak / 1e6:.0f} MB | {peak / size:.2f} |")


if __name__ == "__main__":
    main()
