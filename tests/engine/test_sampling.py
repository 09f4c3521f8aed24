"""Every rule of sampling by hand; a draw depends on the row, the seed and the number of the token, on nothing else."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bimo import SamplingParams, UserError
from bimo.engine.answers import logprob_of
from bimo.engine.kernels import layout, load_kernels
from bimo.engine.kernels.library import instruction_sets
from bimo.engine.sampling import Rules, distribution, draw, next_token, penalize_repetition, seed_of, uniform

LOGITS = np.array([2.0, 1.0, 0.0, -1.0], dtype=np.float32)


def softmax(logits: Any) -> Any:
    return torch.tensor(logits).double().softmax(-1).numpy()


def shares(logits: Any = LOGITS, **params: Any) -> Any:
    ids, found = distribution(logits, SamplingParams(**params))
    weights = np.zeros_like(logits)
    weights[slice(None) if ids is None else ids] = found
    return weights / weights.sum()


def scores(tokens: list[int], n_prompt: int, ends: frozenset[int] = frozenset(), **params: Any) -> list[float]:
    return Rules(SamplingParams(**params), ends=ends).scores(LOGITS, tokens, n_prompt).tolist()


def chosen(logits: Any = LOGITS, tokens: tuple[int, ...] = (0,), n_prompt: int = 1, **params: Any) -> int:
    return next_token(logits, tokens, n_prompt, Rules(SamplingParams(**params)))


def test_top_k_keeps_the_k_likeliest() -> None:
    assert (shares(top_k=2) > 0).tolist() == [True, True, False, False]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    p = softmax(LOGITS)
    kept = shares(temperature=1, top_p=float(p[0]) + 0.01)
    assert (kept > 0).tolist() == [True, True, False, False], "the first alone does not reach p"
    assert kept[:2].tolist() == pytest.approx((p[:2] / p[:2].sum()).tolist()), "renormalised"


@given(st.lists(st.floats(-6, 6, width=16), min_size=1, max_size=50), st.floats(0.01, 1), st.integers(0, 60))
def test_top_k_and_top_p_keep_what_the_obvious_rule_keeps(logits: list[float], top_p: float, top_k: int) -> None:
    row = np.array(logits, dtype=np.float32)
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    least = row[order[min(top_k or len(row), len(row)) - 1]]
    weights = np.where(row >= least, np.exp(row - row.max()), 0).astype(np.float64)  # ties of the k-th stay
    before, kept = 0.0, set()
    for i in order:
        if weights[i] and before < top_p * weights.sum() - 1e-6:
            kept.add(i)
        before += weights[i]
    found = {*np.flatnonzero(shares(row, temperature=1, top_p=top_p, top_k=top_k)).tolist()}
    assert kept <= found, "no likely token is lost"
    assert len(found - kept) <= 1, "at most the one at the edge is more"


def test_min_p_drops_what_is_unlikely_beside_the_best() -> None:
    assert (shares(temperature=1, min_p=0.2) > 0).tolist() == [True, True, False, False], "exp(-1) is above 0.2"


def test_tiny_temperature_is_greedy_and_finite() -> None:
    assert chosen(temperature=1e-30) == 0, "no overflow, the likeliest token"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_choose_no_token(wrong: float, temperature: float) -> None:
    with pytest.raises(UserError, match="NaN or infinite"):
        chosen(np.array([0.0, wrong, 1.0], dtype=np.float32), temperature=temperature)


def test_repetition_penalty_by_hand() -> None:
    row = np.array([2.0, -2.0, 1.0], dtype=np.float32)
    penalize_repetition(row, np.array([0, 1, 1]), 2.0)
    assert row.tolist() == [1.0, -4.0, 1.0], "positive logits are divided, negative multiplied, once"


def test_repetition_counts_the_prompt_the_other_penalties_the_answer() -> None:
    text, n_prompt = [0, 1, 1, 1, 3], 2
    assert scores(text, n_prompt, repetition_penalty=2.0) == [1.0, 0.5, 0.0, -2.0]
    assert scores(text, n_prompt, presence_penalty=0.5) == [2.0, 0.5, 0.0, -1.5], "once"
    assert scores(text, n_prompt, frequency_penalty=0.5) == [2.0, 0.0, 0.0, -1.5], "twice for two"


def test_bias_moves_logits_and_ids_may_come_as_text() -> None:
    assert scores([0], 1, logit_bias={"2": 5, 0: -100}) == [-98.0, 1.0, 5.0, -1.0]
    assert chosen(temperature=0, logit_bias={2: 5}) == 2


def test_no_end_before_min_tokens() -> None:
    lowest = float("-inf")
    assert scores([9, 1], 1, frozenset({0}), min_tokens=2, stop_ids=(3,)) == [lowest, 1.0, 0.0, lowest]
    assert scores([9, 1, 1], 1, frozenset({0}), min_tokens=2) == LOGITS.tolist(), "then it may end"


def test_rules_act_in_the_documented_order() -> None:
    params = SamplingParams(logit_bias={1: 2.0}, repetition_penalty=2.0, frequency_penalty=1.0, temperature=0)
    rules = Rules(params, forbidden=np.array([0]))
    assert rules.scores(LOGITS, [1], 0).tolist() == [float("-inf"), 0.5, 0.0, -1.0], "(1 + 2) / 2 - 1"


def test_what_is_forbidden_stays_so_at_any_bias() -> None:
    rules = Rules(SamplingParams(temperature=0, logit_bias={0: 1e6}), forbidden=np.array([0]))
    assert next_token(LOGITS, [1], 1, rules) == 1
    plain = Rules(SamplingParams(temperature=0), forbidden=np.array([0]))
    assert next_token(LOGITS, [1], 1, plain) == 1, "on the fast path too"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rules_that_leave_no_token_say_so(temperature: float) -> None:
    rules = Rules(SamplingParams(temperature=temperature), forbidden=np.arange(4))
    with pytest.raises(UserError, match="leave no token"):
        next_token(LOGITS, [1], 1, rules)


class OnlyOdd:
    """A constraint: odd tokens, and none twice."""

    def __init__(self) -> None:
        self.left = np.array([False, True, False, True])

    def allowed(self) -> Any:
        return self.left

    def accept(self, token: int) -> None:
        self.left[token] = False


def test_a_constraint_is_asked_and_told() -> None:
    rules = Rules(SamplingParams(temperature=0), constraint=OnlyOdd())
    assert [next_token(LOGITS, [0], 1, rules) for _ in range(2)] == [1, 3]


def test_draws_follow_the_distribution() -> None:
    params = SamplingParams(temperature=1.0)
    drawn = [next_token(LOGITS, [0] * (i + 1), 1, Rules(params, seed=5)) for i in range(2000)]
    drawn += [next_token(LOGITS, [0], 1, Rules(params, seed=seed)) for seed in range(2000)]
    share = np.bincount(drawn, minlength=4) / 4000
    assert np.allclose(share, softmax(LOGITS), atol=0.03), "within three standard deviations, over places and seeds"


def test_the_draw_is_the_inverse_of_the_cumulated_weights() -> None:
    weights = np.array([0.0, 1.0, 0.0, 2.0, 1.0, 0.0])
    assert [draw(weights, u) for u in (0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-48)] == [1, 1, 3, 3, 4, 4]


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**20))
def test_random_numbers_lie_in_0_to_1_and_never_reach_it(seed: int, index: int) -> None:
    assert 0 <= uniform(seed, index) <= 1 - 2**-48
    assert uniform(seed, index) == uniform(seed, index), "a function of its arguments"


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0**-20]), min_size=1, max_size=900), st.floats(0, 1 - 2**-48))
def test_the_draw_in_pieces_is_the_draw_over_all(weights: list[float], u: float) -> None:
    row = np.array(weights, dtype=np.float32)
    if row.any():
        cumulated = np.cumsum(row, dtype=np.float64)  # exact, with these weights
        assert draw(row, u) == np.searchsorted(cumulated, u * cumulated[-1], side="right")


@pytest.mark.parametrize("n", [1, 64, 65, 256, 257, 5000])
@pytest.mark.parametrize("top_k", [1, 3, 50, 300])
def test_top_k_of_many_is_that_of_a_full_sort(n: int, top_k: int) -> None:
    row = np.random.default_rng(n).integers(-40, 40, n).astype(np.float32) / 4
    least = np.sort(row)[::-1][min(top_k, n) - 1]
    assert ((shares(row, top_k=top_k, temperature=1.0) > 0) == (row >= least)).all(), "ties of the k-th stay"


def test_random_numbers_are_spread_evenly_over_places_and_near_seeds() -> None:
    for numbers in ([uniform(1, i) for i in range(4000)], [uniform(i, 0) for i in range(4000)]):
        assert np.histogram(numbers, 10, (0, 1))[0].tolist() == pytest.approx([400] * 10, rel=0.2)
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.06, "neighbours have nothing in common"


def test_splitmix_is_the_published_one() -> None:
    mixed = seed_of(0, 1) ^ 0  # mix(mix(1)), two steps of its finaliser
    assert mixed == seed_of(0, 1) != seed_of(0, 2), "answers have seeds of their own"
    assert seed_of(7, 0) == 7, "and the first the request's"


def test_logprobs_are_the_models_own() -> None:
    found = logprob_of(1, LOGITS, 2)
    log_p = np.log(softmax(LOGITS))
    assert found.logprob == pytest.approx(log_p[1])
    assert [token for token, _ in found.top] == [0, 1], "likeliest first"
    assert [value for _, value in found.top] == pytest.approx(log_p[:2].tolist())
    assert logprob_of(3, LOGITS, 100).top[-1][0] == 3, "no more than there are"


def test_a_row_is_left_as_it_was() -> None:
    before = LOGITS.copy()
    chosen(temperature=1.0, top_k=2, top_p=0.5, logit_bias={0: 1}, repetition_penalty=2.0)
    assert (before == LOGITS).all(), "logprobs are read from it afterwards"


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"min_tokens": 200}, "min_tokens"),
        ({"n": 0}, "n must"),
        ({"beams": 0}, "beams must"),
        ({"beams": 2, "n": 3}, "at most beams"),
        ({"beams": 2, "stop": ("a",)}, "beams go without stop"),
        ({"beams": 2, "logprobs": 1}, "without logprobs"),
        ({"regex": "a", "choices": ("a",)}, "exclude each other"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias"),
        ({"logprobs": 101}, "logprobs"),
        ({"presence_penalty": float("inf")}, "presence_penalty"),
        ({"stop_ids": (-1,)}, "stop_ids"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SamplingParams(**params)


@pytest.mark.skipif(not instruction_sets(), reason="the kernels were not compiled")
@pytest.mark.parametrize("name", instruction_sets())
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([1e-30, 0.1, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 7, 500]),
    top_p=st.sampled_from([1.0, 0.9, 0.3, 1e-6]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    u=st.floats(0, 1 - 2**-48),
)
def test_native_draw_is_that_of_the_reference(
    name: str, seed: int, temperature: float, top_k: int, top_p: float, min_p: float, u: float
) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.standard_normal(int(rng.integers(1, 500))) * 3).astype(np.float32)
    scores[rng.random(len(scores)) < 0.2] = -np.inf
    scores[rng.integers(len(scores))] = 1.0
    params = SamplingParams(temperature=max(temperature, 1e-30), top_k=top_k, top_p=top_p, min_p=min_p)
    ids, weights = distribution(scores.copy(), params)
    place = draw(weights, u)
    expected = place if ids is None else int(ids[place])
    kernels = load_kernels(0, name)
    rules = layout.Draw(top_p, u, params.temperature, min_p, top_k)
    found = kernels.call.bimo_draw(kernels.table, ctypes.byref(rules), scores.ctypes.data, len(scores))
    if found != expected:  # u lies where two tokens meet, to the last bits of float32
        cumulated = np.cumsum(weights, dtype=np.float64) / weights.sum(dtype=np.float64)
        assert np.abs(cumulated - u).min() < 1e-6, "only there"
