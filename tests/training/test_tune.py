"""The search: equal sizes, equal seconds, poor trials ended early, gone on with exactly, its gain said honestly."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bimo.cli import main
from bimo.core.config import ModelSpec, RunSettings, TrainingSettings
from bimo.core.errors import UserError
from bimo.model.gpt import GPT
from bimo.training import Callback, StepResult, Trainer
from bimo.training.search import POINTS, Curve, Search
from bimo.training.space import count_parameters, make_space
from bimo.training.trial import TrialClock, trial_settings
from bimo.training.tune import Effort, Gain, Report, Tuned, Tuning

RECIPE = RunSettings(
    model=ModelSpec(n_layers=4, n_heads=4, n_kv_heads=2, d_model=128, context_length=64),
    training=TrainingSettings(steps=200, batch_size=8, learning_rate=1e-3, warmup_steps=20),
)


class Landscape:
    """Stands in for training: the loss depends on the rate alone, time passes as it is told, seeds add a little.

    Args:
        best_rate: Where the loss is lowest.
        noise: Of the seeds.
    """

    def __init__(self, best_rate: float = 3e-3, noise: float = 0.001) -> None:
        self.best_rate, self.noise = best_rate, noise
        self.now = 0.0
        self.reports: list[int] = []
        self.calls = 0
        self.cut_at = -1

    def clock(self) -> float:
        return self.now

    def measure(self, settings: RunSettings, seconds: float, seed: int, report: Report) -> Curve:
        self.calls += 1
        worse = abs(math.log(settings.training.learning_rate / self.best_rate))
        for point in range(1, POINTS + 1):
            self.now += seconds / POINTS
            if self.calls == self.cut_at:
                raise KeyboardInterrupt
            loss = 3.0 + worse + 3.0 / point + self.noise * (seed % 3)
            if report(point, loss):
                self.reports.append(point)
                return Curve(math.inf, seconds * point / POINTS, 10 * point, 0, "ended early")
        self.reports.append(POINTS)
        return Curve(loss, seconds, 100)


def tuning(folder: Path, land: Landscape, effort: Effort, recipe: RunSettings = RECIPE) -> Tuning:
    return Tuning(Search(folder / "tune.db", recipe), effort, land.measure, tell=lambda line: None, clock=land.clock)


def searched(folder: Path, land: Landscape, effort: Effort) -> Tuned:
    return tuning(folder, land, effort).run(lambda seconds: 3e-3)


def test_all_structures_have_the_parameters_of_the_recipe() -> None:
    space = make_space(RECIPE)
    wanted = count_parameters(RECIPE.model)
    own = space.default(RECIPE)
    sizes = {
        name: count_parameters(space.applied(RECIPE, {**own, "shape": name}).model) / wanted for name in space.shapes
    }
    assert len(sizes) >= 4, sizes
    assert all(abs(size - 1) <= 0.04 for size in sizes.values()), sizes


def test_the_recipe_is_one_of_the_choices_and_a_choice_keeps_the_tokens() -> None:
    space = make_space(RECIPE, 1e-2)
    own = space.default(RECIPE)
    assert space.applied(RECIPE, own) == RECIPE
    assert space.low_rate < 1e-3 < 1e-2 < space.high_rate, "the finder's rate and the recipe's own"
    larger = space.applied(RECIPE, {**own, "batch_size": 16, "learning_rate": 2e-3}).training
    assert (larger.steps, larger.warmup_steps) == (100, 10)
    assert larger.min_learning_rate == pytest.approx(2 * RECIPE.training.min_learning_rate)


def test_layers_that_are_named_by_number_keep_their_depth() -> None:
    model = replace(RECIPE.model, window=8, full_layers=(3,))
    assert {fields.get("n_layers", 4) for fields in make_space(replace(RECIPE, model=model)).shapes.values()} == {4}


@pytest.mark.parametrize("fast", [True, False])
def test_the_last_runs_are_shorter_where_the_machine_has_become_slower(tmp_path: Path, fast: bool) -> None:
    class Slowing(Landscape):
        """Half of the way through, something else wants the cores."""

        def measure(self, settings: RunSettings, seconds: float, seed: int, report: Report) -> Curve:
            before = self.now
            curve = super().measure(settings, seconds, seed, report)
            if before > 500 and not fast:
                self.now += 1.5 * (self.now - before)
            return curve

    land = Slowing()
    search = tuning(tmp_path, land, Effort(1000, seeds=3))
    search.run(lambda seconds: 3e-3)
    assert land.now <= 1100
    assert (search.search.remembered("last_s", 0.0) == search.search.trial_s) == fast


def test_the_search_finds_a_better_rate_within_its_time(tmp_path: Path) -> None:
    land = Landscape()
    tuned = searched(tmp_path, land, Effort(1000, seeds=3))
    assert tuned.rows[0].choice["learning_rate"] == 1e-3, "the recipe itself comes first"
    assert tuned.gain is not None
    assert tuned.gain.is_real, str(tuned.gain)
    assert abs(math.log(tuned.settings.training.learning_rate / 3e-3)) < 0.7, "near the best"
    assert 800 < land.now <= 1000, "the time is used and kept"


def test_poor_trials_are_ended_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    land = Landscape()
    rows = searched(tmp_path, land, Effort(10**6, trials=10, trial_s=10)).rows
    assert min(land.reports) < POINTS, "some were ended"
    assert land.reports[0] == POINTS, "the recipe was not"
    ended = [row for row in rows if row.state == "ended early"]
    assert all(len(row.curve) < POINTS for row in ended), "what was ended has no end"
    monkeypatch.setattr(Search, "report", lambda self, trial, point, loss: False)
    land = Landscape()
    searched(tmp_path / "whole", land, Effort(10**6, trials=10, trial_s=10))
    assert min(land.reports) == POINTS, "the control: without the rule all train to their end"


def test_a_search_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    effort = Effort(10**6, trials=8, trial_s=10)
    land = Landscape()
    land.cut_at = 3
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, land, effort)
    cut = Search(tmp_path / "tune.db", RECIPE).study.trials[2].params
    spent = land.now
    land.cut_at = -1
    second = tuning(tmp_path, land, effort)
    tuned = second.run(lambda seconds: pytest.fail("a search that goes on has its space"))
    assert len(tuned.rows) == 8, "as many as without the cut"
    assert tuned.rows[2].choice == cut, "what was cut off is tried again"
    assert second.spent == pytest.approx(land.now, abs=11), "what was spent before counts"
    assert spent < land.now


def test_the_same_command_after_the_end_does_nothing_again(tmp_path: Path) -> None:
    effort = Effort(10**6, trials=6, trial_s=10)
    land = Landscape()
    first = searched(tmp_path, land, effort)
    calls = land.calls
    again = searched(tmp_path, land, effort)
    assert land.calls == calls, "nothing is trained twice"
    assert again == first


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    Search(tmp_path / "tune.db", RECIPE)
    Search(tmp_path / "tune.db", replace(RECIPE, name="other"))
    with pytest.raises(UserError, match="another recipe"):
        Search(tmp_path / "tune.db", replace(RECIPE, training=TrainingSettings(steps=3)))


def test_a_file_that_is_no_search_is_named(tmp_path: Path) -> None:
    (tmp_path / "tune.db").write_text("a text that is no data base, long enough to be taken for one\n" * 20)
    with pytest.raises(UserError, match=r"tune\.db"):
        Search(tmp_path / "tune.db", RECIPE)


def test_a_gain_within_its_spread_is_none() -> None:
    within = Gain([3.50, 3.60, 3.55], [3.49, 3.58, 3.52])
    beyond = Gain([3.50, 3.51, 3.49], [3.40, 3.41, 3.39])
    assert not within.is_real
    assert "no gain beyond the spread" in str(within)
    assert beyond.is_real
    assert beyond.gain == pytest.approx(0.1)
    # By hand: both variances are 1e-4, so the standard error is sqrt(2e-4 / 3), times t(4) = 2.776.
    assert beyond.spread == pytest.approx(2.776 * math.sqrt(2e-4 / 3))


def test_a_choice_that_cannot_be_trained_is_known_as_the_worst(tmp_path: Path) -> None:
    search = Search(tmp_path / "tune.db", RECIPE)
    search.begin(make_space(RECIPE), 1.0)
    for loss in (3.0, math.inf, math.nan):
        trial, _ = search.ask()
        search.tell(trial, Curve(loss, 1.0))
    assert [row.state for row in search.rows()] == ["whole", "ended early", "ended early"]
    assert search.best() == search.rows()[0]


def test_budgets_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="left for each trial"):
        searched(tmp_path, Landscape(), Effort(20))
    with pytest.raises(UserError, match="positive budget"):
        Effort(0)


def test_a_missing_optuna_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"bimo\[tune\]"):
        Search(tmp_path / "tune.db", RECIPE)


class Rates(Callback):
    """Keeps the rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.seen.append(result.learning_rate)


