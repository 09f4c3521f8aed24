"""Parts of the house keep their contracts, and for each promise a part that breaks just this one is caught."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo import ModelSpec, Trainer, TrainingSettings, UserError, new
from bimo.core.batch import Batch
from bimo.core.registry import REGISTRIES
from bimo.model.attention import Attention
from bimo.model.backends import Attend, AttnContext, attend_math
from bimo.model.cache import KVCache
from bimo.model.feedforward import GELU
from bimo.model.layers import LayerNorm, RMSNorm, rotate
from bimo.model.positions import Learned, NoPositions, Rotary
from bimo.testing import ContractError, check_attention, check_feedforward, check_loss, check_norm, check_positions
from bimo.testing.losses import CONTRACT as LOSSES
from bimo.testing.modules import CONTRACTS
from bimo.testing.promises import Promise, check
from bimo.testing.subjects import SHAPES, SMALL, subjects
from bimo.training.losses import cross_entropy

CHECKS: dict[str, Callable[..., list[str]]] = {
    "attention": check_attention,
    "feedforward": check_feedforward,
    "norm": check_norm,
    "positions": check_positions,
    "loss": check_loss,
}
FIRST = {kind: next(iter(REGISTRIES[kind].ours)) for kind in CHECKS}
OURS = [(kind, name) for kind in CHECKS for name in REGISTRIES[kind].ours]
WINDOWED = replace(SMALL, window=5, full_layers=(1,))


def promises(kind: str) -> list[str]:
    """The names of the promises of a kind."""
    return [promise.name for promise in (LOSSES if kind == "loss" else CONTRACTS[kind])]


@pytest.mark.parametrize(("kind", "name"), FIRST.items())
def test_a_part_that_keeps_its_contract_is_told_all_its_promises(kind: str, name: str) -> None:
    assert CHECKS[kind](name, SMALL) == promises(kind)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), OURS)
def test_every_part_of_the_house_keeps_its_contract_at_every_shape(kind: str, name: str) -> None:
    assert CHECKS[kind](name), "the promises are returned"


def test_experts_keep_the_contract_of_a_feedforward_part() -> None:
    assert check_feedforward("swiglu", replace(SMALL, n_experts=4)), "also when tokens are shared out among experts"


class Changed(Attention):
    """Attention with a change to the numbers on their way; each control overrides one method."""

    def forward(self, x: Tensor, ctx: AttnContext) -> Tensor:
        return self.after(super().forward(self.before(x), self.context(ctx)))

    def before(self, x: Tensor) -> Tensor:
        return x

    def context(self, ctx: AttnContext) -> AttnContext:
        return ctx

    def after(self, y: Tensor) -> Tensor:
        return y


class FourArguments(Attention):
    def __init__(self, spec: ModelSpec, layer: int, attend: Attend, extra: int) -> None:
        super().__init__(spec, layer, attend)


class Flat(Changed):
    def after(self, y: Tensor) -> Tensor:
        return y.flatten(1)


class InPlace(Changed):
    def before(self, x: Tensor) -> Tensor:
        return x.mul_(0.5)


class Noisy(Changed):
    """Drops numbers in evaluation mode, too."""

    def after(self, y: Tensor) -> Tensor:
        return F.dropout(y, 0.1)


class Remembering(Changed):
    """Adds what it gave last time."""

    last: Tensor | None = None

    def after(self, y: Tensor) -> Tensor:
        kept, self.last = self.last, y.detach().mean()
        return y if kept is None else y + kept


class Mixing(Changed):
    """Looks at the other texts of the batch."""

    def after(self, y: Tensor) -> Tensor:
        return y + y.mean(dim=0, keepdim=True)


class Foreseeing(Changed):
    def context(self, ctx: AttnContext) -> AttnContext:
        return replace(ctx, causal=False)


class Maskless(Changed):
    def context(self, ctx: AttnContext) -> AttnContext:
        return replace(ctx, mask=None)


class WindowForgotten(Changed):
    """Obeys masks of documents and of caches, which differ between rows or begin later, but not a plain window."""

    def context(self, ctx: AttnContext) -> AttnContext:
        return replace(ctx, mask=None) if ctx.cache is None and ctx.mask is not None and len(ctx.mask) == 1 else ctx


class Capless(Changed):
    def context(self, ctx: AttnContext) -> AttnContext:
        return replace(ctx, softcap=0.0)


class Unscaled(Changed):
    def context(self, ctx: AttnContext) -> AttnContext:
        return replace(ctx, scale=None)


class Unturned(Changed):
    def context(self, ctx: AttnContext) -> AttnContext:
        return replace(ctx, cos=None, sin=None)


class Unused(Changed):
    def __init__(self, spec: ModelSpec, layer: int, attend: Attend) -> None:
        super().__init__(spec, layer, attend)
        self.extra = nn.Parameter(torch.ones(3))


class Detached(Changed):
    def _normalised(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        q, k = super()._normalised(q, k)
        return q.detach(), k


class InputDetached(Changed):
    def before(self, x: Tensor) -> Tensor:
        return x.detach()


class _WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * (1 - x.tanh())


class WrongBackward(Changed):
    def after(self, y: Tensor) -> Tensor:
        return _WrongBackward.apply(y)


class Cacheless(Changed):
    def context(self, ctx: AttnContext) -> AttnContext:
        return ctx if ctx.cache is None else replace(ctx, cache=None, mask=None)


class CachedBeforeTurning(Attention):
    """Keeps keys as they are before the rotation, and turns only the new ones."""

    def forward(self, x: Tensor, ctx: AttnContext) -> Tensor:
        q, k = self._normalised(self.q_proj(x), self.k_proj(x))
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        assert ctx.cos is not None, "this control is for rotary positions"
        assert ctx.sin is not None, "this control is for rotary positions"
        turned = rotate(k, ctx.cos, ctx.sin).transpose(1, 2)
        keys = turned
        if isinstance(ctx.cache, KVCache):
            keys, v = ctx.cache.append(self.layer, k.transpose(1, 2), v)
            keys = torch.cat((keys[:, :, : -turned.shape[2]], turned), dim=2)
        y = self.attend(rotate(q, ctx.cos, ctx.sin).transpose(1, 2), keys, v, ctx)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class OwnCache(Attention):
    """Keeps keys and values in itself: right for one text at a time."""

    keys: Tensor
    values: Tensor

    def __init__(self, spec: ModelSpec, layer: int, attend: Attend) -> None:
        super().__init__(spec, layer, self.kept)
        self.inner = attend

    def forward(self, x: Tensor, ctx: AttnContext) -> Tensor:
        self.cache = ctx.cache
        return super().forward(x, replace(ctx, cache=None))

    def kept(self, q: Tensor, k: Tensor, v: Tensor, ctx: AttnContext) -> Tensor:
        if isinstance(self.cache, KVCache):
            if self.cache.length:
                k, v = torch.cat((self.keys, k), dim=2), torch.cat((self.values, v), dim=2)
            self.keys, self.values = k, v
        return self.inner(q, k, v, ctx)


class Float32(Changed):
    def after(self, y: Tensor) -> Tensor:
        return y.float() if y.dtype == torch.bfloat16 else y


class MixedDtypes(Changed):
    """Multiplies by a tensor that stays in float32."""

    def before(self, x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else x @ torch.eye(x.shape[-1])


class Reading(Changed):
    """Reads a number out of a tensor while it is made."""

    def __init__(self, spec: ModelSpec, layer: int, attend: Attend) -> None:
        super().__init__(spec, layer, attend)
        self.size = float(torch.linspace(1, 2, 5).sum())


class Unsaved(Changed):
    """Holds random numbers that are no parameter."""

    def __init__(self, spec: ModelSpec, layer: int, attend: Attend) -> None:
        super().__init__(spec, layer, attend)
        self.register_buffer("features", torch.randn(spec.d_model))

    def after(self, y: Tensor) -> Tensor:
        return y * self.get_buffer("features")


class Homeless(Changed):
    """Holds numbers beside parameters and buffers, which have no values in a model that waits for its weights."""

    def __init__(self, spec: ModelSpec, layer: int, attend: Attend) -> None:
        super().__init__(spec, layer, attend)
        self.factor = torch.tensor(0.5)

    def after(self, y: Tensor) -> Tensor:
        return y * self.factor


class Captured(Changed):
    """Holds a submodule inside a function."""

    def __init__(self, spec: ModelSpec, layer: int, attend: Attend) -> None:
        super().__init__(spec, layer, attend)
        inner = self.o_proj
        self.project = lambda y: inner(y)

    def after(self, y: Tensor) -> Tensor:
        return y + self.project(y) if y.shape[-1] == self.o_proj.in_features else y


class SplitGELU(GELU):
    """Controls of feed-forward parts override what comes after the part."""

    def forward(self, x: Tensor) -> Tensor:
        return self.after(super().forward(x))

    def after(self, y: Tensor) -> Tensor:
        return y


class Neighbourly(SplitGELU):
    def after(self, y: Tensor) -> Tensor:
        return y + F.pad(y, (0, 0, 1, 0))[:, :-1]


class BatchMean(SplitGELU):
    def after(self, y: Tensor) -> Tensor:
        return y - y.mean(dim=0)


class ByLength(SplitGELU):
    def after(self, y: Tensor) -> Tensor:
        return y / y.shape[1]


class OnlySequences(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        _B, _T, _C = x.shape
        return super().forward(x)


class OverTime(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - 0.1 * x.mean(dim=tuple(range(1, x.dim() - 1)) if x.dim() > 2 else (), keepdim=True)


class NoEpsilon(nn.Module):
    def __init__(self, spec: ModelSpec, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(dim=-1, keepdim=True).sqrt() * self.weight


class InFloat32(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() if x.dtype == torch.bfloat16 else x)


class Overflowing(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x.exp().mean() * 0)


class NoMethods(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return x


class ByOrder(Learned):
    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return x + self.weight[: x.shape[1]]


class ShortTable(NoPositions):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.weight = nn.Parameter(torch.zeros(spec.context_length - 1, spec.d_model))

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        return x + self.weight[steps]


class TooManyPairs(NoPositions):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.pairs = spec.head_dim

    def rotation(self, steps: Tensor, *, windowed: bool) -> tuple[Tensor, Tensor] | None:
        angles = steps[..., None, None].float() * torch.ones(self.pairs)
        return angles.cos(), angles.sin()


class RotationByOrder(Rotary):
    def rotation(self, steps: Tensor, *, windowed: bool) -> tuple[Tensor, Tensor]:
        return super().rotation(torch.arange(steps.shape[1]).expand(steps.shape), windowed=windowed)


class RoughAngles(NoPositions):
    """Rotary positions whose frequencies become bf16 with the weights."""

    frequencies: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.register_buffer("frequencies", torch.tensor([1 / 3] * (spec.head_dim // 2)), persistent=False)

    def rotation(self, steps: Tensor, *, windowed: bool) -> tuple[Tensor, Tensor]:
        angles = steps[..., None, None] * self.frequencies
        return angles.cos(), angles.sin()


def per_token(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none") * weights.flatten()


def changing_weights(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return cross_entropy(logits, targets, weights.mul_(2))


def growing() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A loss with a counter outside of it."""
    calls = itertools.count(1)
    return lambda logits, targets, weights: cross_entropy(logits, targets, weights) * next(calls)


