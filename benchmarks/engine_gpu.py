"""The engine on a GPU, in one call: is it right, how fast is it beside transformers, how near the limit?

    pip install "bimo[hf]" && python benchmarks/engine_gpu.py --output figures      # one GPU, below eight minutes
    python benchmarks/engine_gpu.py --tiny --device cpu                             # a rehearsal: every part, anywhere

Parts: right (decode steps of every way give the tokens of plain steps, in fp32, with windows, with little memory, with
packed weights), decode (one text), equality (bimo's tokens by transformers' logits), prefill, batch (1 to 64 texts),
kernels (where a step's time goes). A part that fails is reported, and the rest goes on.

The model is a random Llama of 1.2B parameters, written once as a Hugging Face folder in bf16, so that all compute with
the same weights; int8 and int4 are rounded from them. Each contender lives in a process of its own, and they take
turns; what compiles or is recorded does so before anything is timed. The limit is bytes over bandwidth: a step reads
all weights once, and the keys and values so far; the bandwidth is measured in the same call.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bimo.core.errors import UserError
from bimo.core.machine import Speed
from bimo.evaluation.apart import Apart
from bimo.evaluation.bench import decode_limit, measure_limits, open_all
from bimo.evaluation.contenders import About, BimoContender, TransformersContender, Work
from bimo.evaluation.racing import Effort, Measure, PrefillSpeed, Shape, decode_speed, race, total_speed

LLAMA = {
    "vocab_size": 128256, "context_length": 8192, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "head_dim": 64,
    "d_model": 2048, "d_ff": 8192, "qk_norm": False, "rope_theta": 500000.0, "tied_embeddings": True,
}  # fmt: skip
TINY = LLAMA | {
    "vocab_size": 512, "context_length": 1024, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32,
    "d_model": 128, "d_ff": 256,
}  # fmt: skip
PARTS = ("right", "decode", "equality", "prefill", "batch", "kernels")
WANTED_SHARE, WANTED_RATIO = 0.7, 3.0
BEST, THEIRS = "bimo compiled", "transformers"


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


class Right:
    """Greedy texts of small random models in fp32, by decode steps of every way.

    Args:
        device: Where they run.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def check(self, way: str, changes: dict[str, Any], options: dict[str, Any]) -> tuple[int, int, str]:
        """Texts that are those of plain steps, all texts, and what ran.

        Args:
            way: Of decode steps.
            changes: Of the model's shape.
            options: Of the engine.
        """
        import torch

        from bimo import GPT, Engine, EngineSettings, ModelSpec, SamplingParams

        torch.manual_seed(1)
        model = GPT(ModelSpec.from_dict(TINY | {"n_layers": 3} | changes)).eval().to(self.device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        rng, shared = random.Random(0), list(range(40))
        prompts = [rng.choices(range(512), k=n) for n in (1, 3, 15, 16, 17, 100, 250, 255, 300)]
        prompts += [[*shared, n] for n in range(4)]
        params, found = SamplingParams(max_tokens=24, min_tokens=24, temperature=0), {}
        for name in ("plain", way):
            settings = EngineSettings(backend="torch", decode=name, **options)  # type: ignore[arg-type]  # of ours
            engine = Engine(model, None, settings)
            found[name] = [answer.choices[0].tokens for answer in engine.generate(prompts, params)]
        same = sum(a == b for a, b in zip(found["plain"], found[way], strict=True))
        return same, len(prompts), engine.runner.name


class Kernels(BimoContender):
    """A contender that says which kernels a decode step launches."""

    def table(self, work: Work, rows: int) -> str:
        """Where the time of a text goes, by torch's profiler."""
        from torch.profiler import ProfilerActivity, profile

        self.run(work)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            self.run(work)
        averages = found.key_averages()
        sort = "cuda_time_total" if any(getattr(a, "device_time_total", 0) for a in averages) else "cpu_time_total"
        return str(averages.table(sort_by=sort, row_limit=rows, max_name_column_width=60))


@dataclass
class Session:
    """One call of this program.

    Attributes:
        options: Of the command line.
        path: The model.
        spec: Its shape.
        limits: Of the device.
        found: What goes into the JSON file.
        lines: What goes into the table.
    """

    options: argparse.Namespace
    path: str
    spec: dict[str, Any]
    limits: Speed
    until: float
    found: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    contenders: dict[str, Apart] = field(default_factory=dict)
    abouts: dict[str, About] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.perf_counter()

    def say(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)


def right(session: Session) -> None:
    """Every way gives the texts of plain steps."""
    device = session.options.device
    ways = ("graph", "compiled") if device != "cpu" else ("static", "compiled")
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("fp32", {}, {}),
        ("windows", {"window": 100, "full_layers": [1]}, {}),
        ("little memory", {}, {"cache_tokens": 640}),
        ("int8 weights", {}, {"dtype": "int8"}),
    ]
    checks = Apart(Right, device, threads=session.options.threads)
    for way in ways:
        few = cases[:1] if session.options.tiny else cases[::3]  # each compiles for a minute
        for name, changes, options in few if way == "compiled" else cases:
            try:
                same, count, runner = checks.call("check", way, changes, options)
                session.say(f"right: {way}, {name}: {same} of {count} texts are those of plain steps ({runner})")
                session.found[f"right, {way}, {name}"] = [same, count, runner]
            except UserError as error:
                session.say(f"right: {way}, {name}: FAILED: {error}")
                checks = Apart(Right, device, threads=session.options.threads)
    checks.close()


