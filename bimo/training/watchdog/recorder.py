"""The flight recorder: what happened in the last 200 steps, on disk at every moment, also when the process is killed.

Each step adds a line to `flight.jsonl`: loss, gradient norms by layer, rate, time, the batch's fingerprint, or the
fault that ended the step. The file is cut back to the last of them whenever it has twice as many.
"""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bimo.training.callbacks import Callback, Event, Gradient, StepResult
from bimo.training.faults import Fault
from bimo.training.watchdog.normal import by_layer

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer


class FlightRecorder(Callback):
    """Keeps the last steps.

    Args:
        path: The file; None: in memory only.
        kept: How many steps.

    Attributes:
        steps: One dictionary per step, oldest first.
    """

    everywhere = False

    def __init__(self, path: Path | None = None, kept: int = 200) -> None:
        self.path, self.kept = path, kept
        self.steps: deque[dict[str, Any]] = deque(maxlen=kept)
        self._file: IO[str] | None = None
        self._lines = 0
        self._gradient: Gradient | None = None

    def on_start(self, trainer: Trainer) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._rewrite()

    def on_gradient(self, trainer: Trainer, gradient: Gradient) -> None:
        self._gradient = gradient

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self._add(trainer, {"step": result.step, "rate": result.learning_rate, "seconds": round(result.seconds, 4)})

    def on_fault(self, trainer: Trainer, fault: Fault) -> bool:
        self._add(trainer, {"step": trainer.state.step + 1, "fault": fault.kind, "what": fault.what})
        return False

    def on_event(self, trainer: Trainer, event: Event) -> None:
        self._gradient = None
        self._add(trainer, {"step": event.step, "event": event.kind})

    def on_end(self, trainer: Trainer) -> None:
        self._close()

    def on_error(self, trainer: Trainer) -> None:
        self._close()

    def _add(self, trainer: Trainer, record: dict[str, Any]) -> None:
        gradient, self._gradient = self._gradient, None
        if gradient is not None:
            record |= {"loss": gradient.loss, "gradient_norm": gradient.norm, "batch": trainer.name_of(gradient.batch)}
            record["layers"] = {n: float(f"{v:.4g}") for n, v in by_layer(gradient.names, gradient.norms).items()}
        self.steps.append(record)
        if self._file is None:
            return
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()  # to the system, which keeps it when this process dies
        self._lines += 1
        if self._lines >= 2 * self.kept:
            self._rewrite()

    def _rewrite(self) -> None:
        """Cut the file back to what is kept, whole at every moment."""
        assert self.path is not None, "a recorder in memory has no file"
        self._close()
        aside = self.path.with_name(f".{self.path.name}.part")
        if not self.steps and self.path.exists():  # a resumed run goes on behind what was recorded
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()[-self.kept :]
        else:
            lines = [json.dumps(record, ensure_ascii=False) for record in self.steps]
        aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(aside, self.path)
        self._lines = len(lines)
        self._file = self.path.open("a", encoding="utf-8")

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
