"""From logits to the next token: each rule removes or reweights candidates, then one is drawn.

A draw depends on nothing but the logits of its own row, the seed, and the number of the new token: the random number
is `uniform(seed, index)`, a hash and no stream, and the token is where the cumulated probabilities, in the order of the
ids, pass it. So a text does not depend on what else is in the batch, on preemption or on guesses; and a guess is right
exactly when it is the token that is drawn.

The order of the rules is that of `SamplingParams`. Rows are NumPy arrays: at one row a time a NumPy call costs a third
of a torch call, and its sums do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bimo.core.errors import UserError
from bimo.engine.request import SamplingParams

Floats = NDArray[np.floating]
Ids = NDArray[np.int64]
_64_BITS = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_NO_IDS = np.empty(0, dtype=np.int64)


class Constraint(Protocol):
    """The form of an answer: which tokens may come next."""

    def allowed(self) -> NDArray[np.bool_]:
        """Which ids may be chosen now, (V,)."""
        ...

    def accept(self, token: int) -> None:
        """The token was chosen."""
        ...


@dataclass(frozen=True)
class Rules:
    """The rules of one text: its parameters, and what model and tokenizer add.

    Attributes:
        params: As the caller gave them.
        seed: Of its draws.
        ends: Ids after which nothing follows.
        forbidden: Ids that are never chosen.
        constraint: The form of the answer.
        plain: Nothing changes which token is the likeliest, apart from `forbidden`, and the likeliest is chosen.
    """

    params: SamplingParams
    seed: int = 0
    ends: frozenset[int] = frozenset()
    forbidden: Ids = field(default_factory=lambda: _NO_IDS)
    constraint: Constraint | None = None
    plain: bool = field(init=False)
    _forbidden: frozenset[int] = field(init=False)
    _bias: tuple[Ids, Floats] = field(init=False)

    def __post_init__(self) -> None:
        params, set_field = self.params, object.__setattr__
        changed = params.logit_bias or params.min_tokens or self.constraint is not None
        penalties = (params.repetition_penalty != 1, params.presence_penalty != 0, params.frequency_penalty != 0)
        set_field(self, "plain", params.temperature == 0 and not changed and not any(penalties))
        set_field(self, "_forbidden", frozenset(self.forbidden.tolist()))
        ids = np.array([int(i) for i in params.logit_bias], dtype=np.int64)
        set_field(self, "_bias", (ids, np.array(list(params.logit_bias.values()), dtype=np.float32)))

    def choose(self, logits: Floats, tokens: Sequence[int], n_prompt: int) -> int:
        """The next token.

        Args:
            logits: The model's, (V,); unchanged afterwards.
            tokens: The text so far.
            n_prompt: How many of them are the prompt.

        Raises:
            UserError: The logits are NaN or infinite: of damaged weights, any token would look as good as another. Or
                the rules leave no token.
        """
        best = int(logits.argmax())  # the first NaN, if there is one
        check_finite(float(logits[best]))
        if self.plain and best not in self._forbidden:
            return best
        scores = self.scores(logits, tokens, n_prompt)
        if self.params.temperature == 0:
            best = int(scores.argmax())
            _check_left(float(scores[best]))
            return best
        return draw(distribution(scores, self.params), uniform(self.seed, len(tokens) - n_prompt))

    def scores(self, logits: Floats, tokens: Sequence[int], n_prompt: int) -> Floats:
        """The logits after bias, what is forbidden, constraint, penalties and min_tokens; a new array."""
        params = self.params
        scores = logits.copy()
        ids, bias = self._bias
        scores[ids] += bias
        scores[self.forbidden] = -np.inf
        if self.constraint is not None:
            scores[~self.constraint.allowed()] = -np.inf
        if params.repetition_penalty != 1:
            penalize_repetition(scores, np.asarray(tokens, dtype=np.int64), params.repetition_penalty)
        if params.presence_penalty or params.frequency_penalty:
            new, counts = np.unique(np.asarray(tokens[n_prompt:], dtype=np.int64), return_counts=True)
            scores[new] -= (params.presence_penalty + counts * params.frequency_penalty).astype(scores.dtype)
        if len(tokens) - n_prompt < params.min_tokens:
            scores[np.array([*self.ends, *params.stop_ids], dtype=np.int64)] = -np.inf
        return scores


def next_token(logits: Floats, tokens: Sequence[int], n_prompt: int, rules: Rules) -> int:
    """`rules.choose`, and its constraint is told."""
    token = rules.choose(logits, tokens, n_prompt)
    if rules.constraint is not None:
        rules.constraint.accept(token)
    return token


def distribution(scores: Floats, params: SamplingParams) -> Floats:
    """Weights that a token is drawn by, (V,), in proportion: temperature, then top-k, top-p and min-p on what is left.

    Raises:
        UserError: No token has a finite score.
    """
    largest = float(scores.max())
    _check_left(largest)
    # Subtracting the largest first keeps a tiny temperature from overflowing; below that, 0 / 0 would come.
    with np.errstate(over="ignore"):
        scores = (scores - largest) / max(params.temperature, 1e-30)
    if 0 < params.top_k < len(scores):
        scores[scores < np.partition(scores, -params.top_k)[-params.top_k]] = -np.inf
    weights = np.exp(scores)
    if params.top_p < 1:
        _keep_nucleus(weights, params.top_p)
    if params.min_p > 0:
        weights[weights < params.min_p] = 0  # the largest weight is 1
    return weights


def _keep_nucleus(weights: Floats, top_p: float) -> None:
    """Set to 0 what lies outside the smallest set of tokens that has the share top_p."""
    share = top_p * float(weights.sum(dtype=np.float64))
    # All tokens below this weight together have less than 1 - top_p: only the others need to be sorted.
    least = (1 - top_p) * share / top_p / len(weights)
    ids = np.flatnonzero(weights >= least)
    ordered = ids[np.argsort(-weights[ids], kind="stable")]
    likelier = np.cumsum(weights[ordered], dtype=np.float64) - weights[ordered]  # weight of all likelier tokens
    kept = ordered[likelier < share]
    inside = weights[kept]
    weights[:] = 0
    weights[kept] = inside


def draw(weights: Floats, u: float) -> int:
    """The id at which the cumulated weights pass the share u of their sum; never one of weight 0."""
    cumulated = np.cumsum(weights, dtype=np.float64)
    return int(np.searchsorted(cumulated, u * cumulated[-1], side="right"))


def uniform(seed: int, index: int) -> float:
    """A number in 0 … 1 for the new token number `index`: SplitMix64 (Steele et al. 2014), entered at any place.

    The seed is mixed first, so that near seeds have nothing to do with each other. 48 bits: u * sum never rounds up to
    the sum.
    """
    state = _mix(seed & _64_BITS) + (index + 1) * _GOLDEN
    return (_mix(state & _64_BITS) >> 16) / 2**48


def seed_of(seed: int, choice: int) -> int:
    """The seed of an answer among several to one request; the first has the request's own."""
    return seed if choice == 0 else _mix((seed & _64_BITS) ^ _mix(choice))


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return x ^ (x >> 31)


def penalize_repetition(scores: Floats, seen: Ids, penalty: float) -> None:
    """Divide positive and multiply negative scores of the ids in `seen` by the penalty, once (CTRL, equation 2)."""
    found = scores[seen]
    scores[seen] = np.where(found > 0, found / penalty, found * penalty)


def log_total(logits: Floats) -> float:
    """Logarithm of the sum of exponentials, (V,): a logit less this is the log-probability by the model alone."""
    largest = float(logits.max())
    return largest + math.log(float(np.exp(logits - largest).sum(dtype=np.float64)))


def check_finite(largest: float) -> None:
    """Raise a UserError unless the largest logit of a row is a number."""
    if not math.isfinite(largest):
        raise UserError(
            "the model's logits are NaN or infinite", mend="Its weights are damaged: `bimo verify` says where."
        )


def _check_left(largest: float) -> None:
    if largest == -math.inf:
        raise UserError("the rules leave no token to choose", mend="Loosen logit_bias, the constraint or min_tokens.")
