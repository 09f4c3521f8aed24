"""The best model for a time: which shape, how many tokens, which batch and rate.

For each shape of a ladder it is known how fast this machine trains it (measured on three, between them interpolated),
so how many tokens it would read; a scaling law says which of them ends with the lowest loss. Policy without tensors.

- Loss of N weights after D tokens: E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, in the fit of Besiroglu et al.
  2024, but for A: small models after short runs are better larger than that). Only where the minimum lies matters.
- Text that is read again counts less each time: D = U + U R (1 - exp(-repeats / R)) (Muennighoff et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bimo.core.config import RunSettings
from bimo.core.errors import UserError
from bimo.core.spec import ModelSpec

_LONG_S = 900.0  # a shorter run is not worth a checkpoint on its way


@dataclass(frozen=True, slots=True)
class Rule:
    """Constants of the choice.

    Attributes:
        floor: E, nats per token.
        weights: A.
        alpha: How fast more weights help.
        tokens: B.
        beta: How fast more tokens help.
        repeats: R, how often text can be read again before that stops to help.
        batch_tokens: Tokens per update of a run of a million tokens.
        batch_growth: The batch grows with the tokens to this power.
        least_steps: Updates below which a batch is made smaller.
    """

    floor: float = 1.82
    weights: float = 1557.0
    alpha: float = 0.348
    tokens: float = 2085.0
    beta: float = 0.366
    repeats: float = 15.4
    batch_tokens: float = 1024.0
    batch_growth: float = 0.5
    least_steps: int = 200


RULE = Rule()

LADDER = (  # layers, width: some 1.5 times the work from each to the next
    (2, 64), (2, 96), (3, 96), (3, 128), (4, 128), (4, 160), (4, 192), (5, 224), (5, 256), (6, 288), (6, 320), (6, 384),
    (8, 384), (8, 448), (8, 512), (10, 576), (10, 640), (12, 768), (14, 896), (16, 1024), (18, 1152), (20, 1280),
    (20, 1536), (24, 1792), (24, 2048),
)  # fmt: skip

VOCABULARIES = ((0.5e6, 512), (2e6, 1024), (40e6, 2048), (400e6, 4096), (math.inf, 8192))  # bytes of text up to, ids


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a shape is trained.

    Attributes:
        token_s: Forward and backward pass, per token.
        update_s: What an update takes besides.
    """

    token_s: float
    update_s: float

    def tokens_in(self, seconds: float, rule: Rule = RULE) -> float:
        """Tokens that are read in a time, with the batch that goes with so many."""
        tokens = seconds / self.token_s
        for _ in range(8):  # the batch depends on the tokens, and they on the batch
            tokens = seconds / (self.token_s + self.update_s / batch_tokens(tokens, rule))
        return tokens


@dataclass(frozen=True, slots=True)
class Candidate:
    """A shape, and what is expected of it.

    Attributes:
        spec: The shape.
        parameters: Weights.
        pace: Its speed.
        tokens: That it reads in the time.
        loss: By the rule, in nats per token.
        cost: An average update of the run against one at that speed; less than 1 where the depth grows.
    """

    spec: ModelSpec
    parameters: int
    pace: Pace
    tokens: float
    loss: float
    cost: float = 1.0


def shaped(spec: ModelSpec, n_layers: int, width: int) -> ModelSpec:
    """The same kind of model in another size; sizes that follow from the width follow again."""
    head = 64 if width % 64 == 0 and width >= 256 else 32
    return replace(
        spec, n_layers=n_layers, d_model=width, n_heads=width // head, n_kv_heads=0, head_dim=0, rotary_dim=0, d_ff=0,
        d_expert=0, full_layers=(), unrotated_layers=(), dense_layers=(),
    )  # fmt: skip


def vocabulary(text_bytes: float) -> int:
    """How many ids a text can teach a small model to use."""
    return next(ids for limit, ids in VOCABULARIES if text_bytes <= limit)


def batch_tokens(tokens: float, rule: Rule = RULE) -> float:
    """Tokens per update of a run of so many tokens: the noise of the gradient matters more towards the end of long runs
    (McCandlish et al. 2018)."""
    wanted = rule.batch_tokens * (max(tokens, 1.0) / 1e6) ** rule.batch_growth
    return max(1.0, min(wanted, tokens / rule.least_steps))


