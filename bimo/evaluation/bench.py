"""How fast a model is on this machine: decode, prefill, many streams, memory; shares of the limits; peers beside it.

Everybody who is measured lives in a process of their own and gets the same prompts, in turn. What a peer needs (a GGUF
file, a Hugging Face folder) is exported to a temporary folder, with weights of the same precision.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bimo.core.errors import UserError, nearest
from bimo.core.machine import Speed, choose_device, choose_precision, cpu_name, usable_cores
from bimo.core.settings import Settings
from bimo.core.spec import ModelSpec
from bimo.evaluation.apart import Apart
from bimo.evaluation.contenders import About, BimoContender, Maker, Run
from bimo.evaluation.limits import Limits
from bimo.evaluation.peers import PEERS, Subject
from bimo.evaluation.racing import Effort, Measure, PrefillSpeed, Results, Shape, decode_speed, race, total_speed
from bimo.interop import find_model, open_model

OURS = "bimo"
_ROUNDS = 9
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchSettings(Settings):
    """What is measured, and how long."""

    threads: int = 0
    """Threads of the CPU, for all; 0: one for each core."""
    backend: Literal["auto", "native", "torch"] = "auto"
    """Of the engine: native (C++ kernels for CPUs), torch, or auto."""
    device: str = "auto"
    """cpu, cuda or another one of torch's; auto: the best there is."""
    seconds: float = 60.0
    """After these nothing new is measured; loading comes on top."""
    peers: tuple[str, ...] = ("llama.cpp", "transformers")
    """Who runs beside, where installed; [] for nobody."""
    trace: str = ""
    """A file for where the time of each step went; opens in https://ui.perfetto.dev or chrome://tracing."""

    def problems(self) -> list[str]:
        found = [] if self.threads >= 0 else [f"threads must be at least 0, is {self.threads}"]
        if not 0 < self.seconds < float("inf"):
            found.append(f"seconds must be a positive number, is {self.seconds}")
        strangers = [f"peers has no {name!r}{nearest(name, PEERS)}" for name in self.peers if name not in PEERS]
        return found + strangers


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the report.

    Attributes:
        name: What was measured.
        unit: Of the figures.
        figures: Median by contender.
        spread: (largest - smallest) / median by contender.
        limit: What this machine's memory and matrix speed allow bimo.
    """

    name: str
    unit: str
    figures: dict[str, float]
    spread: dict[str, float]
    limit: float


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes:
        model: Its name.
        machine: Processor, threads, bytes read and floating-point operations per second.
        contenders: What each says about itself.
        rows: The figures.
        left_out: Why something has none.
    """

    model: str
    machine: dict[str, Any]
    contenders: dict[str, dict[str, Any]]
    rows: tuple[Row, ...]
    left_out: dict[str, str]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def lines(self) -> Iterator[str]:
        """A table for a person."""
        names = list(self.contenders)
        yield f"| | {' | '.join(names)} | bimo : best peer | of the limit |"
        yield "|---" * (len(names) + 3) + "|"
        for row in self.rows:
            cells = [_cell(row.figures.get(name), row.spread.get(name, 0.0)) for name in names]
            ours, peers = row.figures.get(OURS), [row.figures[name] for name in row.figures if name != OURS]
            best = 0.0 if not peers else min(peers) if row.unit == "MB" else max(peers)
            ratio = f"{ours / best:.2f}" if ours and best else "–"
            share = f"{ours / row.limit:.0%} of {_cell(row.limit, 0.0)}" if ours and row.limit else "–"
            yield f"| {row.name}, {row.unit} | {' | '.join(cells)} | {ratio} | {share} |"
        for what, why in self.left_out.items():
            yield f"left out: {what}: {why}"


def _cell(figure: float | None, spread: float) -> str:
    shown = "–" if figure is None else f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"
    return f"{shown} ±{spread / 2:.0%}" if spread else shown


def bench(
    source: str | Path,
    settings: BenchSettings | None = None,
    *,
    modules: Sequence[str] = (),
    say: Say = lambda line: None,
) -> Report:
    """Measure a model on this machine.

    Args:
        source: A run, a Hugging Face folder or hub name, or a .gguf file.
        settings: What is measured, and how long.
        modules: What registers the parts that the model was made with; already imported here.
        say: Told what is being done.

    Raises:
        UserError: There is no such model, or bimo itself cannot run it as asked.
    """
    settings = settings or BenchSettings()
    path = find_model(source)
    device = choose_device(settings.device)
    precision = "fp32" if device.value == "cpu" else choose_precision(device.value, "auto").value
    threads = settings.threads or usable_cores()
    limits = measure_limits(device.value, precision, threads, min(4.0, settings.seconds / 10))
    say(
        f"{device.value} ({device.reason}), {threads} threads: {limits.read_bytes / 1e9:.1f} GB/s read, "
        f"{limits.flops / 1e9:,.0f} GFLOP/s of {precision} matrix products"
    )
    model, tokenizer = open_model(path)
    with tempfile.TemporaryDirectory(prefix="bimo-bench-") as folder:
        subject = Subject(path, model, tokenizer, Path(folder), threads, device.value, precision)
        makers, left_out = _makers(subject, settings, modules)
        contenders = open_all(makers, threads, left_out, say)
        try:
            if OURS not in contenders:
                raise UserError(left_out[OURS], where=str(source))
            abouts = {name: contender.call("about") for name, contender in contenders.items()}
            results, rows = _measured(contenders, abouts[OURS], model.spec, settings.seconds, limits)
            if settings.trace and OURS not in results.left_out:
                work = _shapes(model.spec.context_length)["16 streams"].work(model.spec.vocab_size, 1)
                steps = contenders[OURS].call("record", work, settings.trace)
                say(f"{steps} steps in {settings.trace}: open it in https://ui.perfetto.dev or chrome://tracing")
        finally:
            for contender in contenders.values():
                contender.close()
    machine = {"cpu": cpu_name(), "device": device.value, "threads": threads, "precision": precision, **asdict(limits)}
    named = {name: asdict(about) for name, about in abouts.items()}
    return Report(str(source), machine, named, tuple(rows), left_out | results.left_out)


