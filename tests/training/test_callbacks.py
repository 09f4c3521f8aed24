"""Ready callbacks: each does what it says, leaves the training alone, and resumes bit for bit."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import bimo
from bimo import ModelSpec, Tokenizer, TrainingSettings
from bimo.core.artifacts import read_jsonl, verify
from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES
from bimo.testing.callbacks import HAPPENINGS
from bimo.testing.runs import HALF, SETTINGS, STEPS, Run, StopAtHalf, batches, difference, weights_of
from bimo.training import (
    ActivationStatistics,
    BestCheckpoint,
    Callback,
    Checkpoints,
    EarlyStopping,
    GradientStatistics,
    MetricsFile,
    Progress,
    RateFinder,
    Sampling,
    StepResult,
    TensorBoard,
    Trainer,
    WeightAverage,
    find_rate,
    make_callbacks,
)
from bimo.training.resuming import state_of
from bimo.training.state import copied, read

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small only wait for other threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights at the end of the run that no callback sees."""
    return weights_of(Run(tmp_path_factory.mktemp("bare")).whole([]).model)


class Weights(Callback):
    """Keeps the weights after every update, and those that an evaluation sees."""

    def __init__(self) -> None:
        self.trained: list[dict[str, Tensor]] = []
        self.judged: list[dict[str, Tensor]] = []

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.trained.append(weights_of(trainer.model))

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.judged.append(weights_of(trainer.model))


def figures(values: list[float]) -> Callable[[nn.Module], dict[str, float]]:
    """An evaluation that gives one figure after the other."""
    rest = iter(values)
    return lambda _model: {"loss": next(rest)}


def everything(folder: Path) -> list[Callback]:
    return [
        RateFinder(steps=20),
        WeightAverage(decay=0.9),
        BestCheckpoint(folder=folder),
        EarlyStopping(patience=9),
        Sampling("a", lambda _model, _prompt: str(torch.rand(1)), every=2, folder=folder),
        TensorBoard(folder, every=1),
        Progress(Console(file=io.StringIO())),
        GradientStatistics(every=2, folder=folder),
        ActivationStatistics(every=2, folder=folder),
    ]


def test_a_run_with_every_callback_on_resumes_bit_for_bit(run: Run, tmp_path: Path) -> None:
    whole, again = everything(tmp_path / "a"), everything(tmp_path / "b")
    unbroken = run.whole(whole)
    checkpoint = run.half(everything(tmp_path / "b"))
    resumed = run.other_half(again, checkpoint)
    assert not difference(weights_of(unbroken.model), weights_of(resumed.model)), "the same model in the end"
    for one, other in zip(whole, again, strict=True):
        assert not difference(one.state_dict(), other.state_dict()), f"the same {type(one).__name__} in the end"
    assert read_jsonl(tmp_path / "a" / "layers.jsonl") == read_jsonl(tmp_path / "b" / "layers.jsonl"), "no line twice"


@pytest.mark.parametrize("index", range(2))
def test_a_callback_that_forgets_is_seen(run: Run, tmp_path: Path, index: int) -> None:
    """The control: the rate and the average matter, and leaving one out changes the run."""
    ends = []
    for forgetful in (False, True):
        callbacks = everything(tmp_path / str(forgetful))[:2]
        checkpoint = run.half(callbacks)
        again = everything(tmp_path / str(forgetful))[:2]
        if forgetful:
            again[index].load_state_dict = lambda _state: None  # type: ignore[method-assign]
        ends.append(weights_of(run.other_half(again, checkpoint).model))
    assert difference(ends[0], ends[1]), "what it has forgotten must show"


def test_callbacks_that_only_look_leave_every_weight_alone(run: Run, tmp_path: Path, bare: dict[str, Tensor]) -> None:
    looking = everything(tmp_path)[3:]
    assert not difference(bare, weights_of(run.whole(looking).model)), "bit for bit the run without them"


