"""The contracts of attention, feed-forward parts, norms and positions: `check_attention(MyAttention)` and its siblings.

Each tries a part alone and inside small GPTs, at shapes that bring out what ordinary shapes hide. A part that cannot do
what a spec asks for refuses it with a `UserError` when it is made; it is not tried there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bimo.core.registry import REGISTRIES
from bimo.core.spec import ModelSpec
from bimo.model.backends import BACKENDS
from bimo.model.contracts import MakeAttention, MakeFeedForward, MakeNorm, MakePositions
from bimo.model.gpt import GPT
from bimo.testing.promises import Promise, check
from bimo.testing.subjects import Subject, name_of, refusal, subjects
from bimo.testing.wholes import DETERMINISM, MADE_AND_SHAPED, SOUND, WHOLES

_ROUNDING = 1e-5  # of the largest number, in float32; experts, for one, round by how many tokens they get
_ANGLE_TOLERANCE = 0.02  # of a cosine; a frequency that was rounded to bf16 is off by more within a few hundred tokens


def check_attention(
    part: str | MakeAttention, spec: ModelSpec | None = None, *, skip: Collection[str] = ()
) -> list[str]:
    """Whether an attention module keeps its contract.

    Args:
        part: Its class, or the name that it is registered by.
        spec: The only shape to try, better a small one; None: seven shapes of `bimo.testing.subjects`.
        skip: Names of promises that shall not be looked at, such as "slopes" for a gradient that is wrong on purpose.

    Returns:
        The names of the promises that it keeps.

    Raises:
        ContractError: It breaks some; each is told with how to mend it.
        UserError: It refuses every shape.
    """
    return _check("attention", part, spec, skip)


def check_feedforward(
    part: str | MakeFeedForward, spec: ModelSpec | None = None, *, skip: Collection[str] = ()
) -> list[str]:
    """Whether a feed-forward part keeps its contract; all as in `check_attention`."""
    return _check("feedforward", part, spec, skip)


def check_norm(part: str | MakeNorm, spec: ModelSpec | None = None, *, skip: Collection[str] = ()) -> list[str]:
    """Whether a normalisation keeps its contract; all as in `check_attention`."""
    return _check("norm", part, spec, skip)


def check_positions(
    part: str | MakePositions, spec: ModelSpec | None = None, *, skip: Collection[str] = ()
) -> list[str]:
    """Whether a position module keeps its contract; all as in `check_attention`."""
    return _check("positions", part, spec, skip)


def _check(kind: str, part: Any, spec: ModelSpec | None, skip: Collection[str]) -> list[str]:
    with subjects(kind, part, spec) as found:
        return check(name_of(part), CONTRACTS[kind], found, skip)


def made(subject: Subject) -> str:
    """'' when the part is made as the GPT makes it, and is a module."""
    spec = subject.spec
    arguments = {"attention": (spec, 0, BACKENDS["sdpa"]), "norm": (spec, spec.d_model)}.get(subject.kind, (spec,))
    module = REGISTRIES[subject.kind].get(getattr(spec, subject.kind))(*arguments)
    if not isinstance(module, nn.Module):
        return f"it makes a {type(module).__name__} and no torch.nn.Module"
    missing = [name for name in ("rotation", "stretch") if subject.kind == "positions" and not hasattr(module, name)]
    if missing:
        return f"it has no method {missing[0]}"
    GPT(spec)
    return ""


@torch.no_grad()
def shapes(subject: Subject) -> str:
    """'' when (B, T, C) in gives finite numbers of the same shape and dtype out, up to the end of the context."""
    model = subject.model()
    for rows, length in ((1, 1), (3, 7), (2, subject.spec.context_length)):
        x = subject.noise(rows, length)
        problem = _shape_problem(subject.apply(model, x.clone()), x)
        if problem:
            return problem
    return ""


@torch.no_grad()
def norm_shapes(subject: Subject) -> str:
    """'' when the same holds for a norm also of vectors in heads, (B, T, H, D), and in no sequence, (n, C)."""
    model = subject.model()
    for shape in ((3, subject.spec.d_model), (2, 5, 3, subject.spec.d_model)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        problem = _shape_problem(model.norm(x.clone()), x)
        if problem:
            return problem
    return shapes(subject)


@torch.no_grad()
def position_shapes(subject: Subject) -> str:
    """'' when the same holds, and all places of the context have cosines and sines that fit the heads, or none have."""
    spec, positions = subject.spec, subject.model().embed_positions
    for steps in (torch.arange(spec.context_length)[None], torch.tensor([[0, 1, 2], [7, 3, spec.context_length - 1]])):
        for windowed in (False, True):
            rotation = positions.rotation(steps, windowed=windowed)
            if rotation is None:
                continue
            cos, sin = (tuple(part.shape) for part in rotation)
            if cos[:-1] != (*steps.shape, 1) or cos != sin or 2 * cos[-1] > spec.head_dim:
                return f"places {tuple(steps.shape)} get cosines {cos} and sines {sin} for heads of {spec.head_dim}"
    return shapes(subject) if isinstance(positions.stretch(5), int) else "stretch gives no whole number"


def _shape_problem(y: object, x: Tensor) -> str:
    if not isinstance(y, Tensor):
        return f"it gives a {type(y).__name__} and no tensor"
    if y.shape != x.shape or y.dtype != x.dtype:
        return f"{tuple(x.shape)} {x.dtype} goes in, {tuple(y.shape)} {y.dtype} comes out"
    return "" if torch.isfinite(y).all() else f"{tuple(x.shape)} ordinary numbers go in, NaN or infinity comes out"


@torch.no_grad()
def input_kept(subject: Subject) -> str:
    """'' when the input is as it was before."""
    x = subject.noise(2, 6)
    before = x.clone()
    subject.apply(subject.model(), x)
    return "" if torch.equal(x, before) else "it changes its input, which others still need"


@torch.no_grad()
def rows(subject: Subject) -> str:
    """'' when a text does not feel the others in its batch."""
    model, x = subject.model(), subject.noise(3, 8)
    other = torch.cat((x[:1], subject.noise(3, 8, seed=1)[1:]))
    changed = _changed(subject.apply(model, x.clone())[:1], subject.apply(model, other)[:1])
    return "" if not changed.any() else "a row changes when the other rows of the batch do"


@torch.no_grad()
def causality(subject: Subject) -> str:
    """'' when later tokens change nothing before them, bit for bit."""
    model = subject.model()
    for length, place in ((12, 11), (12, 6), (12, 1), (4, 2)):  # a text that a window covers has no mask
        x, noise = subject.noise(2, length), subject.noise(2, length, seed=1)
        other = torch.cat((x[:, :place], noise[:, place:]), dim=1)
        changed = (subject.apply(model, x)[:, :place] != subject.apply(model, other)[:, :place]).nonzero()
        if len(changed):
            return f"what comes out at place {int(changed[0, 1])} changes when tokens from place {place} on do"
    return ""


@torch.no_grad()
def mask(subject: Subject) -> str:
    """'' when what the mask hides changes nothing, bit for bit: other documents, and what lies before the window."""
    model, spec = subject.model(), subject.spec
    x, noise = subject.noise(2, 12), subject.noise(2, 12, seed=1)
    documents = torch.tensor([[0] * 5 + [1] * 7, [0] * 8 + [1] * 4])
    first = documents[..., None] == 0  # (B, T, 1)
    seen = subject.apply(model, x.clone(), documents), subject.apply(model, torch.where(first, noise, x), documents)
    if not torch.equal(*(y[documents == 1] for y in seen)):
        return "a document changes when the one before it in the same row does"
    if not spec.windowed(0) or spec.window >= 12:
        return ""
    other = torch.cat((noise[:, :1], x[:, 1:]), dim=1)
    seen = subject.apply(model, x.clone()), subject.apply(model, other)
    if not torch.equal(*(y[:, spec.window :] for y in seen)):
        return f"a token changes when one before its window of {spec.window} does"
    return ""


@torch.no_grad()
def settings(subject: Subject) -> str:
    """'' when scale, cap and rotation change what attention gives, or are refused."""
    x = subject.noise(2, 12)
    model = subject.model()
    before = subject.apply(model, x.clone())
    others: dict[str, Any] = {"attention_scale": 0.37, "attention_softcap": 0.71}
    if subject.spec.positions == "rotary":
        others["rope_theta"] = 3.0
    for name, value in others.items():
        spec = replace(subject.spec, **{name: value})
        if refusal(Subject(subject.kind, spec)):
            continue
        other = subject.model(spec)
        other.load_state_dict(model.state_dict())
        if torch.equal(subject.apply(other, x.clone()), before):
            return f"{name} changes nothing"
    return ""


@torch.no_grad()
def alone(subject: Subject) -> str:
    """'' when each token is worked on alone."""
    model, x = subject.model(), subject.noise(2, 8)
    other = x.clone()
    other[:, 3] = subject.noise(2, 8, seed=1)[:, 3]
    changed = _changed(subject.apply(model, x.clone()), subject.apply(model, other))
    changed[3] = False
    return f"what comes out at place {int(changed.nonzero()[0])} changes when place 3 does" if changed.any() else ""


def _changed(before: Tensor, after: Tensor) -> Tensor:
    """The places at which two results differ by more than rounding, bool (T,)."""
    return ((before - after).abs() > _ROUNDING * before.abs().max()).any(dim=-1).any(dim=0)


def extremes(subject: Subject) -> str:
    """'' when vectors of zeros, of equal numbers and of large numbers give finite numbers and gradients."""
    model, x = subject.model(), subject.noise(2, 6)
    for name, values in {"zeros": 0 * x, "equal numbers": 0 * x + 3, "numbers around 10,000": 1e4 * x}.items():
        values.requires_grad_()
        y = model.norm(values.clone())
        (gradient,) = torch.autograd.grad(y.sum(), values)
        if not (torch.isfinite(y).all() and torch.isfinite(gradient).all()):
            return f"a vector of {name} gives numbers or gradients that are not finite"
    return ""


@torch.no_grad()
def places(subject: Subject) -> str:
    """'' when what a token gets depends on its own place alone, whatever the places of the others are."""
    model, x = subject.model().embed_positions, subject.noise(2, 6)
    steps = torch.tensor([[0, 1, 2, 3, 4, 5], [7, 8, 0, 1, 2, 9]])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    outcomes: dict[str, Callable[[Tensor, Tensor], Tensor | None]] = {
        "forward": lambda x, steps: model(x.clone(), steps),
        "rotation": lambda x, steps: _turns(model, steps),
    }
    for name, outcome in outcomes.items():
        whole = outcome(x, steps)
        if whole is None:
            continue
        mixed, single = outcome(x[:, order], steps[:, order]), outcome(x[1:], steps[1:])
        if mixed is None or single is None:
            return f"{name} gives something for some places only"
        if not torch.allclose(mixed, whole[:, order], atol=1e-6) or not torch.allclose(single, whole[1:], atol=1e-6):
            return f"{name} gives a token something else when the places around it are others"
    return ""


@torch.no_grad()
def exact_angles(subject: Subject) -> str:
    """'' when angles stay exact in a bfloat16 model, to the end of the context."""
    steps = torch.arange(subject.spec.context_length)[None]
    exact, rough = (_turns(m.embed_positions, steps) for m in (subject.model(), subject.model().bfloat16()))
    if exact is None or rough is None:
        return ""
    error = float((exact - rough).abs().max())
    return "" if error < _ANGLE_TOLERANCE else f"cosines of a bfloat16 model are off by up to {error:.2g}"


def _turns(positions: nn.Module, steps: Tensor) -> Tensor | None:
    """Cosines and sines side by side, float32, (B or 1, T, 2 pairs)."""
    rotation = positions.rotation(steps, windowed=False)  # type: ignore[operator]  # a method, not a module
    return None if rotation is None else torch.cat(rotation, dim=-1)[:, :, 0].float()


_MADE = {
    "attention": "Take (spec, layer, attend), as bimo.model.attention.Attention does.",
    "feedforward": "Take (spec), as bimo.model.feedforward.Plain does.",
    "norm": "Take (spec, width), as bimo.model.layers.RMSNorm does.",
    "positions": "Take (spec), and inherit from bimo.model.positions.NoPositions.",
}
_SHAPES = {"norm": norm_shapes, "positions": position_shapes}
_SHAPED = {"positions": "Give x back as it came in, and cosines and sines (B or 1, T, 1, pairs), 2 pairs <= head_dim."}
_ROWS = Promise("rows", rows, "Compute nothing across dimension 0.", needs=SOUND)
_ALONE = Promise("alone", alone, "Compute over the last dimension only.", needs=(*SOUND, "rows"))
_OWN: dict[str, tuple[Promise[Subject], ...]] = {
    "attention": (
        _ROWS,
        Promise("causality", causality, "Hand ctx on to attend, or obey ctx.mask and ctx.causal.", needs=SOUND),
        Promise("mask", mask, "Obey ctx.mask wherever it is given.", needs=(*SOUND, "rows", "causality")),
        Promise(
            "settings",
            settings,
            "Use ctx.scale, ctx.softcap, ctx.cos and ctx.sin, or refuse such a spec with a UserError in __init__.",
            needs=SOUND,
        ),
    ),
    "feedforward": (_ROWS, _ALONE),
    "norm": (_ROWS, _ALONE, Promise("extremes", extremes, "Add spec.norm_eps to what you divide by.", needs=SOUND)),
    "positions": (
        _ROWS,
        Promise("places", places, "Use steps, not the order of the tokens.", needs=SOUND),
        Promise("angles", exact_angles, "Compute angles in float32, as Rotary does.", needs=SOUND),
    ),
}
CONTRACTS = {
    kind: (
        Promise("made", made, _MADE[kind]),
        Promise("shapes", _SHAPES.get(kind, shapes), _SHAPED.get(kind, "Give back what came in."), needs=("made",)),
        Promise("input", input_kept, "Change nothing in place.", needs=MADE_AND_SHAPED),
        DETERMINISM,
        *own,
        *WHOLES,
    )
    for kind, own in _OWN.items()
}