def test_a_trial_ends_at_its_time_with_its_rate_decayed(spec: ModelSpec, settings: TrainingSettings) -> None:
    passed = iter(range(10**6))  # each look at the clock takes a second
    points: list[int] = []
    clock = TrialClock(60.0, lambda point, loss: bool(points.append(point)), clock=lambda: float(next(passed)))
    rates = Rates()
    chosen = trial_settings(replace(settings, steps=1000, warmup_steps=100), seed=3)
    trainer = Trainer(GPT(spec), chosen, callbacks=[clock, rates], evaluate_fn=lambda model: {"valid_loss": 1.0})
    trainer.fit([[1, 2, 3, 4]] * 16)
    assert points == [1, 2, 3, 4, 5, POINTS], "it was measured at equal shares of its time and at its end"
    assert 10 < trainer.state.step < 60, "and ended when the time was over"
    assert rates.seen[-1] < 0.1 * chosen.learning_rate, "the rate has fallen"
    assert max(rates.seen) > 0.9 * chosen.learning_rate, "after it had reached its peak: warm-up is a share of the time"


def test_callbacks_that_would_end_or_steer_a_trial_are_left_out(settings: TrainingSettings) -> None:
    chosen = trial_settings(replace(settings, callbacks=["early_stopping", "weight_average", "rate_finder"]), seed=3)
    assert chosen.callbacks == ["weight_average"]
    assert (chosen.seed, chosen.evaluate_every, chosen.checkpoint_every) == (3, 0, 0)


def test_tune_from_the_command_line_writes_a_recipe_that_train_takes(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    recipe = {
        "name": "small",
        "data": {"paths": ["text.txt"], "validation_share": 0.1, "check": False},
        "tokenizer": {"vocab_size": 400},
        "model": {"n_layers": 2, "n_heads": 2, "d_model": 32, "context_length": 32},
        "training": {"steps": 50, "batch_size": 4, "precision": "fp32", "evaluate_rows": 8, "threads": 1},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["tune", "recipe.yaml", "--budget", "1m", "--trials", "3", "--trial_seconds", "0.3", "--seeds", "2"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "trial 2:" in said, said
    assert "gain" in said or "nothing better" in said, "what came of it"
    best = RunSettings.from_dict(yaml.safe_load(Path("runs/small/best.yaml").read_text()))
    assert best.name == "small-best"
    assert len(json.loads(Path("runs/small/tune.json").read_text())["trials"]) == 3
    assert main(command) == 0, "the same command goes on"
    assert "steps in" not in capsys.readouterr().out.partition("going on with")[2], "with nothing left to train"
    assert main(["train", "runs/small/best.yaml", "--training.steps", "2"]) == 0
