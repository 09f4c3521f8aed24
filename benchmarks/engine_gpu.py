"""The engine on a GPU, in one call: batch-1 decode of a random 1B Llama in bf16 beside transformers.

The same weights for both, written once as a Hugging Face folder; each lives in a process of its own, and they take
turns. The limit is bytes over bandwidth: a step reads all weights once, and the keys and values so far; the bandwidth
is measured in the same call. Equality is by transformers' own arithmetic in the same precision: of tokens that part,
the gap of the logits says whether it is more than rounding.

    pip install "bimo[hf]" && python benchmarks/engine_gpu.py            # --device cpu --quick: a tiny model, anywhere
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

from bimo.core.errors import UserError
from bimo.core.machine import Speed
from bimo.evaluation.apart import Apart
from bimo.evaluation.bench import decode_limit, measure_limits, open_all
from bimo.evaluation.contenders import BimoContender, TransformersContender, Work
from bimo.evaluation.racing import Effort, Measure, PrefillSpeed, Shape, decode_speed, race, total_speed

LLAMA = {
    "vocab_size": 128256, "context_length": 8192, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "head_dim": 64,
    "d_model": 2048, "d_ff": 8192, "qk_norm": False, "rope_theta": 500000.0, "tied_embeddings": True,
}  # fmt: skip
TINY = LLAMA | {
    "vocab_size": 512, "context_length": 1024, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32,
    "d_model": 128, "d_ff": 256,
}  # fmt: skip
WANTED_SHARE, WANTED_RATIO = 0.7, 3.0


class Weights:
    """Random weights in a Hugging Face folder.

    Args:
        spec: The shape.
        folder: Where they go.
        dtype: In which they are stored.
        device: Where they are made.
    """

    def __init__(self, spec: dict[str, object], folder: str, dtype: str, device: str) -> None:
        import torch

        from bimo import GPT, ModelSpec
        from bimo.interop import export

        torch.manual_seed(0)
        with torch.device(device):
            model = GPT(ModelSpec.from_dict(spec))
        export(model, None, Path(folder), "hf", dtype)
        self.parameters = model.n_parameters()

    def about(self) -> int:
        return self.parameters


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=2, help="Of the CPU.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=150.0, help="After these no measure begins.")
    parser.add_argument("--quick", action="store_true", help="A tiny model and two rounds.")
    options = parser.parse_args()
    spec, new = (TINY, 32) if options.quick else (LLAMA, 128)
    gpu = options.device != "cpu"
    precision, dtype = ("bf16", "bfloat16") if gpu else ("fp32", "float32")
    limits = measure_limits(options.device, precision, options.threads, 0.5 if options.quick else 4.0)
    say(f"{options.device}: {limits.read_bytes / 1e9:,.0f} GB/s read, {limits.flops / 1e12:.2f} TFLOP/s in {precision}")
    with tempfile.TemporaryDirectory(prefix="engine-gpu-") as folder:
        path = f"{folder}/model"
        weights = Apart(Weights, spec, path, dtype, options.device, threads=options.threads)
        say(f"{weights.call('about') / 1e6:,.0f}M parameters in {dtype}")
        weights.close()
        settings = {"threads": options.threads, "max_running": 16, "cache_tokens": 16 * 1024}
        left_out: dict[str, str] = {}
        makers = {
            "bimo": (BimoContender, (path, settings, options.device)),
            "transformers": (TransformersContender, (path, options.threads, options.device, dtype)),
        }
        contenders = open_all(makers, options.threads, left_out, say)
        try:
            return report(contenders, options, new, limits)
        except UserError as error:
            say(f"failed: {error}")
            return 1
        finally:
            for what, why in left_out.items():
                say(f"left out: {what}: {why}")
            for contender in contenders.values():
                contender.close()


def report(contenders: dict[str, Apart], options: argparse.Namespace, new: int, limits: Speed) -> int:
    """Race, compare tokens, print the table; 0: what is promised is kept, or was not asked for."""
    about, vocab_size = contenders["bimo"].call("about"), (TINY if options.quick else LLAMA)["vocab_size"]
    one, many, long = Shape(1, 16, new), Shape(16, 16, new), Shape(1, 512, 1)
    bounds = {shape: decode_limit(about, limits, shape) for shape in (one, many)}
    bounds[long] = limits.flops / about.matrix_flops
    measures = [
        Measure("decode, 1 stream", "tokens/s", one, decode_speed),
        Measure("16 streams", "tokens/s", many, total_speed),
        Measure("prefill 512", "tokens/s", long, PrefillSpeed(512)),
    ]
    results = race(contenders, measures, vocab_size, Effort(2 if options.quick else options.rounds, options.seconds))
    say(f"\n| tokens/s, median (min … max) | {' | '.join(contenders)} | ratio | limit | share |")
    say("|---" * (len(contenders) + 4) + "|")
    shares, ratios = {}, {}
    for measure in measures:
        rounds = {name: results.figures.get((measure.name, name), [0.0]) for name in contenders}
        middle = {name: statistics.median(found) for name, found in rounds.items()}
        cells = [f"{middle[name]:,.1f} ({min(found):,.1f} … {max(found):,.1f})" for name, found in rounds.items()]
        ratio = middle["bimo"] / theirs if (theirs := middle.get("transformers")) else float("nan")
        shares[measure.shape] = share = middle["bimo"] / bounds[measure.shape]
        ratios[measure.shape] = ratio
        say(f"| {measure.name} | {' | '.join(cells)} | {ratio:.2f} | {bounds[measure.shape]:,.0f} | {share:.0%} |")
    say(f"\nbimo: {about.name}")
    for what, why in results.left_out.items():
        say(f"left out: {what}: {why}")
    if "transformers" in contenders and "transformers" not in results.left_out:
        equality(contenders, vocab_size, new)
    say(f"decode: {shares[one]:.0%} of the limit (promised: {WANTED_SHARE:.0%}), "
        f"{ratios[one]:.2f} x transformers (promised: {WANTED_RATIO})")  # fmt: skip
    return int(not options.quick and (shares[one] < WANTED_SHARE or ratios[one] < WANTED_RATIO))


def equality(contenders: dict[str, Apart], vocab_size: int, new: int) -> None:
    """Whether bimo's tokens are the likeliest ones by transformers' logits."""
    rng = random.Random(1)
    prompts = tuple(tuple(rng.choices(range(vocab_size), k=24)) for _ in range(8))
    answers = contenders["bimo"].call("run", Work(prompts, new)).tokens
    right, count, gap = contenders["transformers"].call("check", prompts, answers)
    say(f"greedy: {right} of {count} tokens are transformers' likeliest; largest gap of logits {gap:.1e}")


if __name__ == "__main__":
    sys.exit(main())
