"""A budget: what is chosen for a time, and that the time is kept."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from bimo.budgeting import Beginning
from bimo.cli import main
from bimo.core.config import RunSettings, TrainingSettings
from bimo.core.errors import UserError
from bimo.core.spec import ModelSpec
from bimo.data import Document
from bimo.training.budget import (
    LADDER,
    Pace,
    batch_tokens,
    effective_tokens,
    expected_loss,
    fitted,
    interpolated,
    rank,
    shaped,
    vocabulary,
)
from bimo.training.plan import sizes

SHAPES = [
    (spec, own.parameters, own.flops_per_token)
    for layers, width in LADDER[:16]
    for spec in [shaped(ModelSpec(), layers, width)]
    for own in [sizes(spec)]
]
PLENTY = 1e12  # tokens of a text without end


def machine(flops: float) -> list[tuple[float, Pace]]:
    """A machine of which only its speed counts."""
    return [(work, Pace(work / flops, 10 * work / flops)) for work in (1e6, 1e7, 1e8)]


def test_more_time_and_a_faster_machine_choose_larger_models() -> None:
    sizes_chosen = [
        rank(SHAPES, machine(flops), seconds, PLENTY)[0].parameters
        for flops, seconds in ((3e10, 180), (3e10, 1800), (1e12, 1800))
    ]
    assert sizes_chosen == sorted(set(sizes_chosen))


def test_the_choice_has_the_lowest_loss_and_neither_end_of_the_ladder() -> None:
    ranked = rank(SHAPES, machine(6e10), 600, PLENTY)
    assert [c.loss for c in ranked] == sorted(c.loss for c in ranked)
    weights = sorted(c.parameters for c in ranked)
    assert weights[0] < ranked[0].parameters < weights[-1]


def test_a_small_text_is_worth_less_each_time_it_is_read() -> None:
    assert effective_tokens(1e6, 1e6) == 1e6
    assert 3.5e6 < effective_tokens(4e6, 1e6) < 4e6, "four times are nearly as good as new text"
    assert effective_tokens(1e9, 1e6) < 20e6, "a thousand times are not"
    assert expected_loss(1e6, 1e8, PLENTY) < expected_loss(1e6, 1e8, 1e6)


def test_where_tokens_no_longer_help_weights_do() -> None:
    """With little text the rule takes a larger model than with plenty."""
    little, plenty = (rank(SHAPES, machine(1e12), 3600, unique)[0].parameters for unique in (2e5, PLENTY))
    assert little > plenty


def test_pace_between_two_measured_sizes_lies_between_theirs() -> None:
    measured = [(1e6, Pace(1e-5, 1e-3)), (1e7, Pace(8e-5, 4e-3)), (1e8, Pace(7e-4, 3e-2))]
    between = interpolated(3e6, measured)
    assert 1e-5 < between.token_s < 8e-5
    assert 1e-3 < between.update_s < 4e-3
    assert interpolated(1e7, measured).token_s == pytest.approx(8e-5)
    assert interpolated(1e9, measured).token_s > 7e-4, "beyond the largest it goes on as before"


def test_a_noisy_measurement_does_not_make_large_models_quick() -> None:
    measured = [(1e6, Pace(1e-4, 1e-3)), (1e7, Pace(5e-5, 1e-3))]  # the larger one seemed quicker
    assert interpolated(1e9, measured).token_s >= 5e-5


def test_tokens_and_batch_agree() -> None:
    pace = Pace(1e-4, 0.05)
    tokens = pace.tokens_in(600)
    assert tokens * (pace.token_s + pace.update_s / batch_tokens(tokens)) == pytest.approx(600, rel=0.01)


def test_batches_grow_with_the_run_and_leave_updates_enough() -> None:
    assert batch_tokens(1e8) > batch_tokens(1e6)
    assert 1e5 / batch_tokens(1e5) >= 200


def test_fitted_settings_take_the_time() -> None:
    chosen = rank(SHAPES, machine(6e10), 600, PLENTY)[0]
    settings = fitted(RunSettings(), chosen)
    tokens = settings.training.steps * settings.training.batch_size * settings.model.context_length
    assert tokens == pytest.approx(chosen.tokens, rel=0.05)
    assert settings.model == chosen.spec
    assert settings.training.learning_rate == RunSettings().training.learning_rate, "Muon's rate holds for every width"


def test_a_depth_that_grows_leaves_time_for_more_tokens() -> None:
    plain = rank(SHAPES, machine(6e10), 600, PLENTY)[0]
    growing = rank(SHAPES, machine(6e10), 600, PLENTY, cost=lambda spec: 0.5)[0]
    assert growing.tokens / growing.pace.tokens_in(600) == pytest.approx(2, rel=0.05)
    assert growing.parameters >= plain.parameters
    assert growing.loss < plain.loss


def test_adamw_gets_a_lower_rate_for_a_wider_model() -> None:
    plain = RunSettings(training=TrainingSettings(optimizer="adamw"))
    ranked = sorted(rank(SHAPES, machine(6e10), 600, PLENTY), key=lambda c: c.spec.d_model)
    rates = [fitted(plain, candidate).training.learning_rate for candidate in (ranked[0], ranked[-1])]
    assert rates[0] > rates[1]


def test_other_choices_of_a_model_stay_when_its_size_changes() -> None:
    spec = shaped(ModelSpec(feedforward="gelu", n_kv_heads=2, context_length=512), 4, 256)
    assert (spec.feedforward, spec.context_length) == ("gelu", 512)
    assert (spec.n_heads * spec.head_dim, spec.d_ff) == (256, 1024), "sizes that follow from the width"


def test_vocabularies_grow_with_the_text() -> None:
    found = [vocabulary(size) for size in (1e5, 1e6, 1e7, 1e8, 1e10)]
    assert found == sorted(set(found))


def test_a_memory_that_holds_no_model_is_told() -> None:
    with pytest.raises(UserError, match="memory"):
        rank([], machine(1e10), 60, PLENTY)


def test_the_beginning_of_a_text_can_be_read_twice() -> None:
    documents = [Document("x" * 100, "file", row) for row in range(10)]
    beginning = Beginning(documents, 250)
    assert [d.row for d in beginning] == [d.row for d in beginning] == [0, 1]


def test_a_run_within_a_budget_keeps_its_time(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n\n".join(texts * 3), encoding="utf-8")
    start = time.monotonic()
    assert main(["train", "text.txt", "--budget", "10s", "--name", "quick", "--training.threads", "1"]) == 0
    assert time.monotonic() - start == pytest.approx(10, abs=3), "a small run on a shared machine is given some more"
    chosen = yaml.safe_load(Path("runs/quick/run.yaml").read_text())
    assert len(chosen["notes"]) == 4, "what was chosen, and why"
    assert chosen["tokenizer"]["vocab_size"] == 512, "there is little text"


@pytest.mark.parametrize("budget", ["soon", "0m", "-3m"])
def test_a_strange_budget_is_refused(budget: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("text")
    assert main(["train", str(tmp_path / "text.txt"), f"--budget={budget}", "--folder", str(tmp_path)]) == 2
    assert "is no time" in capsys.readouterr().err
