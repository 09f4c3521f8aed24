"""How far a run is: one line with its bar in a terminal, a line every ten seconds without one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from bimo.training.callbacks.protocol import Callback, StepResult
from bimo.training.callbacks.stopping import updates_left

if TYPE_CHECKING:
    from rich.console import Console

    from bimo.training.trainer import Trainer

_REFRESH_S = 0.2


class Pace:
    """Tokens per second, smoothed over steps, and what follows from it."""

    def __init__(self) -> None:
        self.tokens_per_second = 0.0

    def add(self, result: StepResult) -> None:
        speed = result.tokens_per_second
        self.tokens_per_second = 0.9 * self.tokens_per_second + 0.1 * speed if self.tokens_per_second else speed

    def time_left(self, trainer: Trainer, result: StepResult) -> str:
        return duration(updates_left(trainer, result.step) * result.tokens / max(self.tokens_per_second, 1e-9))

    def line(self, trainer: Trainer, result: StepResult, more: str = "") -> str:
        """Loss, speed and time left, in a line."""
        parts = [f"loss {result.loss:.3f}", f"{self.tokens_per_second:,.0f} tokens/s", more]
        return " · ".join(part for part in [*parts, f"{self.time_left(trainer, result)} left"] if part)


class Progress(Callback):
    """Shows how far a run is.

    Args:
        console: Where to show it; None: the standard output.
        every_s: Seconds between lines where there is no terminal.
        clock: Gives the time in seconds.
    """

    everywhere = False

    def __init__(
        self, console: Console | None = None, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from rich.console import Console  # here, because a training loop without a terminal needs none of it
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        self.console, self.every_s, self.clock = console or Console(), every_s, clock
        self.pace = Pace()
        self.shown = -float("inf")
        bar = Bar(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            auto_refresh=False,  # no thread of its own beside the training
        )
        self.bar = bar if self.console.is_terminal else None
        self.held_out = ""

    def on_start(self, trainer: Trainer) -> None:
        if self.bar is not None:
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            self.bar.add_task("", total=trainer.settings.steps, completed=trainer.state.step)
            self.bar.start()

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.pace.add(result)
        now, last = self.clock(), result.step >= trainer.settings.steps
        if now - self.shown < (self.every_s if self.bar is None else _REFRESH_S) and not last:
            return
        self.shown = now
        line = self.pace.line(trainer, result, self.held_out)
        if self.bar is None:
            self._print(f"step {result.step}/{trainer.settings.steps} · {line}")
        else:
            steps, task = trainer.settings.steps, self.bar.task_ids[0]
            self.bar.update(task, completed=result.step, total=steps, description=line, refresh=True)

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        shown = figures_line(metrics)
        self.held_out = f"held out {shown}" if self.bar is not None else ""
        if self.bar is None:
            self._print(f"step {trainer.state.step}: held-out {shown}")

    def on_end(self, trainer: Trainer) -> None:
        self._stop()

    def on_error(self, trainer: Trainer) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def figures_line(metrics: dict[str, float]) -> str:
    """The figures of an evaluation, in a line."""
    return " · ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in metrics.items())


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    seconds = round(seconds)
    if seconds < 90:
        return f"{seconds} s"
    minutes = seconds // 60
    return f"{minutes} min {seconds % 60:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
