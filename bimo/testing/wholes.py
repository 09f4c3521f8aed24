"""What every part of a GPT promises, seen on the whole model: it can be trained, generated with, saved and copied."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.evaluation.probes import cached
from bimo.lm import LM, load
from bimo.model.cache import KVCache
from bimo.model.gpt import GPT
from bimo.model.recompute import recompute
from bimo.testing.promises import Promise
from bimo.testing.subjects import Subject

_CACHE_TOLERANCE = 1e-4  # of the largest logit, in float32; the order of sums differs between one token and many
_BF16_TOLERANCE = 0.15  # of the largest number; bf16 has 8 bits, and a small part averages over few numbers
_SLOPE_TOLERANCE = 1e-3
_STEPS = (1e-6, 1e-4, 1e-2)  # fine enough for kinks, coarse enough for modules that compute in float32 in between


@torch.inference_mode()
def forgetful(subject: Subject) -> str:
    """'' when the same text gives the same logits each time, whatever was read in between."""
    model, ids = subject.model(), subject.ids(2, 12)
    first = model(ids)
    if not torch.equal(model(ids), first):
        return "the same text gives other logits when it is read again, in evaluation mode"
    model(subject.ids(2, 12, seed=1))
    model(subject.ids(1, 7, seed=1))
    return "" if torch.equal(model(ids), first) else "a text gives other logits after another text was read"


def gradients(subject: Subject) -> str:
    """'' when each parameter gets a gradient that is finite and not zero, as the trainer computes it."""
    model, ids = subject.model().train(), subject.ids(3, 12)
    with recompute():
        loss = _loss(model, ids)
    loss.backward()
    for name, module in subject.parts(model).items():
        for inner, parameter in _trained(module).items():
            if parameter.grad is None:
                return f"{name}.{inner} gets no gradient"
            if not torch.isfinite(parameter.grad).all():
                return f"the gradient of {name}.{inner} is not finite"
            if not parameter.grad.any():
                return f"the gradient of {name}.{inner} is zero"
    return ""


def slopes(subject: Subject) -> str:
    """'' when gradients agree with differences, in float64: of each parameter, and of what the first block reads."""
    model, ids = subject.model().double(), subject.ids(2, 9)
    tensors: dict[str, Tensor] = {}
    for name, part in subject.parts(model).items():
        tensors |= {f"{name}.{inner}": parameter for inner, parameter in _trained(part).items()}
    tensors["the input"] = model.embed_tokens.weight
    found = torch.autograd.grad(_loss(model, ids), list(tensors.values()), allow_unused=True)
    for (name, tensor), gradient in zip(tensors.items(), found, strict=True):
        problem = slope_problem(lambda: _loss(model, ids), tensor, gradient)
        if problem:
            return f"the gradient of {name} is wrong: {problem}"
    return ""


@torch.no_grad()
def slope_problem(value: Callable[[], Tensor], tensor: Tensor, gradient: Tensor | None) -> str:
    """'' when the slope along a random direction, as a central difference, is what the gradient says.

    Args:
        value: Computes a number that depends on the tensor.
        tensor: float64; it is moved and put back.
        gradient: Under test; None counts as zero.
    """
    generator = torch.Generator().manual_seed(0)
    spread = float(tensor.std(correction=0)) + 1e-3
    direction = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * spread
    products = torch.zeros_like(tensor) if gradient is None else gradient * direction
    ours, kept = float(products.sum()), tensor.clone()
    theirs = 0.0
    for step in _STEPS:
        above, below = (float(_with(tensor, kept + sign * step * direction, value)) for sign in (1, -1))
        theirs = (above - below) / (2 * step)
        tensor.copy_(kept)
        allowed = _SLOPE_TOLERANCE * max(abs(theirs), float(products.norm())) + 1e-14 * abs(above) / step
        if abs(ours - theirs) <= allowed:
            return ""
    return f"a slope of {ours:.4g} along some direction, a difference says {theirs:.4g}"


def _with(tensor: Tensor, moved: Tensor, value: Callable[[], Tensor]) -> Tensor:
    """The value while a tensor holds other numbers, which stay in it."""
    tensor.copy_(moved)
    return value()


@torch.inference_mode()
def cache(subject: Subject) -> str:
    """'' when a text that comes in pieces and then one by one, with a cache, gives the logits of the whole text."""
    model, ids = subject.model(), subject.ids(2, 14)
    whole, pieces = model(ids), cached(model, ids)
    place = _first_difference(whole, pieces)
    return "" if place is None else f"with a cache, logits differ from place {place} on by {_distance(whole, pieces)}"


@torch.inference_mode()
def two_texts(subject: Subject) -> str:
    """'' when two texts that are read in turn, each with its cache, do not disturb each other."""
    model, texts = subject.model(), [subject.ids(1, 9, seed) for seed in (0, 1)]
    caches = [KVCache(model.spec, 1, 9, device=torch.device("cpu"), dtype=torch.float32) for _ in texts]
    whole = [model(ids) for ids in texts]
    for start, end in ((0, 5), *((i, i + 1) for i in range(5, texts[0].shape[1]))):
        for ids, own, expected in zip(texts, caches, whole, strict=True):
            if _first_difference(expected[:, start:end], model(ids[:, start:end], cache=own)) is not None:
                return "logits are wrong when two texts are read in turn, each with its own cache"
    return ""


def bf16(subject: Subject) -> str:
    """'' when the part works in bfloat16, as weights and under autocast, and gives nearly what it gives in float32."""
    model, x = subject.model(), subject.noise(2, 12)
    with torch.no_grad():
        exact, rough = subject.apply(model, x.clone()), subject.apply(subject.model().bfloat16(), x.bfloat16())
    if rough.dtype != torch.bfloat16:
        return f"bfloat16 weights and input give {rough.dtype}"
    if not torch.isfinite(rough).all():
        return "bfloat16 weights and input give numbers that are not finite"
    if (exact - rough).abs().max() > _BF16_TOLERANCE * exact.abs().max():
        return f"bfloat16 gives numbers that are {_distance(exact, rough)} away from those in float32"
    with torch.autocast("cpu", torch.bfloat16):
        loss = _loss(model, subject.ids(2, 12))
    loss.backward()
    parameters = [p for part in subject.parts(model).values() for p in part.parameters()]
    sound = all(p.grad is None or torch.isfinite(p.grad).all() for p in parameters)
    return "" if sound else "under autocast to bfloat16, gradients are not finite"


def empty(subject: Subject) -> str:
    """'' when the part can be made without memory for its weights; what goes wrong raises."""
    with torch.device("meta"):
        GPT(subject.spec)
    return ""


def saved(subject: Subject) -> str:
    """'' when a model that is saved and loaded gives the same logits, bit for bit."""
    model, ids = subject.model(), subject.ids(2, 12)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # a loaded model is made in another process, with other random numbers
        again = load(LM(model, None).save(Path(folder) / "model")).model
    with torch.inference_mode():
        same = torch.equal(again(ids), model(ids))
    return "" if same else "a model that was saved and loaded gives other logits"


@torch.no_grad()
def copied(subject: Subject) -> str:
    """'' when a deep copy of the model gives the same, and still does when the original changes."""
    model, ids = subject.model(), subject.ids(2, 12)
    expected, twin = model(ids), copy.deepcopy(model)
    for part in subject.parts(model).values():
        for parameter in part.parameters():
            parameter.mul_(0)
    return "" if torch.equal(twin(ids), expected) else "a deep copy of the model changes when the original does"


def _loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross entropy of the next token, in the dtype of the logits or better."""
    logits = model(ids[:, :-1])
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide.flatten(0, 1), ids[:, 1:].flatten())


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer changes, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _first_difference(whole: Tensor, pieces: Tensor) -> int | None:
    """The first place at which logits, (B, T, V), differ by more than rounding."""
    allowed = _CACHE_TOLERANCE * max(1.0, float(whole.abs().max()))
    wrong = ~((whole - pieces).abs() <= allowed).all(dim=-1).all(dim=0)  # (T,); NaN is wrong, too
    return int(wrong.nonzero()[0]) if wrong.any() else None


