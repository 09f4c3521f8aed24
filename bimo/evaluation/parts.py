"""Each part of a model alone, on inputs that bring out what ordinary activations hide.

An epsilon matters only where numbers are small, a cap or an activation's form only where they are large, a rotation's
base only far from the beginning, a mask only beyond the window. A model computes the same function as its reference on
every text only if its parts do so there, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from bimo.core.spec import ModelSpec
from bimo.evaluation.certificate import Finding
from bimo.evaluation.comparing import TOLERANCES, compare, finding
from bimo.evaluation.probes import probe_ids
from bimo.evaluation.reference import ReferenceGPT, Trace, visible
from bimo.model.gpt import GPT, Block

CLEAR = 1e-5
"""The least `router_margin` at which float32 and float64 surely choose the same experts."""
_TOKENS = 32
_LONGEST_MASK = 6000  # tokens; a mask of that size has 36 MB
_SHARP = 2.0  # standard deviation of scores that makes a softmax choose without making it blind


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a model beside the same part of the reference.

    Attributes:
        name: Its name, and what is special about the input.
        ours: The part under test.
        theirs: The reference's part; it takes the reference, whose weights may be other ones.
        x: The input, float32, (1, T, C).
        weights: Names of the parameters that it computes with.
    """

    name: str
    ours: Callable[[Tensor], Tensor]
    theirs: Callable[[ReferenceGPT, np.ndarray], np.ndarray]
    x: np.ndarray
    weights: tuple[str, ...]


@torch.no_grad()
def compare_parts(reference: ReferenceGPT, parts: Sequence[Part], check: str = "parts") -> Finding:
    """What each part gives, against the reference; of the check "far", rotary angles are allowed their rounding."""
    ours = {part.name: part.ours(torch.from_numpy(part.x)) for part in parts}
    theirs = {part.name: torch.from_numpy(part.theirs(reference, part.x.astype(np.float64))) for part in parts}
    allowed = TOLERANCES[check].allowed
    if check == "far":
        allowed = max(allowed, reference.spec.context_length * 2.0**-22)
    return compare(check, "NumPy, float64", ours, theirs, allowed=allowed)


def n_clear(trace: Trace) -> int:
    """Number of tokens before the first one whose choice of experts is a matter of rounding."""
    doubtful = (trace.margins < CLEAR).any(axis=0)
    return int(doubtful.argmax()) if doubtful.any() else trace.margins.shape[1]


def clearest(reference: ReferenceGPT, seed: int, tries: int = 4) -> Tensor:
    """Random ids as `probe_ids` gives them, of some seeds those in which the most tokens are clear."""
    best, most = torch.empty(0), -1
    for again in range(tries):
        # The largest seed has none after it.
        ids, _ = probe_ids(reference.spec, seed + again if seed < 2**62 else seed - again)
        found = n_clear(reference.trace(ids.numpy()))
        if found > most:
            best, most = ids, found
        if 2 * most >= ids.shape[1]:
            break
    return best


def far_positions(spec: ModelSpec, most: int = _TOKENS) -> np.ndarray:
    """Increasing positions, int64 (T,), close to each other at first and reaching to the end of the context."""
    if spec.context_length <= most:
        return np.arange(spec.context_length)
    near = most // 2
    far = np.geomspace(near, spec.context_length - 1, most - near).round().astype(np.int64)
    return np.concatenate((np.arange(near), np.maximum(far, np.arange(near, most))))


def compare_masks(model: GPT, spec: ModelSpec) -> Finding:
    """What each layer lets every token see, at once and with a cache, on a text longer than the window."""
    T = min(spec.context_length, max(_TOKENS, spec.window + 3), _LONGEST_MASK)
    steps = torch.arange(T)[None]
    start = T - 1 if T < 8 else T - 5
    whole, later = model.contexts(0, steps), model.contexts(start, steps[:, start:])
    for layer, block in enumerate(model.blocks()):
        expected = visible(np.zeros(T, dtype=np.int64), spec.window if spec.windowed(layer) else 0)
        for contexts, begin in ((whole, 0), (later, start)):
            context = contexts[block.kind]
            seen = torch.ones(T - begin, T, dtype=torch.bool)
            if context.mask is not None:
                seen = context.mask[0, 0]
            elif context.causal:
                seen = seen.tril(begin)
            wrong = (seen.numpy() != expected[begin:]).nonzero()[0]
            if len(wrong):
                note = f"token {begin + int(wrong[0])} does not see what it should"
                return finding("masks", "the definition", float(len(wrong)), f"layers.{layer}.self_attn", note=note)
    return finding("masks", "the definition", 0.0, note=f"of {T} tokens")


