"""What a person sees while a model trains: a live picture in a terminal, plain lines without one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.status import Status
from rich.table import Table
from rich.text import Text

from bimo.training import Callback, Event, StepResult, Trainer
from bimo.training.callbacks.progress import Pace, duration, figures_line

_REFRESH_S = 0.5
_LINE_S = 5.0

Item = TypeVar("Item")


@dataclass
class Figures:
    """The figures that both views show.

    Attributes:
        peak_flops: Measured on this machine, per second; 0 when unknown.
        promised_flops: By the data sheet of the GPU; 0 when unknown.
        losses: Loss of every step, in nats per token.
        pace: Speed and time left.
    """

    peak_flops: float
    promised_flops: float = 0.0
    losses: list[float] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)

    def add(self, result: StepResult) -> None:
        self.losses.append(result.loss)
        self.pace.add(result)

    def share_of_peak(self, model: Any) -> str:
        flops, shares = self.pace.tokens_per_second * model.flops_per_token(), []
        if self.promised_flops:
            shares.append(f"MFU {flops / self.promised_flops:.0%}")
        if self.peak_flops:
            shares.append(f"{flops / self.peak_flops:.0%} of measured peak")
        return " · ".join(shares)


class PlainView(Callback):
    """Lines for a log: every `log_every` steps, every evaluation, every sample."""

    everywhere = False

    def __init__(self, console: Console, figures: Figures) -> None:
        self.console, self.figures = console, figures

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.figures.add(result)
        if result.step % trainer.settings.log_every == 0 or result.step in (1, trainer.settings.steps):
            line = self.figures.pace.line(trainer, result, self.figures.share_of_peak(trainer.model))
            self._line(f"step {result.step}/{trainer.settings.steps} · {line}")

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self._line(f"step {trainer.state.step}: held-out {figures_line(metrics)}")

    def on_sample(self, trainer: Trainer, text: str) -> None:
        self._line(f"step {trainer.state.step} writes: {' '.join(text.split())}")

    def on_event(self, trainer: Trainer, event: Event) -> None:
        self._line(str(event))

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveView(Callback):
    """A picture that is drawn again twice a second: loss curve, speed, time left, the newest sample."""

    everywhere = False

    def __init__(self, console: Console, figures: Figures) -> None:
        self.console, self.figures = console, figures
        self.live = Live(console=console, auto_refresh=False)
        self.drawn = 0.0
        self.evaluation = self.sample = ""
        self.result: StepResult | None = None

    def on_start(self, trainer: Trainer) -> None:
        self.live.start()

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.figures.add(result)
        self.result = result
        if time.monotonic() - self.drawn > _REFRESH_S:
            self._draw(trainer)

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.evaluation = f"{metrics['bits_per_byte']:.3f} bits/byte" if "bits_per_byte" in metrics else ""
        self._draw(trainer)

    def on_sample(self, trainer: Trainer, text: str) -> None:
        self.sample = text
        self._draw(trainer)

    def on_event(self, trainer: Trainer, event: Event) -> None:
        self.live.console.print(str(event), markup=False, highlight=False, soft_wrap=True)  # stays above the picture

    def on_end(self, trainer: Trainer) -> None:
        self._draw(trainer)
        self.live.stop()

    def on_error(self, trainer: Trainer) -> None:
        self.live.stop()

    def _draw(self, trainer: Trainer) -> None:
        if self.result is None:
            return
        self.drawn = time.monotonic()
        self.live.update(self._picture(trainer, self.result), refresh=True)

    def _picture(self, trainer: Trainer, result: StepResult) -> RenderableType:
        facts = Table.grid(padding=(0, 2))
        facts.add_row("step", f"{result.step} / {trainer.settings.steps}")
        facts.add_row("loss", f"{result.loss:.3f} nats/token")
        facts.add_row("held out", self.evaluation or "…")
        facts.add_row("speed", f"{self.figures.pace.tokens_per_second:,.0f} tokens/s")
        facts.add_row("", self.figures.share_of_peak(trainer.model))
        facts.add_row("left", self.figures.pace.time_left(trainer, result))
        top = Table.grid(expand=True, padding=(0, 2))
        width = max(20, self.console.width - 46)
        top.add_row(Text(curve(self.figures.losses, width, 8), style="cyan"), facts)
        sample = Text(self.sample[-600:] or "…", style="italic")
        return Group(Panel(top, title="training"), Panel(sample, title="the model writes"))


def curve(values: list[float], width: int, height: int) -> str:
    """A curve drawn with braille dots, two by four to a character; the scale stands at its left.

    Args:
        values: One per step, from left to right; averaged where there are more than dots.
        width: Characters across, the scale included.
        height: Characters down.
    """
    if not values:
        return ""
    columns = 2 * max(1, width - 7)
    n = min(columns, len(values))
    bounds = [i * len(values) // n for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    low, high = min(means), max(means)
    cells = [[0] * ((n + 1) // 2) for _ in range(height)]
    # Bits of a braille character (Unicode 2800-28FF) by column and row of its dots.
    dots = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
    for x, value in enumerate(means):
        y = round((high - value) / (high - low) * (4 * height - 1)) if high > low else 2 * height
        cells[y // 4][x // 2] |= dots[x % 2][y % 4]
    scale = {0: f"{high:6.2f}"[:6] + " ", height - 1: f"{low:6.2f}"[:6] + " "}
    return "\n".join(scale.get(i, " " * 7) + "".join(chr(0x2800 + c) for c in row) for i, row in enumerate(cells))


class Waiting:
    """Shows how far a piece of work is: a line that is redrawn in a terminal, a line every few seconds without one.

    Args:
        console: Where to show it.
        what: The work, in a word or two.
        progress: Gives the share that is done, 0 … 1; 0 when unknown.
    """

    def __init__(self, console: Console, what: str, progress: Callable[[], float]) -> None:
        self.console, self.what, self.progress = console, what, progress
        self.start = self.shown = time.monotonic()
        self.status = Status(what, console=console) if console.is_terminal else None

    def __enter__(self) -> Waiting:
        if self.status is not None:
            self.status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.status is not None:
            self.status.stop()
        if error[0] is None:
            self._print(f"{self.what}: done in {duration(time.monotonic() - self.start)}")

    def tick(self) -> None:
        """Called now and then by the work."""
        now = time.monotonic()
        if now - self.shown < (_REFRESH_S if self.status is not None else _LINE_S):
            return
        self.shown, share = now, self.progress()
        line = self.what
        if 0 < share < 1:
            line += f": {share:.0%}, {duration((now - self.start) * (1 - share) / share)} left"
        if self.status is not None:
            self.status.update(line)
        else:
            self._print(line)

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Pass items on, ticking."""
        for item in items:
            self.tick()
            yield item

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