def effective_tokens(tokens: float, unique: float, rule: Rule = RULE) -> float:
    """What so many tokens are worth when the text has only `unique` of them."""
    if tokens <= unique or unique <= 0:
        return tokens
    repeats = tokens / unique - 1
    return unique + unique * rule.repeats * (1 - math.exp(-repeats / rule.repeats))


def expected_loss(parameters: float, tokens: float, unique: float, rule: Rule = RULE) -> float:
    """Nats per token after a run."""
    worth = max(effective_tokens(tokens, unique, rule), 1.0)
    return rule.floor + rule.weights / parameters**rule.alpha + rule.tokens / worth**rule.beta


def interpolated(work: float, measured: Sequence[tuple[float, Pace]]) -> Pace:
    """The pace at some FLOPs per token, from measured ones: on a line between logarithms.

    Beyond what was measured the last slope goes on, but a larger model is never taken to be quicker than the largest.
    """
    points = sorted(measured, key=lambda point: point[0])
    if len(points) == 1:
        only_work, only = points[0]
        return Pace(only.token_s * work / only_work, only.update_s * work / only_work)
    index = next((i for i, (at, _) in enumerate(points[1:-1], 1) if work <= at), len(points) - 1)
    (low, slow), (high, fast) = points[index - 1], points[index]
    share = math.log(work / low) / math.log(high / low)

    def between(first: float, second: float) -> float:
        slope = max(0.0, math.log(max(second, 1e-9) / max(first, 1e-9)))
        return max(first, 1e-9) * math.exp(share * slope)

    return Pace(between(slow.token_s, fast.token_s), between(slow.update_s, fast.update_s))


def rank(
    shapes: Sequence[tuple[ModelSpec, int, float]],
    measured: Sequence[tuple[float, Pace]],
    seconds: float,
    unique: float,
    rule: Rule = RULE,
    cost: Callable[[ModelSpec], float] = lambda _: 1.0,
) -> list[Candidate]:
    """All shapes, the best first.

    Args:
        shapes: Each with its weights and its FLOPs per token.
        measured: FLOPs per token and the pace there, at least one.
        seconds: Time for updates.
        unique: Tokens of the text.
        rule: Constants.
        cost: Of a shape: an average update against the measured ones, less where the depth grows.
    """
    if not shapes:
        raise UserError("no model fits into memory", mend="Close programs, or lower model.context_length.")
    found = []
    for spec, parameters, work in shapes:
        pace, average = interpolated(work, measured), cost(spec)
        tokens = pace.tokens_in(seconds / average, rule)
        loss = expected_loss(parameters, tokens, unique, rule)
        found.append(Candidate(spec, parameters, pace, tokens, loss, average))
    return sorted(found, key=lambda candidate: candidate.loss)


def fitted(settings: RunSettings, chosen: Candidate, rule: Rule = RULE) -> RunSettings:
    """The settings of a run with the chosen shape: batch, steps, rate, and how often it looks at itself."""
    training, length = settings.training, chosen.spec.context_length
    rows = max(1, round(batch_tokens(chosen.tokens, rule) / length))
    steps = max(10, round(chosen.tokens / (rows * length)))
    often = max(1, steps // 6)
    fitted_training = replace(
        training,
        batch_size=rows,
        steps=steps,
        warmup_steps=min(training.warmup_steps, steps // 4),
        evaluate_every=often,
        evaluate_rows=max(1, min(training.evaluate_rows, 8192 // length)),
        checkpoint_every=0 if steps * rows * length * chosen.pace.token_s < _LONG_S else often,
        sample_every=0,
        log_every=max(1, min(training.log_every, steps // 50)),
    )
    if training.optimizer == "adamw":  # its rate falls with the width (Yang et al. 2022), Muon's does not
        rate = min(3e-3, 1e-3 * 384 / chosen.spec.d_model)
        low = min(training.min_learning_rate, 0.1 * rate)
        fitted_training = replace(fitted_training, learning_rate=rate, min_learning_rate=low)
    return replace(settings, model=chosen.spec, training=fitted_training)