def open_contenders(session: Session) -> None:
    """Those of all parts that are timed."""
    options, gpu = session.options, session.options.device != "cpu"
    settings = {"threads": options.threads, "max_running": 64, "cache_tokens": 64 * 1024, "backend": "torch"}
    ways = {
        "bimo compiled": {"decode": "compiled"},
        "bimo graph": {"decode": "graph"},
        "bimo plain": {"decode": "plain"},
    }
    ways |= {f"bimo {name}": {"decode": "compiled", "dtype": name} for name in ("int8", "int4")}
    makers: dict[str, Any] = {
        name: (BimoContender, (session.path, settings | way, options.device)) for name, way in ways.items()
    }
    precision = "bfloat16" if gpu else "float32"
    makers[THEIRS] = TransformersContender, (session.path, options.threads, options.device, precision)
    left_out: dict[str, str] = {}
    session.contenders = open_all(makers, options.threads, left_out, session.say)
    for name, why in left_out.items():
        session.say(f"left out: {name}: {why}")


def decode(session: Session) -> None:
    """One text; the promise."""
    new = 32 if session.options.tiny else 128
    shape = Shape(1, 16, new)
    middle = timed(
        session, [Measure("decode, 1 stream", "tokens/s", shape, decode_speed)], rounds=session.options.rounds
    )
    figures, about = middle["decode, 1 stream"], session.abouts.get(BEST)
    if about is None or BEST not in figures:
        return
    share = figures[BEST] / decode_limit(about, session.limits, shape)
    ratio = figures[BEST] / figures[THEIRS] if THEIRS in figures else float("nan")
    session.found["promise"] = {"share": share, "ratio": ratio}
    session.say(
        f"decode: {share:.0%} of the limit (promised: {WANTED_SHARE:.0%}), "
        f"{ratio:.2f} x transformers (promised: {WANTED_RATIO})"
    )


def prefill(session: Session) -> None:
    """Prompts of one text."""
    lengths = (256,) if session.options.tiny else (512, 2048)
    names = ("bimo graph", "bimo int4", THEIRS)
    shapes = [Shape(1, length, 1) for length in lengths]
    timed(session, [Measure(f"prefill {s.length}", "tokens/s", s, PrefillSpeed(s.length), names) for s in shapes], 3)


def batch(session: Session) -> None:
    """From one text to many."""
    new = 8 if session.options.tiny else 64
    for count in (16, 64, 4, 2, 8, 32) if not session.options.tiny else (3, 8):
        if session.left < 40:
            session.say(f"no time was left for {count} streams")
            continue
        names = ("bimo compiled", "bimo graph", "bimo int4", THEIRS)
        names = names if session.left > 150 or session.options.tiny else ("bimo graph", THEIRS)
        timed(session, [Measure(f"{count} streams", "tokens/s", Shape(count, 16, new), total_speed, names)], 3)


def timed(session: Session, measures: Sequence[Measure], rounds: int) -> dict[str, dict[str, float]]:
    """Race, and a line for each measure and contender; medians by measure and contender."""
    vocab_size = session.spec["vocab_size"]
    for name in list(session.contenders):
        for measure in measures:
            if name not in session.contenders or (measure.only and name not in measure.only):
                continue
            try:
                start = time.perf_counter()
                session.contenders[name].call("run", measure.shape.work(vocab_size, 1))
                session.abouts[name] = session.contenders[name].call("about")  # it may have settled for less
                session.say(f"{name}, {measure.name}: ready after {time.perf_counter() - start:.1f} s")
            except UserError as error:
                session.say(f"left out: {name}: {error}")
                session.contenders.pop(name).close()
    results = race(session.contenders, measures, vocab_size, Effort(rounds, max(20.0, session.left - 20)))
    middle: dict[str, dict[str, float]] = {}
    for (measure_name, name), figures in results.figures.items():
        about, shape = session.abouts[name], next(m.shape for m in measures if m.name == measure_name)
        bound = session.limits.flops / about.matrix_flops if about.matrix_flops and shape.new_tokens == 1 else 0.0
        if shape.new_tokens > 1 and about.kv_bytes:
            bound = decode_limit(about, session.limits, shape)
        median = statistics.median(figures)
        middle.setdefault(measure_name, {})[name] = median
        row = {"figures": figures, "median": median, "limit": bound, "share": median / bound if bound else None}
        session.found[f"{measure_name}, {name}"] = row
        of = f" | {bound:,.0f} | {median / bound:.0%} |" if bound else " | – | – |"
        session.say(f"| {measure_name} | {name} | {median:,.1f} ({min(figures):,.1f} … {max(figures):,.1f}){of}")
    for what, why in results.left_out.items():
        session.say(f"left out: {what}: {why}")
        if what in session.contenders:
            session.contenders.pop(what).close()
    return middle


