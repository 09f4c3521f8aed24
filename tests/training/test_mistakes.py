"""What a newcomer gets wrong is told in one sentence, before the first step: what, where, and how to mend it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bimo
from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training import BestCheckpoint, EarlyStopping, Event, EventsFile, StepResult
from bimo.training.losses import Focal

SPEC = bimo.ModelSpec(vocab_size=32, n_layers=1, n_heads=2, d_model=16, context_length=8)
SETTINGS = bimo.TrainingSettings(steps=2, batch_size=2, warmup_steps=0, threads=1)


class Misspelt(bimo.Callback):
    def on_stp(self, trainer: bimo.Trainer, result: StepResult) -> None: ...


class TooFewArguments(bimo.Callback):
    def on_step(self, trainer: bimo.Trainer) -> None: ...  # type: ignore[override]


class OwnMethods(bimo.Callback):
    """What is no mistake: names of one's own, more arguments with defaults."""

    def report(self) -> str:
        return ""

    def on_step(self, trainer: bimo.Trainer, result: StepResult, more: int = 0) -> None: ...


def two(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gpt() -> bimo.GPT:
    model = bimo.GPT(SPEC)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


def batches() -> list[Batch]:
    ids = torch.arange(16).view(2, 8)
    return [Batch(ids, ids + 1, torch.ones(2, 8))]


@pytest.mark.parametrize(
    ("callbacks", "told"),
    [
        (
            [Misspelt()],
            r"callback Misspelt: on_stp is not called by anybody \(did you mean 'on_step'\?\). Known: on_st",
        ),
        ([TooFewArguments()], r"TooFewArguments: on_step cannot be called with \(trainer, result\): .* Let it take"),
        ("early_stoping", r"is 'early_stoping' \(did you mean 'early_stopping'\?\)"),
        (5, r"callbacks: int is no callback. Give objects"),
        ([EarlyStopping], r"callbacks: the class EarlyStopping is no callback. Give objects"),
    ],
)
def test_a_callback_that_would_not_be_called_is_refused(callbacks: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        bimo.Trainer(gpt(), SETTINGS, callbacks=callbacks)


def test_a_callback_is_also_known_by_its_name() -> None:
    (made,) = bimo.Trainer(gpt(), replace(SETTINGS, watchdog=False), callbacks=["early_stopping(patience=7)"]).callbacks
    assert isinstance(made, EarlyStopping), "as loss and optimizer are"
    assert made.patience == 7, "with its parameters"


def test_a_callback_with_methods_of_its_own_is_taken() -> None:
    trainer = bimo.Trainer(gpt(), SETTINGS, callbacks=[OwnMethods()]).fit(batches())
    assert trainer.state.step == SETTINGS.steps, "it trains to the end"


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (Focal, r"the loss is the class Focal, not an object of it. Write loss=Focal\(\)"),
        (two, r"two: the loss cannot be called with \(logits, targets, weights\): too many .* Let it take these three"),
        (nn.CrossEntropyLoss(), r"CrossEntropyLoss: the loss cannot be called with"),
    ],
)
def test_a_loss_that_cannot_be_called_is_refused(loss: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        bimo.Trainer(gpt(), SETTINGS, loss=loss)


def test_an_error_out_of_a_loss_says_with_which_shapes_it_was_called() -> None:
    with pytest.raises(RuntimeError, match="Expected target size") as caught:
        bimo.Trainer(gpt(), SETTINGS, loss=F.cross_entropy).fit(batches())
    shapes = "logits (2, 8, 32), targets (2, 8), weights (2, 8)"
    assert caught.value.__notes__ == [f"The loss was called with {shapes}."]


@pytest.mark.parametrize("callback", [EarlyStopping(), BestCheckpoint()])
def test_what_waits_for_figures_refuses_a_run_without_them(callback: bimo.Callback) -> None:
    with pytest.raises(UserError, match=f"{type(callback).__name__}: nothing is measured in this run. Give fit valid"):
        bimo.Trainer(gpt(), SETTINGS, callbacks=[callback]).fit(batches())
    bimo.Trainer(gpt(), SETTINGS, callbacks=[callback]).fit(batches(), validation=batches())


@pytest.mark.parametrize("patience", [0, "3", True])
def test_patience_is_a_whole_number(patience: Any) -> None:
    with pytest.raises(UserError, match="EarlyStopping: patience must be a whole number from 1 on"):
        EarlyStopping(patience=patience)


@pytest.mark.parametrize(
    ("model", "settings", "told"),
    [
        ("runs/mine", SETTINGS, "model: str is no model. Give an LM or a GPT"),
        (SPEC, SETTINGS, "model: ModelSpec is no model"),
        (gpt(), {"learning_rate": 1e-3}, "settings: dict are no settings. Give TrainingSettings"),
    ],
)
def test_what_is_no_model_and_no_settings_is_named(model: Any, settings: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        bimo.Trainer(model, settings)


def test_epochs_of_an_endless_stream_say_what_to_give_instead() -> None:
    with pytest.raises(UserError, match=r"these data have no length.*TrainingSettings\(steps=1000\)"):
        bimo.Trainer(gpt(), SETTINGS).fit(iter(batches()), epochs=2)


def test_an_events_file_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    EventsFile(path).on_event(bimo.Trainer(gpt(), SETTINGS), Event("overlap", 0, {}))
    assert '"event": "overlap"' in path.read_text(encoding="utf-8"), "the event is written before the run starts"


def test_an_optimizer_that_wants_the_loss_several_times_is_refused() -> None:
    trained = bimo.Trainer(gpt(), SETTINGS, optimizer=torch.optim.SGD)
    trained.fit([[1, 2, 3]] * 4)  # the control
    with pytest.raises(UserError, match=r"LBFGS computes the loss several times .*AdamW"):
        bimo.Trainer(gpt(), SETTINGS, optimizer=torch.optim.LBFGS).fit([[1, 2, 3]] * 4)
