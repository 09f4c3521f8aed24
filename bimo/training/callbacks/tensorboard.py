"""A run in TensorBoard: its figures, texts and events (extra `tensorboard`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimo.core.errors import require
from bimo.training.callbacks.protocol import Callback, Event, StepResult

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer


class TensorBoard(Callback):
    """Writes a file that `tensorboard --logdir runs` shows.

    Steps that a resumed run makes again replace those that were written before.

    Args:
        folder: Where the file goes: a run's folder, or any other.
        every: Steps between points; 0: `log_every` of the settings.

    Raises:
        UserError: The package is missing.
    """

    everywhere = False

    def __init__(self, folder: str | Path, every: int = 0) -> None:
        require("tensorboard", "tensorboard")
        self.folder, self.every = Path(folder), every
        self.writer: Any = None

    def on_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, because it imports the optional package

        again = trainer.state.step + 1 if trainer.state.step else None
        self.writer = SummaryWriter(str(self.folder), purge_step=again)

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if result.step % (self.every or trainer.settings.log_every) and result.step != 1:
            return
        figures = {"loss": result.loss, "gradient_norm": result.gradient_norm, "learning_rate": result.learning_rate}
        for name, value in (figures | {"tokens_per_second": result.tokens_per_second}).items():
            self.writer.add_scalar(f"training/{name}", value, result.step)

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(f"held_out/{name}", value, trainer.state.step)

    def on_sample(self, trainer: Trainer, text: str) -> None:
        self.writer.add_text("sample", text, trainer.state.step)

    def on_event(self, trainer: Trainer, event: Event) -> None:
        if self.writer is not None:  # another callback may have something to say before the start
            facts = json.dumps(event.facts, ensure_ascii=False, default=str)
            self.writer.add_text(f"event/{event.kind.replace(' ', '_')}", f"{event}\n\n    {facts}", event.step)

    def on_end(self, trainer: Trainer) -> None:
        self._close()

    def on_error(self, trainer: Trainer) -> None:
        self._close()

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
