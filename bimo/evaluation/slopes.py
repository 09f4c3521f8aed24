"""Gradients against a reference that has none: slopes along random directions, as central differences in float64.

A gradient that is wrong in one tensor changes the slope along every direction that moves this tensor, with certainty
for all practical purposes. Groups are compared in the order of the backward pass, so that the first wrong one is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bimo.evaluation.certificate import Finding
from bimo.evaluation.comparing import compare, left_out
from bimo.evaluation.parts import Part, n_clear
from bimo.evaluation.probes import gradients
from bimo.evaluation.reference import ReferenceGPT
from bimo.model.gpt import GPT

_STEP = 1e-6  # of the central difference, in units of a tensor's standard deviation
_INPUT = "its input"
_SHOWN_LAYERS = 5  # each costs two passes of the reference


@dataclass(frozen=True, slots=True)
class _Slope:
    """A slope.

    Attributes:
        ours: Out of gradients.
        theirs: Out of a difference.
        size: Of what adds up to it and may cancel, or of what the difference can tell.
    """

    ours: float
    theirs: float
    size: float


def slopes_of_model(model: GPT, reference: ReferenceGPT, ids: Tensor) -> Finding:
    """Slopes of the loss, for some layers, for what stands before all layers, and for what stands after them.

    What is wrong within a layer `slopes_of_parts` finds in each of them; here it is about the way between layers.

    Args:
        model: Under test.
        reference: The same model.
        ids: One short text, (1, T).
    """
    ids = ids[:, : n_clear(reference.trace(ids.numpy()))]
    if ids.shape[1] < 2:
        return left_out("slope", "NumPy, float64", "the text is too short")
    _, found = gradients(model, ids)
    groups: dict[str, list[str]] = {}
    last = reference.spec.n_layers - 1
    shown = {round(last * i / (_SHOWN_LAYERS - 1)) for i in range(_SHOWN_LAYERS)}
    for name in reference.weights:
        first, *rest = name.split(".")
        if first != "layers":
            groups.setdefault(first, []).append(name)
        elif int(rest[0]) in shown:
            groups.setdefault(f"layers.{rest[0]}", []).append(name)

    def loss(moved: Mapping[str, np.ndarray]) -> float:
        logits = _moved(reference, moved).trace(ids.numpy()).logits
        return reference.loss(logits[:, :-1], ids[:, 1:].numpy())

    generator = np.random.default_rng(0)
    slopes = {}
    for group, names in reversed(groups.items()):
        weights = {name: np.asarray(reference.weights[name], dtype=np.float64) for name in names}
        slopes[group] = _slope(found, weights, loss, generator)
    return _compared("slope", {"model": slopes})


def slopes_of_parts(model: GPT, reference: ReferenceGPT, parts: Sequence[Part]) -> Finding:
    """Slopes of a random sum of what each part gives, for each of its weights and for its input.

    Norms over a single number are left out: each is the sign of its input (of a LayerNorm: nothing at all), whose slope
    is 0 but for epsilon, so that float32 leaves rounding and no digits of it. `compare_parts` has what they compute.
    """
    parts = [part for part in parts if not _is_sign(part)]
    generator = np.random.default_rng(0)
    parameters = dict(model.named_parameters())
    slopes: dict[str, dict[str, _Slope]] = {}
    for part in reversed(parts):
        arrays = {name: np.asarray(reference.weights[name], dtype=np.float64) for name in part.weights}
        arrays[_INPUT] = part.x.astype(np.float64)
        mixture = generator.standard_normal(part.theirs(reference, arrays[_INPUT]).shape)
        found = _gradients(part, parameters, torch.from_numpy(mixture).float())

        def total(moved: Mapping[str, np.ndarray], part: Part = part, mixture: np.ndarray = mixture) -> float:
            result = part.theirs(_moved(reference, moved), moved.get(_INPUT, part.x.astype(np.float64)))
            return float((result * mixture).sum())

        slopes[part.name] = {
            f"{part.name}, {name}": _slope(found, {name: array}, total, generator) for name, array in arrays.items()
        }
    return _compared("slope, parts", slopes)


def _is_sign(part: Part) -> bool:
    """Whether a part is a norm over one number."""
    of_norm = bool(part.weights) and all(name.split(".")[-2].endswith("norm") for name in part.weights)
    return of_norm and part.x.shape[-1] == 1


def _gradients(part: Part, parameters: Mapping[str, Tensor], mixture: Tensor) -> dict[str, Tensor]:
    """Gradients of the sum of a part's results, each times a number of the mixture, for its weights and its input."""
    names = [name for name in part.weights if name in parameters]
    x = torch.from_numpy(part.x).requires_grad_()
    needed = [parameters[name].requires_grad for name in names]
    try:
        for name in names:
            parameters[name].requires_grad_(True)
        with torch.enable_grad():
            total = (part.ours(x) * mixture).sum()
            found = torch.autograd.grad(total, [x, *(parameters[name] for name in names)], allow_unused=True)
    finally:
        for name, was in zip(names, needed, strict=True):
            parameters[name].requires_grad_(was)
    return {name: g for name, g in zip((_INPUT, *names), found, strict=True) if g is not None}


def _slope(
    found: Mapping[str, Tensor],
    weights: Mapping[str, np.ndarray],
    value: Callable[[Mapping[str, np.ndarray]], float],
    generator: np.random.Generator,
) -> _Slope:
    """The slope along one random direction, from gradients and as a difference."""
    # Steps in proportion to a tensor's size, so that none is drowned by another.
    directions = {n: generator.standard_normal(w.shape) * (w.std() + 1e-3) for n, w in weights.items()}
    values = [value({n: w + sign * _STEP * directions[n] for n, w in weights.items()}) for sign in (1, -1)]
    products = [found[n].double() * torch.from_numpy(d) for n, d in directions.items() if n in found]
    spread = math.sqrt(sum(float(product.square().sum()) for product in products))
    ours, theirs = sum(float(product.sum()) for product in products), (values[0] - values[1]) / (2 * _STEP)
    return _Slope(ours, theirs, max(abs(theirs), spread, 1e-13 * abs(values[0]) / _STEP))


def _compared(check: str, slopes: Mapping[str, Mapping[str, _Slope]]) -> Finding:
    """Slopes by group and name, each over its size; what is tiny beside the others of its group is measured by those.

    Some gradients are zero in truth, such as that of a bias of all keys, and rounding makes something of them.
    """
    ours, theirs = {}, {}
    for group in slopes.values():
        largest = max(slope.size for slope in group.values())
        for name, slope in group.items():
            size = max(slope.size, 1e-3 * largest, 1e-12)
            ours[name] = torch.tensor(slope.ours / size, dtype=torch.float64)
            theirs[name] = torch.tensor(slope.theirs / size, dtype=torch.float64)
    return compare(check, "NumPy, float64", ours, theirs, floor=1.0)


def _moved(reference: ReferenceGPT, moved: Mapping[str, np.ndarray]) -> ReferenceGPT:
    """The reference with some other weights."""
    return ReferenceGPT(reference.spec, {**reference.weights, **moved})