def equality(session: Session) -> None:
    """Whether bimo's tokens are the likeliest ones by transformers' logits; of others, by how much they are not."""
    new, vocab_size = 32, session.spec["vocab_size"]
    rng = random.Random(1)
    prompts = tuple(tuple(rng.choices(range(vocab_size), k=24)) for _ in range(8))
    for name in ("bimo compiled", "bimo graph", "bimo plain"):
        if name in session.contenders and THEIRS in session.contenders:
            answers = session.contenders[name].call("run", Work(prompts, new)).tokens
            right, count, gap = session.contenders[THEIRS].call("check", prompts, answers)
            session.say(
                f"{name}: {right} of {count} tokens are transformers' likeliest; largest gap of logits {gap:.1e}"
            )
            session.found[f"equality, {name}"] = [right, count, gap]


def kernels(session: Session) -> None:
    """Where the time of compiled steps goes."""
    for contender in session.contenders.values():
        contender.close()
    session.contenders.clear()
    settings = {"threads": session.options.threads, "cache_tokens": 4096, "decode": "compiled", "backend": "torch"}
    apart = Apart(Kernels, session.path, settings, session.options.device, threads=session.options.threads)
    session.say(apart.call("table", Shape(1, 16, 24).work(session.spec["vocab_size"], 1), 30))
    apart.close()


RUN: dict[str, Callable[[Session], None]] = {
    "right": right, "decode": decode, "equality": equality, "prefill": prefill, "batch": batch, "kernels": kernels,
}  # fmt: skip


def attempts(session: Session) -> Iterator[str]:
    """Each part in turn; names of those that failed."""
    timed_parts = {"decode", "equality", "prefill", "batch"}
    for part in PARTS:
        if part not in session.options.parts:
            continue
        if session.left < 10:
            session.say(f"no time was left for {part}")
            continue
        start = time.perf_counter()
        try:
            if part in timed_parts and not session.contenders:
                open_contenders(session)
            RUN[part](session)
        except Exception:  # the other parts still have something to say
            session.say(f"{part} FAILED:\n{traceback.format_exc()}")
            yield part
        session.say(f"-- {part}: {time.perf_counter() - start:.0f} s")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=2, help="Of the CPU.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=440.0, help="For everything; what does not fit is left out.")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"Of: {', '.join(PARTS)}.")
    parser.add_argument("--output", default="", help="A folder for engine_gpu.json and engine_gpu.md.")
    parser.add_argument("--tiny", "--quick", action="store_true", dest="tiny", help="A tiny model and two rounds.")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    options.rounds = min(options.rounds, 2) if options.tiny else options.rounds
    if strangers := set(options.parts) - set(PARTS):
        parser.error(f"no parts {', '.join(strangers)}; there are {', '.join(PARTS)}")
    return options


def main() -> int:
    options = parsed()
    until = time.perf_counter() + options.seconds
    gpu, spec = options.device != "cpu", TINY if options.tiny else LLAMA
    precision, dtype = ("bf16", "bfloat16") if gpu else ("fp32", "float32")
    limits = measure_limits(options.device, precision, options.threads, 0.5 if options.tiny else 4.0)
    with tempfile.TemporaryDirectory(prefix="engine-gpu-") as folder:
        session = Session(options, f"{folder}/model", spec, limits, until)
        flops = f"{limits.flops / 1e12:.2f} TFLOP/s in {precision}"
        session.say(f"{options.device}: {limits.read_bytes / 1e9:,.0f} GB/s read, {flops}")
        session.found["limits"] = asdict(limits)
        weights = Apart(Weights, spec, session.path, dtype, options.device, threads=options.threads)
        session.say(f"{weights.call('about') / 1e6:,.0f}M parameters in {dtype}")
        weights.close()
        failed = list(attempts(session))
        for contender in session.contenders.values():
            contender.close()
    for name, about in session.abouts.items():
        session.say(f"{name}: {about.name}; {about.weight_bytes / 1e6:,.1f} MB of weights")
    session.found |= {"failed": failed, "contenders": {name: asdict(about) for name, about in session.abouts.items()}}
    if options.output:
        target = Path(options.output)
        target.mkdir(parents=True, exist_ok=True)
        (target / "engine_gpu.json").write_text(json.dumps(session.found, indent=1) + "\n", encoding="utf-8")
        (target / "engine_gpu.md").write_text("\n".join(session.lines) + "\n", encoding="utf-8")
    promise = session.found.get("promise", {"share": 0.0, "ratio": 0.0})
    kept = promise["share"] >= WANTED_SHARE and promise["ratio"] >= WANTED_RATIO
    return int(bool(failed) or not (options.tiny or kept or "decode" not in options.parts))


if __name__ == "__main__":
    sys.exit(main())
