"""Equal seconds for all, the same batches, the best rate and the best moment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from bimo.core.batch import Batch
from bimo.evaluation.answer import Answer
from bimo.families.asking import ask_all
from bimo.families.turns import TURNS, Lessons, train_all
from bimo.training.streams import BatchStream


class Valley:
    """The smallest family there is: one weight that goes downhill to 3, at its own pace."""

    about, n_parameters = "one weight", 1

    def __init__(self, name: str, steepness: float = 1.0, gets_worse_after: int = 10**9) -> None:
        self.name, self.steepness, self.worse = name, steepness, gets_worse_after
        self.seen: list[int] = []
        self.asked: list[list[int]] = []

    def begin(self, rate: float) -> None:
        self.w, self.rate, self.made = torch.zeros(()), rate, 0
        self.seen.clear()

    def step(self, batch: Batch, share: float) -> float:
        self.seen.append(int(batch.ids[0, 0]))
        self.made += 1
        goal = 3.0 if self.made <= self.worse else 100.0
        self.w = self.w - self.rate * share * self.steepness * (self.w - goal)
        return float((self.w - goal) ** 2)

    def loss(self, batches: Sequence[Batch]) -> float:
        return float((self.w - 3) ** 2)

    def weights(self) -> dict[str, torch.Tensor]:
        return {"w": self.w.clone()}

    def put_back(self, weights: dict[str, torch.Tensor]) -> None:
        self.w = weights["w"]

    def answer(self, prompts: Sequence[list[int]]) -> list[Answer]:
        self.asked.append([prompt[0] for prompt in prompts])
        return [Answer(f"{self.name} {prompt[0]}") for prompt in prompts]


def batch(number: int) -> Batch:
    ids = torch.tensor([[number, 7]])
    return Batch(ids, ids, torch.ones(1, 2))


def lessons(seconds: float = 50.0, rates: Sequence[float] = (0.1,), tick: float = 1.0) -> Lessons:
    counter = itertools.count()
    return Lessons(BatchStream(batch, 10**6, {}), [], seconds, rates, clock=lambda: next(counter) * tick)


def quiet(stage: str, share: float) -> None:
    """Nothing."""


def test_all_get_the_same_seconds_and_the_same_batches_in_the_same_order() -> None:
    families = [Valley("a"), Valley("b", steepness=0.5)]
    runs = train_all(families, lessons(), quiet)
    assert [run.seconds for run in runs] == [50, 50]
    assert families[0].seen == families[1].seen == list(range(50))
    assert [run.examples for run in runs] == [50, 50]


def test_trials_of_rates_are_paid_out_of_the_own_seconds() -> None:
    runs = train_all([Valley("a"), Valley("b")], lessons(rates=(0.01, 0.1, 1.0)), quiet)
    for run in runs:
        assert 9 <= run.trial_seconds <= 15
        assert 50 <= run.seconds + run.trial_seconds <= 50 + 1, "one update at most beyond the time"


def test_each_family_chooses_its_own_rate() -> None:
    runs = train_all([Valley("gentle"), Valley("steep", steepness=30.0)], lessons(rates=(0.02, 0.2, 1.0)), quiet)
    assert [run.rate for run in runs] == [1.0, 0.02]
    assert all(len(run.tried) == 3 for run in runs)


def test_a_rate_that_explodes_is_not_chosen() -> None:
    [run] = train_all([Valley("wild", steepness=1e30)], lessons(rates=(1e-31, 1.0)), quiet)
    assert run.rate == 1e-31
    assert run.tried[1.0] == math.inf


@pytest.mark.parametrize(("worse", "kept"), [(25, 0.4), (10**9, 1.0)])
def test_the_weights_of_the_lowest_held_out_loss_are_kept(worse: int, kept: float) -> None:
    family = Valley("a", gets_worse_after=worse)
    [run] = train_all([family], lessons(), quiet)
    assert run.kept == kept
    assert family.loss([]) == pytest.approx(run.best) == min(run.losses)
    assert len(run.losses) == TURNS


def test_every_portion_is_answered_by_all_and_spread_over_the_examples() -> None:
    families = [Valley("a"), Valley("b")]
    prompts: list[list[int] | None] = [[n] for n in range(300)]
    prompts[5] = None
    found = ask_all(families, prompts, deadline=math.inf, tell=quiet)
    assert found.places == list(range(300))
    assert found.by_family[1][7] == "b 7"
    assert found.by_family[0][5].how.finish_reason == "error"
    assert families[0].asked == families[1].asked


def test_when_the_time_is_over_all_have_answered_the_same_examples() -> None:
    counter = itertools.count()
    families = [Valley("a"), Valley("b")]
    found = ask_all(families, [[n] for n in range(640)], deadline=12.0, tell=quiet, clock=lambda: float(next(counter)))
    assert 64 <= len(found.places) < 640
    assert found.places[-1] - found.places[0] > 600, "evenly spread: files are often sorted"
    assert all(answer == f"b {place}" for place, answer in zip(found.places, found.by_family[1], strict=True))
    late = ask_all(families, [[n] for n in range(640)], deadline=-1.0, tell=quiet)
    assert len(late.places) == 64, "the first portion is always answered"