def test_a_callback_that_draws_changes_the_weights(run: Run, bare: dict[str, Tensor]) -> None:
    class Drawing(Callback):
        def on_step(self, trainer: Trainer, result: StepResult) -> None:
            torch.rand(1)

    assert difference(bare, weights_of(run.whole([Drawing()]).model)), "the control: dropout falls elsewhere"


def test_the_average_forgets_at_the_rate_that_it_is_given(run: Run) -> None:
    seen = Weights()
    model = run.whole([seen, WeightAverage(decay=0.3)]).model
    for name, found in weights_of(model).items():
        average = seen.trained[0][name].double()
        for count, weights in enumerate(seen.trained[1:], start=1):
            stays = min(0.3, (1 + count) / (10 + count))
            average = stays * average + (1 - stays) * weights[name].double()
        torch.testing.assert_close(found.double(), average, rtol=1e-5, atol=1e-6)


def test_the_mean_of_the_last_steps_is_their_mean(run: Run) -> None:
    seen = Weights()
    model = run.whole([seen, WeightAverage(last=0.5)]).model
    for name, found in weights_of(model).items():
        mean = torch.stack([weights[name].double() for weights in seen.trained[STEPS // 2 :]]).mean(dim=0)
        torch.testing.assert_close(found.double(), mean, rtol=1e-5, atol=1e-6)


class NeverBack(WeightAverage):
    """The control: leaves the average in the model after an evaluation."""

    def on_looked(self, trainer: Trainer) -> None:
        self._own = {}


@pytest.mark.parametrize(("kind", "sound"), [(WeightAverage, True), (NeverBack, False)])
def test_evaluations_see_the_average_and_training_does_not(
    run: Run, bare: dict[str, Tensor], kind: type[WeightAverage], sound: bool
) -> None:
    seen = Weights()
    run.whole([seen, kind(decay=0.9)])
    assert difference(seen.judged[0], seen.trained[HALF - 1]), "the average is judged"
    assert (not difference(bare, seen.trained[-1])) == sound, "the updates go on from weights of their own"


@pytest.mark.parametrize(("kind", "sound"), [(WeightAverage, True), (NeverBack, False)])
def test_an_evaluation_that_is_interrupted_puts_the_weights_back(
    run: Run, kind: type[WeightAverage], sound: bool
) -> None:
    def interrupted(_model: nn.Module) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {"loss": 1.0}

    seen = Weights()
    trainer = run.trainer([seen, kind(decay=0.9), Checkpoints()])
    trainer.evaluate_fn = interrupted
    trainer.fit(batches())
    assert trainer.stop_requested == "SIGINT", "the signal is named"
    saved = read(run.folder / f"step-{HALF:08d}")["model"]
    assert (not difference(saved, seen.trained[-1])) == sound, "the checkpoint has the weights of the run"


def test_an_evaluation_that_a_signal_ends_is_heard_once(run: Run) -> None:
    def interrupted(_model: nn.Module) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return ""

    seen = Weights()
    first = run.trainer([seen, Checkpoints()])
    first.generate_fn = interrupted
    first.fit(batches())
    assert not seen.judged, "it is made again on resume, so nobody may have heard of it"
    run.other_half([seen], run.folder / f"step-{HALF:08d}")
    assert len(seen.judged) == 2, "once after each half"


def test_the_line_of_an_update_outlives_a_signal_that_ends_its_evaluation(run: Run, tmp_path: Path) -> None:
    def interrupted(_model: nn.Module) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {"loss": 1.0}

    def steps(path: Path) -> list[tuple[int, bool]]:
        return [(line["step"], "learning_rate" in line) for line in read_jsonl(path)]

    run.whole([MetricsFile(tmp_path / "whole.jsonl"), GradientStatistics(every=1, folder=tmp_path / "whole")])
    logs = [MetricsFile(tmp_path / "halves.jsonl"), GradientStatistics(every=1, folder=tmp_path / "halves")]
    first = run.trainer([*logs, Checkpoints()])
    first.evaluate_fn = interrupted
    first.fit(batches())
    assert steps(tmp_path / "halves.jsonl")[-1] == (HALF, True), "the evaluation was given up"
    run.other_half(logs, run.folder / f"step-{HALF:08d}")
    assert steps(tmp_path / "halves.jsonl") == steps(tmp_path / "whole.jsonl"), "every line once"
    layers = [read_jsonl(tmp_path / name / "layers.jsonl") for name in ("whole", "halves")]
    assert layers[0] == layers[1], "every line once"
    run.other_half(logs, run.folder / f"step-{HALF:08d}")
    assert steps(tmp_path / "halves.jsonl") == steps(tmp_path / "whole.jsonl"), "also when the evaluation is made again"


def test_saving_while_the_average_is_in_the_model_is_an_error(run: Run) -> None:
    class Early(Callback):
        def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
            state_of(trainer)

    with pytest.raises(AssertionError, match="save in on_settled"):
        run.whole([WeightAverage(), Early()])


@pytest.mark.parametrize(("restore", "step"), [(True, HALF), (False, STEPS)])
def test_the_best_weights_are_handed_over(run: Run, tmp_path: Path, restore: bool, step: int) -> None:
    seen, best = Weights(), BestCheckpoint(folder=tmp_path / "run", restore=restore)
    trainer = run.trainer([seen, best])
    trainer.evaluate_fn = figures([1.0, 2.0])
    trainer.fit(batches())
    assert (best.step, best.best) == (HALF, 1.0), "the lowest figure"
    assert not difference(weights_of(trainer.model), seen.trained[step - 1]), "weights of that step"
    assert not verify(tmp_path / "run" / "best"), "sealed"
    assert not difference(read(tmp_path / "run" / "best")["model"], seen.trained[HALF - 1]), "also on disk"


@pytest.mark.parametrize(("forgets", "sound"), [(False, True), (True, False)])
def test_the_best_weights_survive_a_resume(run: Run, forgets: bool, sound: bool) -> None:
    seen, best = Weights(), BestCheckpoint()
    first = run.trainer([seen, BestCheckpoint(), StopAtHalf(), Checkpoints()])
    first.evaluate_fn = figures([1.0])
    first.fit(batches())
    second = run.trainer([best])
    second.resume(run.folder / f"step-{HALF:08d}")
    if forgets:
        best.load_state_dict({"best": math.inf, "step": 0, "weights": {}})
    second.evaluate_fn = figures([2.0])
    second.fit(batches())
    assert (not difference(weights_of(second.model), seen.trained[-1])) == sound, "those of the first half"


def test_the_last_checkpoint_keeps_the_last_weights(run: Run) -> None:
    seen = Weights()
    trainer = run.trainer([WeightAverage(), BestCheckpoint(), seen, Checkpoints()])
    trainer.fit(batches())
    assert not difference(read(run.folder / f"step-{STEPS:08d}")["model"], seen.trained[-1]), "it must resume exactly"
    assert difference(weights_of(trainer.model), seen.trained[-1]), "the model handed over is another one"


def test_an_average_after_the_best_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="Name WeightAverage first"):
        run.whole([BestCheckpoint(), WeightAverage()])
    run.whole([WeightAverage(), BestCheckpoint()])


@pytest.mark.parametrize("make", [lambda: WeightAverage(decay=1.0), lambda: WeightAverage(last=-0.1)])
def test_shares_that_are_none_are_refused(make: Callable[[], Callback]) -> None:
    with pytest.raises(UserError, match="at least 0 and below 1"):
        make()


def test_samples_are_kept_and_told_to_other_callbacks(run: Run, tmp_path: Path) -> None:
    class Told(Callback):
        texts: tuple[str, ...] = ()

        def on_sample(self, trainer: Trainer, text: str) -> None:
            self.texts = (*self.texts, text)

    told, sampling = Told(), Sampling(["x", "y"], lambda _model, prompt: prompt * 2, every=4, folder=tmp_path)
    trainer = run.trainer([sampling, told])
    trainer.generate_fn = None
    trainer.fit(batches())
    assert told.texts == ("xxx", "yyy"), "prompt and text, at step 4 of 6"
    assert [line["text"] for line in read_jsonl(tmp_path / "samples.jsonl")] == ["xx", "yy"]


def test_samples_that_nobody_takes_are_printed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.whole([Sampling("x", lambda _model, _prompt: "y", every=4)])
    assert "step 4 writes: xy" in capsys.readouterr().out


def test_tensorboard_reads_what_was_written(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra bimo[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Telling(Callback):
        def on_step(self, trainer: Trainer, result: StepResult) -> None:
            if result.step == 2:
                trainer.event("batch set aside", what="for a test")

    checkpoint = run.half([TensorBoard(tmp_path, every=1), Telling()])
    run.other_half([TensorBoard(tmp_path, every=1), Telling()], checkpoint)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [point.step for point in events.Scalars("training/loss")] == [1, 2, 3, 4, 5, 6], "each step once"
    assert [point.step for point in events.Scalars("held_out/loss")] == [HALF, STEPS]
    assert {"sample/text_summary", "event/batch_set_aside/text_summary"} <= set(events.Tags()["tensors"])


def test_a_missing_tensorboard_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"bimo\[tensorboard\]"):
        TensorBoard(tmp_path)


def test_without_a_terminal_progress_is_a_line_every_ten_seconds(run: Run) -> None:
    screen, now = io.StringIO(), iter(range(0, 100, 4))
    run.whole([Progress(Console(file=screen), clock=lambda: next(now))])
    steps = [line.split()[1] for line in screen.getvalue().splitlines() if "left" in line]
    assert steps == ["1/6", "4/6", "6/6"], "the first, one 12 seconds later, the last"
    assert "step 3: held-out loss" in screen.getvalue()


def test_in_a_terminal_progress_is_one_line(run: Run) -> None:
    screen = io.StringIO()
    run.whole([Progress(Console(file=screen, force_terminal=True, width=100))])
    assert screen.getvalue().count("\n") == 1, "drawn again in its place"
    assert "step 6/6" in screen.getvalue()
    assert "tokens/s" in screen.getvalue()


def test_progress_gives_the_terminal_back_after_an_error(run: Run) -> None:
    class Broken(Callback):
        def on_step(self, trainer: Trainer, result: StepResult) -> None:
            raise ValueError("of a test")

    screen = io.StringIO()
    with pytest.raises(ValueError, match="of a test"):
        run.whole([Progress(Console(file=screen, force_terminal=True)), Broken()])
    assert screen.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


def test_a_search_for_the_rate_takes_everything_back(run: Run) -> None:
    trainer = replace(run, optimizer="adamw").trainer([Weights()])
    trainer.fit(batches())
    torch.manual_seed(5)
    random.seed(5)
    before, settings = copied(state_of(trainer)), trainer.settings
    report = find_rate(trainer, steps=20)
    assert not difference(before, state_of(trainer)), "weights, optimizer, chance, position, steps"
    assert trainer.settings == settings, "and the settings"
    assert not trainer.model.training, "and the mode"
    assert report.suggestion <= report.lowest / 3, "well below where the loss is lowest"
    assert 1e-4 < report.suggestion < 0.1, f"a rate that people would take, not {report.suggestion}"
    trainer.model.train()
    trainer.step(iter(batches()))
    assert difference(before, state_of(trainer)), "the control: one update is seen"


def test_a_search_for_muon_stays_where_its_equal_steps_mean_something(run: Run) -> None:
    report = find_rate(run.trainer([]), batches(), steps=20)
    assert report.rates[-1] <= 0.12
    beyond = find_rate(run.trainer([]), batches(), high=1.0, steps=20)
    assert beyond.rates[-1] > 0.12, "the control: nothing explodes there"


def test_a_search_ends_when_the_loss_explodes(run: Run) -> None:
    report = find_rate(run.trainer([]), batches(), low=1e-4, high=1e6, steps=30)
    assert len(report.losses) < 30, "long before the last rate"
    assert report.rates[-1] < 1e5


def test_a_search_says_why_it_cannot_find_a_rate(run: Run) -> None:
    trainer = run.trainer([])
    with pytest.raises(UserError, match="read only once"):
        find_rate(trainer, iter(batches()))
    with pytest.raises(UserError, match="0 < low < high"):
        find_rate(trainer, batches(), low=1.0, high=0.1)
    trainer.loss = lambda logits, targets, weights: logits.sum() * 0.0
    with pytest.raises(UserError, match="the loss falls at no rate"):
        find_rate(trainer, batches(), steps=10)


def test_the_rate_that_is_found_is_trained_with(run: Run) -> None:
    class Rates(Callback):
        seen: tuple[float, ...] = ()

        def on_step(self, trainer: Trainer, result: StepResult) -> None:
            self.seen = (*self.seen, result.learning_rate)

    finder, rates = RateFinder(steps=20), Rates()
    torch.manual_seed(1)
    trainer = run.whole([finder, rates])
    assert finder.report is not None, "a new run searches"
    assert trainer.settings.learning_rate == pytest.approx(finder.report.suggestion)
    assert max(rates.seen) == pytest.approx(finder.report.suggestion), "the peak of the schedule"
    torch.manual_seed(2)
    other = RateFinder(steps=20)
    run.whole([other])
    assert other.report == finder.report, "whatever was drawn before"


def test_a_rollback_to_the_start_keeps_the_rate_that_was_found() -> None:
    finder = RateFinder()
    start = finder.state_dict()
    finder.load_state_dict({"factor": 3.0})
    finder.load_state_dict(start)
    assert finder.state_dict() == {"factor": 3.0}, "a resume must find it"


def test_the_rates_of_a_ready_optimizer_are_scaled(tmp_path: Path) -> None:
    finder = RateFinder(steps=20)
    run = Run(tmp_path, lambda parameters: torch.optim.SGD(parameters, lr=123.0, momentum=0.9))
    trainer = run.whole([finder])
    assert finder.report is not None, "a new run searches"
    assert trainer.optimizer.param_groups[0]["initial_lr"] == pytest.approx(finder.report.suggestion)


def test_gradient_statistics_are_those_of_the_gradient(run: Run, tmp_path: Path) -> None:
    class ByHand(Callback):
        gradient: Tensor = torch.zeros(())

        def on_gradient(self, trainer: Trainer, gradient: Any) -> None:
            self.gradient = trainer.model.layers[0].mlp.down_proj.weight.grad.double()

    by_hand, statistics = ByHand(), GradientStatistics(every=STEPS, folder=tmp_path)
    run.whole([by_hand, statistics])
    found, expected = statistics.latest["layers.0.mlp.down_proj"], by_hand.gradient
    assert found.norm == pytest.approx(float(expected.norm()), rel=1e-5)
    assert found.rms == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-5)
    assert found.largest == pytest.approx(float(expected.abs().max()))
    assert found.zeros == float((expected == 0).double().mean())
    lines = read_jsonl(tmp_path / "layers.jsonl")
    assert {line["step"] for line in lines} == {1, STEPS}, "the first step, and those asked for"
    assert lines[0].keys() == {"step", "of", "layer", "norm", "rms", "zeros", "largest"}


def test_a_dead_layer_is_seen_in_its_activations(run: Run) -> None:
    statistics = ActivationStatistics(every=1)
    trainer = run.trainer([statistics], steps=1)
    with torch.no_grad():
        trainer.model.layers[1].mlp.down_proj.weight.zero_()
    trainer.fit(batches())
    assert statistics.latest["layers.1.mlp"].zeros == 1.0, "it gives nothing"
    assert statistics.latest["layers.0.mlp"].zeros < 0.5, "the control: the other one lives"


def test_listeners_are_gone_after_a_fault(run: Run) -> None:
    trainer = run.trainer([ActivationStatistics(every=1)])
    trainer.loss = lambda logits, targets, weights: logits.sum() * float("nan")
    with pytest.raises(UserError, match="step 1"):
        trainer.fit(batches())
    assert not any(module._forward_hooks for module in trainer.model.modules()), "none is left"


def test_squares_that_are_infinite_are_valid_json(run: Run, tmp_path: Path) -> None:
    statistics = ActivationStatistics(folder=tmp_path)
    statistics.keep(run.trainer([]), {"layer": [torch.tensor([2.0, math.inf, 0.0, 1e30])]})
    (line,) = (tmp_path / "layers.jsonl").read_text().splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (found["rms"], found["largest"]) == (None, pytest.approx(1e30))


def test_settings_name_callbacks(tmp_path: Path) -> None:
    texts = ["weight_average(decay=0.5)", "early_stopping(patience=7)", "sampling(prompts=['a'])", "best_checkpoint"]
    made = make_callbacks(
        replace(SETTINGS, callbacks=texts), {"folder": tmp_path, "generate": lambda _model, prompt: prompt}
    )
    average, stopping, sampling, best = made
    assert isinstance(average, WeightAverage)
    assert average.decay == 0.5
    assert isinstance(stopping, EarlyStopping)
    assert stopping.patience == 7
    assert isinstance(sampling, Sampling)
    assert sampling.path == tmp_path / "samples.jsonl", "what a run gives is given"
    assert isinstance(best, BestCheckpoint)
    assert best.folder == tmp_path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("early_stoping", "did you mean 'early_stopping'"),
        ("early_stopping(patience)", "must look like"),
        ("early_stopping(patience=1, patience=2)", "must look like"),
    ],
)
def test_a_misspelt_callback_is_found_in_the_settings(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(SETTINGS, callbacks=[text])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("early_stopping(patiance=1)", "did you mean 'patience'"),
        ("sampling", "prompts is missing"),
        ("weight_average(decay=2)", "below 1"),
    ],
)
def test_parameters_of_a_callback_are_looked_at_when_it_is_made(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_callbacks(replace(SETTINGS, callbacks=[text]))


def test_a_callback_of_ones_own_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRIES["callback"], "registered", {})

    @bimo.register("callback", "mine")
    class Mine(Callback):
        def __init__(self, size: int = 1) -> None:
            self.size = size

    (made,) = make_callbacks(replace(SETTINGS, callbacks=["mine(size=3)"]))
    assert isinstance(made, Mine)
    assert made.size == 3
    bimo.register("callback", "no_callback")(dict)
    with pytest.raises(UserError, match="dict is no Callback"):
        make_callbacks(replace(SETTINGS, callbacks=["no_callback"]))


def test_python_of_the_page_runs(
    spec: ModelSpec, tokenizer: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REGISTRIES["callback"], "registered", {})
    section = PAGE.read_text(encoding="utf-8").partition("## Callbacks")[2].partition("\n## ")[0]
    names = {"lm": bimo.new(spec, tokenizer), "texts": texts[:16], "held_out": texts[16:20]}
    names["settings"] = TrainingSettings(device="cpu", precision="fp32", threads=1, batch_size=4)
    for block in re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL):
        exec(compile(block, "training.md", "exec"), names)
    assert names["report"].losses, "the last block has run"


def test_the_page_names_every_callback_and_every_method() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Callbacks")[2].partition("\n## ")[0]
    assert not [name for name in REGISTRIES["callback"].ours if f"| `{name}` |" not in section], "ready ones"
    assert not [name for name in HAPPENINGS if f"`{name}(" not in section], "methods"
