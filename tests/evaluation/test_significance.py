"""Intervals hold the truth as often as they say, and chance is rarely taken for more."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from bimo import UserError
from bimo.evaluation.scores import make_metric
from bimo.evaluation.scores.ratio import Share
from bimo.evaluation.significance import Difference, difference_of, value_of
from bimo.tasks import TaskExample


class Mean(Share):
    """The mean of given numbers."""

    name, higher_is_better, scale = "mean", True, 1.0

    def rows(self, answers: list[str], examples: list[TaskExample]) -> np.ndarray:
        raise NotImplementedError


def sums(values: np.ndarray) -> np.ndarray:
    return np.stack((values, np.ones(len(values))), axis=1)


def holds(level: float, n: int = 40, worlds: int = 300) -> float:
    """How often the interval of a mean holds the true one, over worlds."""
    random, inside = np.random.default_rng(0), 0
    for world in range(worlds):
        found = value_of(Mean(), sums(random.exponential(1.0, n)), rounds=300, level=level, seed=world)
        inside += found.low <= 1.0 <= found.high
    return inside / worlds


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    assert 0.89 <= holds(0.95) <= 0.99
    assert 0.4 <= holds(0.5) <= 0.6, "the control: a narrow one misses it"


def alarms(shift: float, worlds: int = 300, n: int = 40) -> float:
    """How often p < 0.05 for two systems that differ by a shift."""
    random, found = np.random.default_rng(1), 0
    for world in range(worlds):
        common = random.normal(0, 2, n)  # examples are hard or easy for both
        ours, theirs = (common + random.normal(0, 0.5, n) for _ in range(2))
        found += difference_of(Mean(), sums(ours + shift), sums(theirs), rounds=300, seed=world).significant
    return found / worlds


def test_equal_systems_rarely_differ_and_unequal_ones_mostly_do() -> None:
    assert 0.01 <= alarms(0.0) <= 0.085
    assert alarms(0.5) >= 0.95, "the control: pairs take away what is common"


def by_hand(ours: list[float], theirs: list[float]) -> float:
    """The exact p: every way to swap."""
    observed, ways = abs(sum(ours) - sum(theirs)), []
    for swaps in itertools.product((0, 1), repeat=len(ours)):
        pairs = [(b, a) if swap else (a, b) for a, b, swap in zip(ours, theirs, swaps, strict=True)]
        ways.append(abs(sum(a for a, _ in pairs) - sum(b for _, b in pairs)) >= observed - 1e-9)
    return sum(ways) / len(ways)


def test_p_of_few_examples_is_exact() -> None:
    random = np.random.default_rng(2)
    ours, theirs = random.normal(1, 1, 8), random.normal(0, 1, 8)
    assert difference_of(Mean(), sums(ours), sums(theirs)).p == by_hand(list(ours), list(theirs))
    always = difference_of(Mean(), sums(np.ones(6)), sums(np.zeros(6)))
    assert always.p == 2 / 2**6, "only all or none changing sides is as far apart"
    assert (always.value, always.low, always.high, always.better) == (1, 1, 1, True)


def test_p_of_many_examples_comes_near_the_exact_one() -> None:
    random = np.random.default_rng(3)
    ours, theirs = random.normal(0.7, 1, 13), random.normal(0, 1, 13)
    exact = difference_of(Mean(), sums(ours), sums(theirs), rounds=2**13).p
    assert difference_of(Mean(), sums(ours), sums(theirs), rounds=4000).p == pytest.approx(exact, abs=0.03)


def test_equal_answers_have_p_1_and_no_difference() -> None:
    same = sums(np.random.default_rng(4).normal(0, 1, 50))
    found = difference_of(Mean(), same, same)
    assert (found.value, found.low, found.high, found.p, found.better) == (0, 0, 0, 1, False)


def test_one_example_says_nothing_of_chance() -> None:
    value = value_of(Mean(), sums(np.array([3.0])))
    assert value.value == 3
    assert math.isnan(value.low)
    assert difference_of(Mean(), sums(np.array([3.0])), sums(np.array([1.0]))).p == 1


def test_lower_can_be_better() -> None:
    class Cost(Mean):
        higher_is_better = False

    assert difference_of(Cost(), sums(np.zeros(9)), sums(np.ones(9))).better
    assert not difference_of(Cost(), sums(np.ones(9)), sums(np.zeros(9))).better


def test_what_cannot_be_computed_is_neither_better_nor_significant() -> None:
    unknown = np.zeros((5, 2))
    metric = make_metric("perplexity")
    found = difference_of(metric, unknown, unknown)
    assert math.isnan(found.p)
    assert not found.better
    assert not found.significant
    assert math.isnan(value_of(metric, unknown).value)


def test_the_seed_settles_the_interval() -> None:
    values = sums(np.random.default_rng(5).normal(0, 1, 30))
    assert value_of(Mean(), values, seed=1) == value_of(Mean(), values, seed=1)
    assert value_of(Mean(), values, seed=1) != value_of(Mean(), values, seed=2)


def test_resampling_in_portions_is_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    values = sums(np.random.default_rng(6).normal(0, 1, 30))
    whole = value_of(Mean(), values, seed=1)
    monkeypatch.setattr("bimo.evaluation.significance._AT_ONCE", 64)
    found = value_of(Mean(), values, seed=1)
    assert found.value == whole.value
    assert (found.low, found.high) == pytest.approx((whole.low, whole.high), abs=0.05)


def test_corpus_scores_are_compared_as_a_whole() -> None:
    """BLEU is no mean of sentences: swapping all answers must give the same distance, and does."""
    metric = make_metric("bleu")
    examples = [TaskExample((), f"the cat number {i} sat on the mat", "") for i in range(12)]
    good = metric.rows([example.target for example in examples], examples)
    bad = metric.rows(["the dog"] * 12, examples)
    there, back = difference_of(metric, good, bad), difference_of(metric, bad, good)
    assert there.value == -back.value > 90
    assert there.p == back.p < 0.01


def test_a_metric_that_breaks_its_contract_is_named() -> None:
    class Crooked(Mean):
        def total(self, sums: np.ndarray) -> np.ndarray:
            return sums

    with pytest.raises(UserError, match=r"metric mean: total gives"):
        value_of(Crooked(), sums(np.ones(3)))
    with pytest.raises(UserError, match="for one and"):
        difference_of(Mean(), np.ones((3, 2)), np.ones((3, 4)))


def test_significance_is_below_five_in_a_hundred() -> None:
    assert Difference(1, 0, 2, 0.0499, True).significant
    assert not Difference(1, 0, 2, 0.05, True).significant
