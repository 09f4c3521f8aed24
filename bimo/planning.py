"""`bimo plan`: what a recipe will take on this machine, from the first updates of the run itself.

The probe runs in a process of its own: its memory is that of `bimo train` and of nothing else, and a machine that is
too small for it kills the probe, not the plan. It reads the first megabytes of the text, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bimo import recipes
from bimo.core import machine
from bimo.core.config import RunSettings
from bimo.core.errors import UserError
from bimo.core.registry import import_modules
from bimo.data import Document
from bimo.data.prepare import Source
from bimo.data.stdlib_text import python_documents
from bimo.preparing import Text, open_text, prepare
from bimo.tokenizer import Tokenizer
from bimo.training import plan as planning
from bimo.training.plan import Facts, Plan
from bimo.training.probe import Measured, Probe, ProbeEnded, evaluated_rows

_SAMPLE_BYTES = 4e6
_UPDATES_S = 10.0
_TOKEN_BYTES = 4  # of text, more or less
_LOOK_RATE = 12e6  # bytes of text per second that the quick checkup reads
_LOOK_S = 20.0  # and the most that it takes


@dataclass
class Sample:
    """The beginning of a text.

    Attributes:
        documents: Those to train on.
        held_out: Those to measure on.
        size: Bytes of text in both.
    """

    documents: list[Document]
    held_out: list[Document]
    size: int


def plan(settings: RunSettings, memory: float = 0.0) -> Plan:
    """Plan a run on this machine.

    Args:
        settings: The run.
        memory: Bytes that it may take; 0: all that this machine has left.
    """
    device = machine.choose_device(settings.training.device).value
    settings = replace(settings, model=replace(settings.model, vocab_size=_vocab_size(settings)))
    own = planning.sizes(settings.model)
    facts = Facts(available=int(memory) or _available(device))
    needed = sum(planning.estimate(settings, own, device).values())
    left = min(facts.available, _available(device)) if facts.available else 0
    if left and needed > left:
        precision = machine.choose_precision(device, settings.training.precision).value
        facts = replace(facts, flops=machine.measure_speed(device, precision).flops)
        return planning.computed_plan(settings, own, facts, device, "it is too large to be tried here")
    start = time.monotonic()
    told = _in_a_process_of_its_own(settings, 0 if device.startswith("cuda") else left)
    if told is None:
        return planning.computed_plan(settings, own, replace(facts, available=1), device, "the trial ran out of memory")
    found = Measured(**told["measured"])
    facts = replace(facts, **told["facts"], start_s=max(0.0, time.monotonic() - start - told["own_s"]))
    return planning.measured_plan(settings, own, facts, found)


def _vocab_size(settings: RunSettings) -> int:
    """Ids of the tokenizer that the run will have, as far as it is known."""
    path = settings.tokenizer.path
    return Tokenizer.load(path).vocab_size if path else settings.tokenizer.vocab_size


def _available(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return machine.available_memory()


def _in_a_process_of_its_own(settings: RunSettings, limit: int) -> dict[str, Any] | None:
    """What the probe tells; None: memory did not suffice."""
    with tempfile.TemporaryDirectory(prefix="bimo-plan-") as name:
        folder = Path(name)
        inside = replace(settings, folder=name, name="probe")
        (folder / "asked.json").write_text(json.dumps({"settings": inside.to_dict(), "limit": limit}))
        program = f"from bimo.planning import run_probe; run_probe({name!r})"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        told = folder / "told.json"
        if told.exists():
            answer: dict[str, Any] = json.loads(told.read_text())
            if "error" in answer:
                raise UserError(**answer["error"])
            return answer
    if done.returncode < 0 or "emory" in done.stderr:  # killed by the system, or MemoryError and its kin
        return None
    raise AssertionError(f"the probe has failed:\n{done.stderr}")


def run_probe(folder: str) -> None:
    """The program of that process: it reads `asked.json` in a folder and writes `told.json` there."""
    asked = json.loads((Path(folder) / "asked.json").read_text())
    _limit_memory(asked["limit"])
    import_modules(asked["settings"]["modules"])
    try:
        answer = _probe(RunSettings.from_dict(asked["settings"]))
    except UserError as error:
        answer = {"error": {"what": error.what, "where": error.where, "mend": error.mend}}
    (Path(folder) / "told.json").write_text(json.dumps(answer))


def _limit_memory(limit: int) -> None:
    """Let what is too large fail in this process, before the system ends another one for it."""
    try:
        import resource  # here, because Windows has none
    except ImportError:
        return
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _probe(settings: RunSettings) -> dict[str, Any]:
    """Prepare a sample of the text, make the first updates, and tell what both took."""
    console = Console(file=io.StringIO())
    sample, total, held_out = _sample(settings, Path(settings.folder))
    text = Text([_source("sample", sample.documents, 0.0), _source("held-out", sample.held_out, 1.0)])
    training = settings.training
    if training.execution == "auto" and machine.choose_device(training.device).value == "cpu":
        training = replace(training, execution="eager")  # it would compile in the middle of the probe
    settings = replace(
        settings,
        data=replace(settings.data, paths=[], weights=[], validation_paths=[], check=False),
        training=replace(training, evaluate_rows=evaluated_rows(settings)),
    )
    start = time.monotonic()
    prepared = prepare(settings, text, console)[1]
    prepare_s = time.monotonic() - start
    probe = Probe(_UPDATES_S)
    with contextlib.suppress(ProbeEnded):
        recipes.train(settings, text, console, callbacks=[probe])
    found = probe.finish()
    per_byte = sum(s.n_tokens for s in prepared.train) / max(1, sum(s.n_text_bytes for s in prepared.train))
    facts = {
        "text_bytes": round(total),
        "tokens": round((total - held_out) * per_byte),
        "held_out": round(held_out * per_byte),
        "prepare_s": prepare_s * total / sample.size + min(_LOOK_S, total / _LOOK_RATE),
    }
    return {"measured": asdict(found), "facts": facts if total else {}, "own_s": prepare_s + probe.lasted}


def _sample(settings: RunSettings, folder: Path) -> tuple[Sample, float, float]:
    """The first documents of each source, and how many bytes of text there are, in all and held out."""
    if not settings.data.paths:
        documents, size = _first(python_documents(), _SAMPLE_BYTES)
        return _split(documents, size, settings), 0.0, 0.0
    text = open_text(settings.data, folder)
    documents, size, total, held_out = [], 0, 0.0, 0.0
    for source, corpus in zip(text.sources, text.corpora, strict=True):
        some, read = _first(source.documents, _SAMPLE_BYTES / len(text.sources))
        whole = read * max(1.0, corpus.total_bytes / max(1, corpus.progress.read_bytes))
        documents, size, total = documents + some, size + read, total + whole
        held_out += whole * source.validation_share
    return _split(documents, size, settings), total, held_out


def _first(documents: Iterable[Document], limit: float) -> tuple[list[Document], int]:
    """The first documents, up to so many bytes, and their bytes."""
    taken: list[Document] = []
    size = 0
    for document in documents:
        taken.append(document)
        size += len(document.text.encode())
        if size > limit:
            break
    return taken, size


def _split(documents: list[Document], size: int, settings: RunSettings) -> Sample:
    """Hold out what one evaluation reads at once, but at most a quarter."""
    wanted = 1.5 * evaluated_rows(settings) * settings.model.context_length * _TOKEN_BYTES
    every = max(4, int(size / wanted))
    held_out = documents[::every] if len(documents) >= every else documents[:1]
    kept = {id(document) for document in held_out}
    return Sample([document for document in documents if id(document) not in kept], held_out, size)


def _source(name: str, documents: list[Document], share: float) -> Source:
    return Source(name, documents, f"{name} {len(documents)}", share)