def parts_of(model: GPT, reference: ReferenceGPT) -> Iterator[Part]:
    """All parts, in order of computation."""
    random = np.random.default_rng(0)
    near = np.arange(min(_TOKENS, reference.spec.context_length))
    for layer in range(reference.spec.n_layers):
        yield from _norms(model, f"layers.{layer}.", reference, random)
        yield from _attention(model, layer, reference, near, random)
        yield _feedforward(model, layer, reference, random)
    yield from _norms(model, "", reference, random)
    x = _noise(random, 1, 4, reference.spec.d_model)
    head = "embed_tokens.weight" if reference.spec.tied_embeddings else "lm_head.weight"
    x *= max(_SHARP, reference.spec.logit_softcap) / _size(x @ np.asarray(reference.weights[head]).T)
    yield Part("lm_head", model.logits, ReferenceGPT.head, x, (head,))


def far_parts(model: GPT, reference: ReferenceGPT) -> Iterator[Part]:
    """What depends on positions, at positions up to the end of the context."""
    random = np.random.default_rng(0)
    steps = far_positions(reference.spec)
    x = _noise(random, 1, len(steps), reference.spec.d_model)
    ours = partial(model.embed_positions, steps=torch.from_numpy(steps)[None])
    yield Part("embed_positions", ours, partial(ReferenceGPT.place, positions=steps[None]), x, ())
    for layer in range(reference.spec.n_layers):
        yield from _attention(model, layer, reference, steps, random)


def _norms(model: GPT, prefix: str, reference: ReferenceGPT, random: np.random.Generator) -> Iterator[Part]:
    """The norms of a block, or (no prefix) the one after all blocks, on inputs of size 1 and of size sqrt(epsilon)."""
    names = [n.removesuffix(".weight") for n in reference.weights if n.startswith(prefix) and n.endswith("norm.weight")]
    for name in names if prefix else ["norm"]:
        width = reference.weights[f"{name}.weight"].shape[0]
        for size in (1.0, math.sqrt(reference.spec.norm_eps)):
            x = _noise(random, 1, 4, width) * np.float32(size)
            norm = partial(ReferenceGPT.norm, name=name)
            yield Part(f"{name}, inputs of {size:.3g}", model.get_submodule(name), norm, x, _under(reference, name))


def _attention(
    model: GPT, layer: int, reference: ReferenceGPT, steps: np.ndarray, random: np.random.Generator
) -> Iterator[Part]:
    """Attention at some positions, with scores that choose, and (where there is a cap) with scores near it."""
    spec, name = reference.spec, f"layers.{layer}.self_attn"
    block = cast(Block, model.layers[layer])
    context = model.contexts(0, torch.from_numpy(steps)[None])[block.kind]
    for strength in (_SHARP, spec.attention_softcap / 2) if spec.attention_softcap else (_SHARP,):
        x = _noise(random, 1, len(steps), spec.d_model)
        x *= math.sqrt(strength / _score_size(reference, x, layer))
        ours = partial(block.self_attn, ctx=context)
        documents = np.zeros((1, len(steps)))
        theirs = partial(ReferenceGPT.attention, layer=layer, positions=steps[None], documents=documents)
        yield Part(f"{name}, scores of {strength:.3g}", ours, theirs, x, _under(reference, name))


def _feedforward(model: GPT, layer: int, reference: ReferenceGPT, random: np.random.Generator) -> Part:
    """The feed-forward part on inputs that bend its activation, or that make its router choose."""
    spec, name = reference.spec, f"layers.{layer}.mlp"
    x = _noise(random, 1, _TOKENS, spec.d_model)
    first = next(f for f in ("gate", "gate_proj", "up_proj") if f"{name}.{f}.weight" in reference.weights)
    x *= _SHARP / _size(reference.linear(x, f"{name}.{first}"))
    x = x[:, reference.router_margin(x.astype(np.float64), layer)[0] > CLEAR]
    theirs = partial(ReferenceGPT.feedforward, layer=layer)
    return Part(name, model.get_submodule(name), theirs, x, _under(reference, name))


def _under(reference: ReferenceGPT, name: str) -> tuple[str, ...]:
    """Names of the weights of a module."""
    return tuple(n for n in reference.weights if n.startswith(f"{name}."))


def _score_size(reference: ReferenceGPT, x: np.ndarray, layer: int) -> float:
    """Standard deviation of the attention scores that an input gives, before any norm of queries and keys."""
    spec, name = reference.spec, f"layers.{layer}.self_attn"
    q, k = (reference.linear(x, f"{name}.{part}_proj") for part in "qk")
    scale = spec.attention_scale or spec.head_dim**-0.5
    return max(_size(q) * _size(k) * scale * math.sqrt(spec.head_dim), 1e-12)


def _size(x: np.ndarray) -> float:
    """The standard deviation; never 0, so that it can divide."""
    return max(float(np.asarray(x).std()), 1e-12)


def _noise(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal numbers, float32."""
    return random.standard_normal(shape).astype(np.float32)