def measure_limits(device: str, precision: str, threads: int, seconds: float) -> Speed:
    """What a device allows, measured in a process of its own."""
    apart = Apart(Limits, device, precision, threads, threads=threads)
    try:
        speed: Speed = apart.call("measure", seconds)
    finally:
        apart.close()
    return speed


def _makers(
    subject: Subject, settings: BenchSettings, modules: Sequence[str]
) -> tuple[dict[str, Maker], dict[str, str]]:
    """Who can be measured; and who cannot, and why."""
    options = {"threads": subject.threads, "backend": settings.backend}
    makers: dict[str, Maker] = {OURS: (BimoContender, (str(subject.path), options, subject.device, tuple(modules)))}
    left_out: dict[str, str] = {}
    for name in settings.peers:
        try:
            makers[name] = PEERS[name](subject)
        except UserError as error:
            left_out[name] = error.what
    return makers, left_out


def open_all(makers: Mapping[str, Maker], threads: int, left_out: dict[str, str], say: Say) -> dict[str, Apart]:
    """Each contender in its process; who cannot be opened is left out.

    Args:
        makers: By name.
        threads: For all.
        left_out: Where reasons go.
        say: Told who was opened.
    """
    opened = {}
    for name, (make, arguments) in makers.items():
        start = time.perf_counter()
        try:
            opened[name] = Apart(make, *arguments, threads=threads)
        except UserError as error:
            left_out[name] = error.what
            continue
        say(f"{name}: {opened[name].call('about').name}; opened in {time.perf_counter() - start:.1f} s")
    return opened


def _shapes(context_length: int) -> dict[str, Shape]:
    """The works, the weightiest first, as large as the model's context allows."""
    new = max(2, min(64, context_length // 2))
    short = max(1, min(16, context_length // 4))
    long = min(2000, context_length - new)
    shapes = {"decode, 1 stream": Shape(1, short, new), "prefill": Shape(1, min(512, context_length), 1)}
    shapes |= {f"{count} streams": Shape(count, short, new) for count in (16, 2, 4, 8, 32, 64)}
    return shapes | ({"decode, long context": Shape(1, long, new)} if long >= 4 * short else {})


def _measured(
    contenders: Mapping[str, Apart], ours: About, spec: ModelSpec, seconds: float, limits: Speed
) -> tuple[Results, list[Row]]:
    """Memory first, then the race; a line for each measure."""
    shapes = _shapes(spec.context_length)
    memory = _memory_row(contenders, ours, next(iter(shapes.values())), spec.vocab_size)
    measures, bounds = [], {}
    for name, shape in shapes.items():
        title = f"{name} of {shape.length}" if shape.streams == 1 else f"{name} x {shape.new_tokens}"
        figure: Callable[[Run], float] = decode_speed if shape.streams == 1 else total_speed
        bounds[title] = decode_limit(ours, limits, shape)
        if shape.new_tokens == 1:
            figure, bounds[title] = PrefillSpeed(shape.length), limits.flops / ours.matrix_flops
        measures.append(Measure(title, "tokens/s", shape, figure))
    results = race(contenders, measures, spec.vocab_size, Effort(_ROUNDS, seconds))
    rows = []
    for measure in measures:
        named = {name: results.median(measure.name, name) for name in contenders}
        figures = {name: figure for name, figure in named.items() if figure is not None}
        spread = {name: results.spread(measure.name, name) for name in figures}
        rows.append(Row(measure.name, measure.unit, figures, spread, bounds[measure.name]))
    return results, [*rows, memory]


def decode_limit(about: About, limits: Speed, shape: Shape) -> float:
    """Tokens per second that memory and matrix speed allow: a step reads all weights, and each text's keys and values.

    Small models lie in the processor's caches and can be faster; so can arithmetic with fewer bits than was measured.

    Args:
        about: Whose limit it is.
        limits: Of the machine.
        shape: Of the work.
    """
    context = shape.length + shape.new_tokens / 2
    read = (about.step_bytes + shape.streams * context * about.kv_bytes) / limits.read_bytes
    computed = shape.streams * (about.matrix_flops + about.head_flops) / limits.flops
    return shape.streams / max(read, computed)


def _memory_row(contenders: Mapping[str, Apart], ours: About, shape: Shape, vocab_size: int) -> Row:
    """By how much memory grows from before opening to the end of one answer; the limit is weights, keys and values."""
    figures = {}
    for name, contender in contenders.items():
        try:
            contender.call("run", shape.work(vocab_size, 0))
            figures[name] = contender.peak_growth() / 1e6
        except UserError:
            continue  # the race meets it again, and says why
    needed = ours.weight_bytes + ours.kv_bytes * (shape.length + shape.new_tokens)
    return Row("memory, 1 stream", "MB", figures, dict.fromkeys(figures, 0.0), needed / 1e6)