def _distance(a: Tensor, b: Tensor) -> str:
    """The largest difference, for people."""
    largest = float((a.float() - b.float()).abs().max())
    return "NaN" if math.isnan(largest) else f"{largest:.2g}"


MADE_AND_SHAPED = ("made", "shapes")
SOUND = (*MADE_AND_SHAPED, "input", "determinism")
DETERMINISM = Promise(
    "determinism",
    forgetful,
    "Keep nothing between calls, and draw random numbers in training mode only (self.training).",
    needs=(*MADE_AND_SHAPED, "input"),
)
WHOLES: tuple[Promise[Subject], ...] = (
    Promise("gradients", gradients, "Use every parameter, and detach nothing on the way to it.", needs=SOUND),
    Promise("slopes", slopes, "Look at backward passes of your own, and at detach().", needs=(*SOUND, "gradients")),
    Promise(
        "cache",
        cache,
        "Append turned keys, and values, to ctx.cache and go on with what that returns; let nothing depend on how many "
        "tokens come at once.",
        needs=(*SOUND, "causality", "mask", "alone", "places"),
    ),
    Promise("two texts", two_texts, "Keep what belongs to a text in ctx.cache, not in the module.", needs=("cache",)),
    Promise("bf16", bf16, "Make tensors in the dtype of x, and give back that dtype.", needs=SOUND),
    Promise("empty", empty, "In __init__, compute with numbers and not with what tensors hold.", needs=SOUND),
    Promise(
        "saved",
        saved,
        "Only parameters are saved (also those with requires_grad=False); other numbers are buffers (register_buffer) "
        "that follow from the spec.",
        needs=(*SOUND, "empty"),
    ),
    Promise("copied", copied, "Keep submodules as attributes, not inside functions.", needs=SOUND),
)
