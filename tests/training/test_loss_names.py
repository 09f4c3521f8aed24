"""Settings name losses, with parameters that are read and never run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bimo.core.config import TrainingSettings
from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, name_and_parameters
from bimo.training import losses
from bimo.training.losses import ChunkedLoss, loss_by_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cross_entropy", losses.CrossEntropy()),
        ("label_smoothing", losses.LabelSmoothing(epsilon=0.1)),
        ("label_smoothing(epsilon=0.2)", losses.LabelSmoothing(epsilon=0.2)),
        ("z_loss()", losses.ZLoss(coefficient=1e-4)),
        (" z_loss ( coefficient = 1e-3, epsilon=0.1 ) ", losses.ZLoss(epsilon=0.1, coefficient=1e-3)),
        ("focal(gamma=3)", losses.Focal(3)),
        ("unlikelihood(alpha=0.5)", losses.Unlikelihood(0.5)),
    ],
)
def test_a_setting_names_a_loss_and_its_parameters(text: str, expected: ChunkedLoss) -> None:
    assert loss_by_name(TrainingSettings(loss=text).loss) == expected


def test_what_a_name_stands_for_is_made_by_a_function_that_is_passed_in() -> None:
    asked: list[str] = []
    teacher = nn.Identity()

    def open_model(folder: str) -> nn.Module:
        asked.append(folder)
        return teacher

    loss = loss_by_name("distillation(teacher='runs/large', temperature=3.0)", {"teacher": open_model})
    assert isinstance(loss, losses.Distillation)
    assert (asked, loss.teacher, loss.temperature) == (["runs/large"], teacher, 3.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("focall", "did you mean 'focal'"),
        ("label_smoothing(epsilon=0.2", "must look like label_smoothing"),
        ("focal(2)", "must look like focal"),
        ("focal(gamma=1)(gamma=2)", "must look like focal"),
        ("focal(gamma=1, gamma=2)", "must look like focal"),
        ("focal(**{'gamma': 1})", "must look like focal"),
        ("focal(gamma=1) or print()", "must look like focal"),
        ("focal(gamma=__import__('os').getpid())", "must look like focal"),
        ("focal(gamma=" + "[" * 10_000, "must look like focal"),
    ],
)
def test_settings_refuse_a_loss_that_is_not_written_well(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TrainingSettings(loss=text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("focal(gama=2)", r"no parameter 'gama' \(did you mean 'gamma'\?\)\. Known: gamma"),
        ("focal(gamma='much')", "gamma must be a number of at least 0, is 'much'"),
        ("focal(gamma=-1)", "gamma must be a number of at least 0, is -1"),
        ("label_smoothing(epsilon=2)", "epsilon must be a number from 0 to 1, is 2"),
        ("z_loss(coefficient=1e999)", "coefficient must be a number of at least 0, is inf"),
        ("distillation", "teacher is missing"),
        ("distillation(teacher='runs/large')", "the teacher must be a model, is 'runs/large'"),
    ],
)
def test_parameters_that_a_loss_does_not_take_are_told_in_words(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        loss_by_name(text)


def test_a_function_that_is_registered_is_the_loss_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRIES["loss"].registered, "mine", losses.cross_entropy)
    assert loss_by_name("mine") is losses.cross_entropy
    with pytest.raises(UserError, match="'mine' is a function and takes no parameters"):
        loss_by_name("mine(size=2)")


def test_a_class_that_is_registered_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled:
        def __init__(self, factor: float = 1.0) -> None:
            self.factor = 1.0 * factor

        def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            return self.factor * losses.cross_entropy(logits, targets, weights)

    monkeypatch.setitem(REGISTRIES["loss"].registered, "scaled", Scaled)
    logits, targets, weights = torch.randn(1, 3, 5), torch.tensor([[0, 1, 2]]), torch.ones(1, 3)
    once, twice = (loss_by_name(text)(logits, targets, weights) for text in ("scaled", "scaled(factor=2)"))
    assert torch.equal(twice, 2 * once)
    with pytest.raises(UserError, match="cannot be made"):
        loss_by_name("scaled(factor='two')")


def test_values_of_every_plain_kind_are_read() -> None:
    name, parameters = name_and_parameters("own-loss(a=-1.5, b='x(y', c=[1, 2], d=True, e=None)")
    assert name == "own-loss"
    assert parameters == {"a": -1.5, "b": "x(y", "c": [1, 2], "d": True, "e": None}


def test_the_documents_name_every_ready_loss() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert set(REGISTRIES["loss"].ours) <= set(re.findall(r"`(\w+)[`(]", page))