def with_padding(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def summed(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return per_token(logits, targets, weights).sum()


def mean_of_means(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    rows = per_token(logits, targets, weights).view_as(weights).sum(dim=1) / weights.sum(dim=1)
    return rows.mean()


def by_count(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Takes weights for yes or no."""
    return cross_entropy(logits, targets, (weights > 0).float())


def by_order(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Later rows count more."""
    return cross_entropy(logits, targets, weights * torch.arange(1, len(weights) + 1)[:, None])


def accuracy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return ((logits.argmax(dim=-1) == targets) * weights).sum() / weights.sum()


def focal(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Lin et al. 2017, with a factor that gets no gradient."""
    nats = F.cross_entropy(logits.flatten(0, 1).to(logits.dtype).double(), targets.flatten(), reduction="none")
    return ((1 - (-nats).exp()).detach() ** 2 * nats * weights.flatten()).sum() / weights.sum()


def log_of_softmax(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    shares = logits.float().softmax(dim=-1).gather(-1, targets[..., None])[..., 0]
    return -(shares.log() * weights).nan_to_num(nan=0, posinf=float("inf"), neginf=-float("inf")).sum() / weights.sum()


def strict_dtype(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    one_hot = F.one_hot(targets, logits.shape[-1]).to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    nats = -torch.einsum("btv,btv->bt", logits.log_softmax(dim=-1), one_hot)
    return (nats * weights).sum() / weights.sum()


BREAKERS: list[tuple[str, str, Any]] = [
    ("attention", "made", FourArguments),
    ("attention", "shapes", Flat),
    ("attention", "input", InPlace),
    ("attention", "determinism", Noisy),
    ("attention", "rows", Mixing),
    ("attention", "causality", Foreseeing),
    ("attention", "mask", Maskless),
    ("attention", "settings", Capless),
    ("attention", "gradients", Detached),
    ("attention", "slopes", WrongBackward),
    ("attention", "cache", Cacheless),
    ("attention", "two texts", OwnCache),
    ("attention", "bf16", MixedDtypes),
    ("attention", "empty", Reading),
    ("attention", "saved", Unsaved),
    ("attention", "copied", Captured),
    ("feedforward", "made", lambda: None),
    ("feedforward", "alone", Neighbourly),
    ("feedforward", "cache", ByLength),
    ("norm", "made", lambda width: LayerNorm(SMALL, width)),
    ("norm", "shapes", OnlySequences),
    ("norm", "alone", OverTime),
    ("norm", "extremes", NoEpsilon),
    ("positions", "made", NoMethods),
    ("positions", "shapes", ShortTable),
    ("positions", "shapes", TooManyPairs),
    ("positions", "places", RotationByOrder),
    ("positions", "angles", RoughAngles),
    ("loss", "number", per_token),
    ("loss", "inputs", changing_weights),
    ("loss", "determinism", growing()),
    ("loss", "weights", with_padding),
    ("loss", "mean", summed),
    ("loss", "mean", mean_of_means),
    ("loss", "mean", by_count),
    ("loss", "mean", by_order),
    ("loss", "gradients", accuracy),
    ("loss", "slopes", focal),
    ("loss", "far logits", log_of_softmax),
    ("loss", "bf16", strict_dtype),
]
MORE_BREAKERS: list[tuple[str, str, Any]] = [
    ("attention", "made", lambda spec, layer, attend: attend),
    ("attention", "determinism", Remembering),
    ("attention", "mask", WindowForgotten),
    ("attention", "settings", Unscaled),
    ("attention", "settings", Unturned),
    ("attention", "gradients", Unused),
    ("attention", "slopes", InputDetached),
    ("attention", "cache", CachedBeforeTurning),
    ("attention", "bf16", Float32),
    ("attention", "saved", Homeless),
    ("feedforward", "rows", BatchMean),
    ("norm", "extremes", Overflowing),
    ("norm", "bf16", InFloat32),
    ("positions", "places", ByOrder),
]


def broken(kind: str, part: Any, spec: ModelSpec | None, **options: Any) -> ContractError:
    with pytest.raises(ContractError) as caught:
        CHECKS[kind](part, spec, **options)
    return caught.value


@pytest.mark.parametrize(
    ("kind", "promise", "part"),
    [*BREAKERS, *(pytest.param(*row, marks=pytest.mark.slow) for row in MORE_BREAKERS)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_part_that_breaks_one_promise_is_caught_for_just_this_one(kind: str, promise: str, part: Any) -> None:
    assert list(broken(kind, part, WINDOWED).broken) == [promise]


@pytest.mark.parametrize("kind", CHECKS)
def test_every_promise_has_a_part_that_breaks_it(kind: str) -> None:
    tried = {promise for k, promise, *_ in BREAKERS if k in (kind, "attention" if kind in CONTRACTS else kind)}
    assert not set(promises(kind)) - tried, "promises without a control"


def test_the_error_says_what_is_wrong_where_and_how_to_mend_it() -> None:
    error = broken("attention", Foreseeing, SMALL)
    text = str(error)
    assert "Foreseeing breaks its contract" in text, text
    assert "causality: what comes out at place 0 changes when tokens from place 11 on do (with your" in text, text
    assert "Hand ctx on to attend" in text, text
    assert set(error.untried) == {"mask", "cache", "two texts"}, "what builds on it is not tried"
    assert "determinism" in error.kept, "and what holds is told"


def test_an_exception_is_told_with_the_line_of_the_author_and_kept_as_the_cause() -> None:
    error = broken("attention", Fragile, SMALL)
    line = Fragile.after.__code__.co_firstlineno + 1
    assert "shapes: ZeroDivisionError" in str(error), error
    assert f", test_testing.py line {line}" in str(error), error
    assert isinstance(error.__cause__, ZeroDivisionError), "the whole traceback is there for who wants it"


class Fragile(Changed):
    def after(self, y: Tensor) -> Tensor:
        return y * (1 // 0)


class EvenHeads(Attention):
    """Refuses what it cannot do."""

    def __init__(self, spec: ModelSpec, layer: int, attend: Attend) -> None:
        if spec.n_kv_heads % 2:
            raise UserError("it needs an even number of key heads")
        super().__init__(spec, layer, attend)


def test_a_shape_that_the_part_refuses_is_not_tried() -> None:
    with subjects("attention", EvenHeads) as found:
        assert SHAPES["attention"].keys() - found.keys() == {"3 query heads, 1 key head"}


def test_the_first_subject_that_a_promise_fails_on_is_named() -> None:
    odd: Promise[int] = Promise("even", lambda n: "it is odd" if n % 2 else "", "Add one.")
    with pytest.raises(ContractError, match=r"even: it is odd \(three\). Add one."):
        check("numbers", [odd], {"two": 2, "three": 3, "five": 5})
    assert check("numbers", [odd], {"two": 2}) == ["even"], "the control"


def test_a_part_that_refuses_every_shape_is_told_so() -> None:
    with pytest.raises(UserError, match="EvenHeads refuses every shape: it needs an even number"):
        check_attention(EvenHeads, replace(SMALL, n_kv_heads=1))


def test_a_context_that_is_too_short_to_check_is_told() -> None:
    with pytest.raises(UserError, match="context_length is 8"):
        check_norm("rmsnorm", replace(SMALL, context_length=8))
    assert check_positions("learned", replace(SMALL, context_length=16)), "the control"


def test_an_option_that_the_part_refuses_is_no_option_that_it_ignores() -> None:
    class Uncapped(Changed):
        def __init__(self, spec: ModelSpec, layer: int, attend: Attend) -> None:
            super().__init__(spec, layer, attend_math)
            if spec.attention_softcap:
                raise UserError("it has no cap")

        def context(self, ctx: AttnContext) -> AttnContext:
            return replace(ctx, softcap=0.0)

    assert "settings" in check_attention(Uncapped, SMALL), "it does not pretend"


def test_a_promise_can_be_skipped_and_a_wrong_name_is_told() -> None:
    assert "slopes" not in check_loss(focal, skip=["slopes"]), "a detached factor may be wanted"
    with pytest.raises(UserError, match=r"no promise 'slope' \(did you mean 'slopes'"):
        check_loss(focal, skip=["slope"])


def test_parts_are_checked_by_name_too_and_an_unknown_name_is_told() -> None:
    assert check_norm("layernorm", SMALL) == check_norm(LayerNorm, SMALL)
    with pytest.raises(UserError, match="did you mean 'layernorm'"):
        check_norm("layer_norm", SMALL)


@pytest.mark.parametrize("part", [Attention, Foreseeing])
def test_nothing_stays_in_the_registry(part: Any) -> None:
    before = REGISTRIES["attention"].names()
    with contextlib.suppress(ContractError):
        check_attention(part, SMALL)
    assert REGISTRIES["attention"].names() == before


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*SHAPES["attention"].values()], ids=[*SHAPES["attention"]])
def test_a_wrong_mask_is_found_at_every_shape(spec: ModelSpec) -> None:
    assert "mask" in broken("attention", Maskless, spec).broken, "no shape hides it"


def test_a_loss_is_never_asked_about_no_trained_tokens(tokenizer: Any) -> None:
    """Its mean would be 0 / 0: parts of a batch without trained tokens are left out by the loop."""
    asked = []

    def watched(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        asked.append(float(weights.sum()))
        return cross_entropy(logits, targets, weights)

    ids = torch.randint(SMALL.vocab_size, (3, 9), generator=torch.Generator().manual_seed(0))
    weights = torch.ones(3, 8)
    weights[1] = 0
    settings = TrainingSettings(micro_batch_size=1, warmup_steps=0, precision="fp32", device="cpu", threads=2)
    model = new(SMALL, tokenizer).model
    trainer = Trainer(model, settings, loss=watched)
    result = trainer.step(iter([Batch(ids[:, :-1], ids[:, 1:], weights)]))
    assert asked == [8.0, 8.0], "the second row is not asked about"
    assert result.loss > 0, "and the step is made"
