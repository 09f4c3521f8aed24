"""What a person sees: a curve that shows the values, times as people say them, and a picture in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bimo import LM, Trainer, TrainingSettings
from bimo.live import Figures, LiveView, PlainView, Waiting, curve, duration


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (125, "2 min 05 s"), (7300, "2 h 01 min")])
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_falling_curve_falls() -> None:
    lines = curve([4.0, 3.0, 2.0, 1.0], width=20, height=4).splitlines()
    assert lines[0].startswith("  4.00"), "the scale says the highest"
    assert lines[-1].startswith("  1.00"), "and the lowest"
    assert lines[0][7] not in " \u2800", "it starts at the top left"
    assert lines[-1][7] in " \u2800", "and not at the bottom left"


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [float(i) for i in range(5000)]])
def test_any_number_of_values_can_be_drawn(values: list[float]) -> None:
    assert all(len(line) <= 40 for line in curve(values, width=40, height=5).splitlines()), "never wider"


@pytest.mark.parametrize("view", [LiveView, PlainView])
def test_a_view_shows_loss_speed_time_left_and_sample(
    view: type, lm: LM, texts: list[str], settings: TrainingSettings
) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=view is LiveView, width=100)
    trainer = Trainer(
        lm,
        TrainingSettings(**{**settings.to_dict(), "evaluate_every": 1, "sample_every": 1}),
        callbacks=[view(console, Figures(1e11))],
        evaluate_fn=lambda model: {"bits_per_byte": 2.5},
        generate_fn=lambda model: "a sample text",
    )
    trainer.fit(texts[:8], epochs=2)
    shown = output.getvalue()
    assert all(word in shown for word in ("loss", "tokens/s", "of measured peak", "2.500", "a sample text")), shown


def test_waiting_prints_lines_without_a_terminal() -> None:
    output = io.StringIO()
    with Waiting(Console(file=output), "encoding", lambda: 0.5) as waiting:
        assert list(waiting.watch("abc")) == ["a", "b", "c"], "items pass"
    assert output.getvalue().startswith("encoding: done in"), output.getvalue()
