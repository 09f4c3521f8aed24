"""Where the time of a step goes, as a file that opens in a browser: https://ui.perfetto.dev or chrome://tracing.

A step is four phases (schedule, run, sample, publish). A runner that offers `trace()` adds what its threads did inside
the run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from bimo.engine.engine import Engine
from bimo.engine.jobs import Job
from bimo.engine.runner import Chunk, Rows, Runner, Stage
from bimo.engine.sequence import Sequence as Text

if TYPE_CHECKING:
    from bimo.model.lora import Adapter

_PHASES = "engine"


@runtime_checkable
class StageRunner(Protocol):
    """A runner that says what its threads did."""

    def trace(self) -> Sequence[Stage]:
        """The stages since the last call, which are forgotten now; the first call has the recording begin."""
        ...


@dataclass
class Trace:
    """Events in the order of their beginning, in Chrome's trace format.

    Attributes:
        events: Of kind X (complete): name, thread, begin and duration in microseconds, and arguments.
    """

    events: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, thread: str, start_ns: int, end_ns: int, **about: Any) -> None:
        """A thing that a thread did."""
        span = {"ts": start_ns / 1e3, "dur": (end_ns - start_ns) / 1e3}
        self.events.append({"name": name, "ph": "X", "pid": 1, "tid": thread, **span, "args": about})

    def save(self, path: Path) -> None:
        """Write it; time begins with the first event."""
        names = list(dict.fromkeys(event["tid"] for event in self.events))
        first = min((event["ts"] for event in self.events), default=0.0)
        rows = [event | {"tid": names.index(event["tid"]), "ts": event["ts"] - first} for event in self.events]
        titles = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": name}}
            for number, name in enumerate(names)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"traceEvents": titles + rows, "displayTimeUnit": "ms"}), encoding="utf-8")


class TracedEngine(Engine):
    """An engine that records its steps; takes the arguments of `Engine`.

    Attributes:
        trace: What was recorded.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.trace = Trace()
        self._runs: list[tuple[int, int, dict[str, int]]] = []
        self._sampled = 0
        self.runner: Runner = _TracedRunner(self.runner, self._runs)
        self._stages()

    def step(self) -> bool:
        """Do one step and record it."""
        self._runs.clear()
        self._sampled = 0
        start = time.perf_counter_ns()
        more = super().step()
        end = time.perf_counter_ns()
        self.trace.add("step", _PHASES, start, end, running=self.stats.running, waiting=self.stats.waiting)
        if not self._runs:
            return more
        begun, done = self._runs[0][0], self._runs[-1][1]
        sampled = max(self._sampled, done)
        self.trace.add("schedule", _PHASES, start, begun)
        for run_start, run_end, about in self._runs:
            self.trace.add("run", _PHASES, run_start, run_end, **about)
        self.trace.add("sample", _PHASES, done, sampled)
        self.trace.add("publish", _PHASES, sampled, end)
        for stage in self._stages():
            self.trace.add(stage.name, f"thread {stage.thread}", stage.start_ns, stage.end_ns)
        return more

    def _take(self, job: Job, sequence: Text, chunk: Chunk, rows: Rows) -> bool:
        taken = super()._take(job, sequence, chunk, rows)
        self._sampled = time.perf_counter_ns()
        return taken

    def _stages(self) -> Sequence[Stage]:
        """What the runner recorded since the last call."""
        runner = self.runner.runner if isinstance(self.runner, _TracedRunner) else self.runner
        return runner.trace() if isinstance(runner, StageRunner) else ()


class _TracedRunner:
    """A runner, and when it ran what.

    Args:
        runner: What does it.
        runs: Where (start, end, sizes) of each run go.
    """

    def __init__(self, runner: Runner, runs: list[tuple[int, int, dict[str, int]]]) -> None:
        self.runner, self.runs = runner, runs
        self.block_size, self.n_blocks, self.token_bytes = runner.block_size, runner.n_blocks, runner.token_bytes

    @property
    def name(self) -> str:
        """See `Runner`."""
        return self.runner.name

    def logits(self, chunks: Sequence[Chunk]) -> Rows:
        """See `Runner`."""
        start = time.perf_counter_ns()
        found = self.runner.logits(chunks)
        self._ran(start, chunks)
        return found

    def hidden(self, chunks: Sequence[Chunk]) -> Rows:
        """See `Runner`."""
        start = time.perf_counter_ns()
        found = self.runner.hidden(chunks)
        self._ran(start, chunks)
        return found

    def copy_block(self, source: int, target: int) -> None:
        """See `Runner`."""
        self.runner.copy_block(source, target)

    def prepare_adapter(self, adapter: Adapter) -> Any:
        """See `Runner`."""
        return self.runner.prepare_adapter(adapter)

    def change_adapters(self, added: Mapping[int, Any], dropped: Collection[int]) -> None:
        """See `Runner`."""
        self.runner.change_adapters(added, dropped)

    def stretch(self, length: int) -> int:
        """See `Runner`."""
        return self.runner.stretch(length)

    def _ran(self, start: int, chunks: Sequence[Chunk]) -> None:
        tokens, outputs = sum(len(chunk.tokens) for chunk in chunks), sum(chunk.n_outputs for chunk in chunks)
        about = {"sequences": len(chunks), "tokens": tokens, "outputs": outputs}
        self.runs.append((start, time.perf_counter_ns(), about))
