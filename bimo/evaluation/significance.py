"""Is a difference more than chance? Intervals by the bootstrap, p-values by approximate randomisation.

A metric gives sums per answer, so a resampled set of examples is a vector of weights, and all resamples together are
one product of matrices (Koehn 2004; Riezler & Maxwell 2005). Examples are taken to be independent of each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bimo.core.errors import UserError
from bimo.tasks.task import Metric

ROUNDS = 2000
LEVEL = 0.95
_AT_ONCE = 2**22  # weights that are held
_TIE = 1e-9  # relative: sums of floats in another order differ in their last bits


@dataclass(frozen=True, slots=True)
class Value:
    """A score.

    Attributes:
        value: Over all examples; NaN where it cannot be computed.
        low: Lower end of the interval; NaN for a single example, which says nothing of chance.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One set of answers beside another on the same examples.

    Attributes:
        value: Score of the first less that of the second.
        low: Lower end of its interval.
        high: Upper end.
        p: How often chance alone makes a difference as large, in either direction.
        better: Whether the first is better, whatever p is.
    """

    value: float
    low: float
    high: float
    p: float
    better: bool

    @property
    def significant(self) -> bool:
        """Whether p < 0.05."""
        return self.p < 0.05


def value_of(metric: Metric, sums: np.ndarray, *, rounds: int = ROUNDS, level: float = LEVEL, seed: int = 0) -> Value:
    """A score and its percentile interval (Efron 1979).

    Args:
        metric: What is scored.
        sums: Of each answer, (n, sums).
        rounds: Resamples.
        level: Share of resamples that the interval holds.
        seed: Of the resamples.
    """
    score = _total(metric, sums.sum(axis=0))
    return Value(score, *_interval(_resampled(metric, sums, rounds, seed), level, len(sums)))


def difference_of(
    metric: Metric, ours: np.ndarray, theirs: np.ndarray, *, rounds: int = ROUNDS, level: float = LEVEL, seed: int = 0
) -> Difference:
    """How far two sets of answers to the same examples lie apart, and whether that is chance.

    The interval is that of the paired bootstrap. For p, the two answers to each example change sides or stay, by
    chance: with n examples all 2**n ways where those are no more than `rounds`, else so many of them.

    Args:
        metric: What is scored.
        ours: Sums of each answer of the first, (n, sums).
        theirs: Of the second.
        rounds: Resamples.
        level: Share of resamples that the interval holds.
        seed: Of the resamples.

    Raises:
        UserError: The metric gives the two sums of different kinds.
    """
    if ours.shape != theirs.shape:
        raise UserError(
            f"{metric.name} gives rows of {ours.shape[1:]} for one and {theirs.shape[1:]} for the other",
            where=f"metric {metric.name}",
            mend="Its rows must have the same sums whatever the answers are.",
        )
    value = _total(metric, ours.sum(axis=0)) - _total(metric, theirs.sum(axis=0))
    resampled = _resampled(metric, ours, rounds, seed) - _resampled(metric, theirs, rounds, seed)  # with equal weights
    low, high = _interval(resampled, level, len(ours))
    better = value > 0 if metric.higher_is_better else value < 0
    return Difference(value, low, high, _p(metric, ours, theirs, rounds, seed), bool(better))


def figure(value: float) -> str:
    """A score with as many digits as can be told apart; a dash where it is unknown."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _p(metric: Metric, ours: np.ndarray, theirs: np.ndarray, rounds: int, seed: int) -> float:
    """How often randomly swapped answers lie at least as far apart; NaN where the score cannot be computed."""
    both, apart = ours.sum(axis=0) + theirs.sum(axis=0), ours - theirs
    observed = abs(_total(metric, ours.sum(axis=0)) - _total(metric, theirs.sum(axis=0)))
    if not np.isfinite(observed):
        return float("nan")
    n, exact = len(ours), 2 ** min(len(ours), 60) <= rounds
    count = every = 0
    for keep in _all_ways(n) if exact else _some_ways(n, rounds, seed):
        first = theirs.sum(axis=0) + keep @ apart  # (ways, sums)
        found = np.abs(_totals(metric, first) - _totals(metric, both - first))
        count += int((found >= observed - _TIE * max(1.0, observed)).sum())
        every += len(found)
    # The observed way is one of all ways; of some, it is counted beside them (Davison & Hinkley 1997).
    return count / every if exact else (count + 1) / (every + 1)


def _all_ways(n: int) -> Iterator[np.ndarray]:
    yield (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(float)


def _some_ways(n: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    for start, count in _portions(n, rounds):
        yield _swaps(n, count, seed, start)


@functools.lru_cache(maxsize=4)  # many metrics and contenders in turn want the same; 128 MB at most
def _swaps(n: int, count: int, seed: int, start: int) -> np.ndarray:
    return np.random.default_rng((seed, start, 1)).integers(0, 2, (count, n)).astype(float)


@functools.lru_cache(maxsize=4)
def _weights(n: int, count: int, seed: int, start: int) -> np.ndarray:
    """How often each example is drawn in each of some resamples, (count, n)."""
    drawn = np.random.default_rng((seed, start, 0)).integers(0, n, (count, n)) + n * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(float)


def _resampled(metric: Metric, sums: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """The score of each resample, (rounds,); the same seed draws the same examples."""
    if len(sums) == 0:
        return np.full(rounds, np.nan)
    portions = _portions(len(sums), rounds)
    return np.concatenate([_totals(metric, _weights(len(sums), n, seed, start) @ sums) for start, n in portions])


def _portions(n: int, rounds: int) -> Iterator[tuple[int, int]]:
    """First round and number of rounds of each portion, so that memory is bounded."""
    step = max(1, _AT_ONCE // max(1, n))
    for start in range(0, rounds, step):
        yield start, min(step, rounds - start)


def _interval(found: np.ndarray, level: float, n: int) -> tuple[float, float]:
    known = found[np.isfinite(found)]
    if n < 2 or not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _totals(metric: Metric, sums: np.ndarray) -> np.ndarray:
    """Scores of some lines of sums, float64 (lines,)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # of metrics of the user; what is not finite is left out
        found = np.asarray(metric.total(sums), float)
    if found.shape != sums.shape[:-1]:
        raise UserError(
            f"total gives {found.shape} for sums of {sums.shape}",
            where=f"metric {metric.name}",
            mend="total gives one score for each line of sums: (…, sums) → (…).",
        )
    return found


def _total(metric: Metric, sums: np.ndarray) -> float:
    return float(_totals(metric, sums[None])[0])
