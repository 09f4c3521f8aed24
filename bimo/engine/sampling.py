"""From logits to the next token: each rule removes or reweights candidates, then one is drawn.

A draw depends on nothing but the logits of its own row, the seed, and the number of the new token: the random number
is `uniform(seed, index)`, a hash and no stream, and the token is where the cumulated probabilities, in the order of the
ids, pass it. So a text does not depend on what else is in the batch, on preemption or on guesses; and a guess is right
exactly when it is the token that is drawn.

The order of the rules is that of `SamplingParams`. Rows are NumPy arrays: at one row a time a NumPy call costs a third
of a torch call, and its sums do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bimo.core.errors import UserError
from bimo.engine.kernels import Kernels, NoKernelsError, layout, load_kernels
from bimo.engine.request import EngineError, SamplingParams

if TYPE_CHECKING:
    from bimo.engine.constraints import Constraint

Floats = NDArray[np.floating]
Ids = NDArray[np.int64]
_64_BITS = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_NO_IDS = np.empty(0, dtype=np.int64)
DAMAGED = "Its weights are damaged: `bimo verify` says where."
_PIECE = 256  # weights that are summed at once


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
        return drawn(scores, self.params, uniform(self.seed, len(tokens) - n_prompt))

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


def drawn(scores: Floats, params: SamplingParams, u: float) -> int:
    """The token that u draws: by the native kernels where they are, else `draw` from `distribution`, the reference.

    Raises:
        UserError: No token has a finite score.
    """
    kernels = _kernels()
    if kernels is None or scores.dtype != np.float32:
        ids, weights = distribution(scores, params)
        place = draw(weights, u)
        return place if ids is None else int(ids[place])
    scores = np.ascontiguousarray(scores)
    top_k = min(params.top_k, len(scores))  # a number of 32 bits there
    rules = layout.Draw(params.top_p, u, _divisor(params), params.min_p, top_k)
    token: int = kernels.call.bimo_draw(kernels.table, ctypes.byref(rules), scores.ctypes.data, len(scores))
    if token < 0:
        _check_left(float(scores.max()))
        raise MemoryError("no memory to draw a token")
    return token


@lru_cache(maxsize=1)
def _kernels() -> Kernels | None:
    try:
        return load_kernels()
    except NoKernelsError:
        return None


def next_token(logits: Floats, tokens: Sequence[int], n_prompt: int, rules: Rules) -> int:
    """`rules.choose`, and its constraint is told."""
    token = rules.choose(logits, tokens, n_prompt)
    if rules.constraint is not None:
        rules.constraint.accept(token)
    return token


def distribution(scores: Floats, params: SamplingParams) -> tuple[Ids | None, Floats]:
    """Weights that tokens are drawn by, in proportion: temperature, then top-k, top-p and min-p on what is left.

    Returns:
        Ids, ascending, and their weights; None in place of ids: all of them, in order.

    Raises:
        UserError: No token has a finite score.
    """
    ids = None
    if 0 < params.top_k < len(scores):
        ids = _largest(scores, params.top_k)
        scores = scores[ids]
    largest = float(scores.max())
    _check_left(largest)
    # Subtracting the largest first keeps a tiny temperature from overflowing; below that, 0 / 0 would come.
    with np.errstate(over="ignore"):
        weights = scores - np.float32(largest)
        weights /= np.float32(_divisor(params))
    np.exp(weights, out=weights)
    if params.top_p < 1:
        _keep_nucleus(weights, params.top_p)
    if params.min_p > 0:
        weights[weights < params.min_p] = 0  # the largest weight is 1
    return ids, weights


def _divisor(params: SamplingParams) -> float:
    """The temperature, as a float of 32 bits can hold it."""
    return min(max(params.temperature, 1e-30), 1e30)


def _largest(scores: Floats, k: int) -> Ids:
    """Ids of the k largest scores, ascending; those that equal the k-th are among them."""
    # The k-th largest of the maxima of pieces is not above the k-th of all: few have to be looked at. Three times as
    # fast as a partition of 50,000 scores.
    maxima = np.maximum.reduceat(scores, np.arange(0, len(scores), _PIECE // 4))
    few = len(maxima) <= k
    bound = -np.inf if few else np.partition(maxima, -k)[-k]
    ids = np.flatnonzero(scores >= bound)
    found = scores[ids]
    return ids[found >= np.partition(found, -k)[-k]]


def _keep_nucleus(weights: Floats, top_p: float) -> None:
    """Set to 0 what lies outside the smallest set of tokens that has the share top_p; of equals, lower ids stay."""
    total = float(_sums(weights).sum())
    # All tokens below this weight together have less than 1 - top_p: only the others need to be sorted.
    ordered = np.sort(weights[weights >= (1 - top_p) * total / len(weights)])[::-1]
    n_kept = int(np.searchsorted(np.cumsum(ordered, dtype=np.float64), top_p * total)) + 1
    edge = ordered[min(n_kept, len(ordered)) - 1]
    n_above = int(np.count_nonzero(weights > edge))
    equal = np.flatnonzero(weights == edge)
    weights[weights < edge] = 0
    weights[equal[n_kept - n_above :]] = 0


def draw(weights: Floats, u: float) -> int:
    """The place at which the cumulated weights pass the share u of their sum; never one of weight 0."""
    cumulated = np.cumsum(_sums(weights))
    target = u * float(cumulated[-1])
    piece = int(np.searchsorted(cumulated, target, side="right"))
    start = piece * _PIECE
    inside = np.cumsum(weights[start : start + _PIECE], dtype=np.float64)
    rest = target - (float(cumulated[piece - 1]) if piece else 0.0)
    place = int(np.searchsorted(inside, rest, side="right"))
    # The sums of a piece and within it are rounded differently: behind its last weight means its last weight.
    return start + min(place, int(np.searchsorted(inside, inside[-1])))


def _sums(weights: Floats) -> NDArray[np.float64]:
    """Sums of pieces: to cumulate all weights one by one would take five times as long."""
    return np.add.reduceat(weights, np.arange(0, len(weights), _PIECE)).astype(np.float64)


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
    """Raise an EngineError unless the largest logit of a row is a number."""
    if not math.isfinite(largest):
        raise EngineError("the model's logits are NaN or infinite", mend=DAMAGED)


def _check_left(largest: float) -> None:
    if largest == -math.inf:
        raise UserError("the rules leave no token to choose", mend="Loosen logit_bias, the constraint or min_tokens.")
