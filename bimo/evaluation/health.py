"""Does a model keep the promises of a GPT? The same checks run in the tests and in `bimo doctor --model`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bimo.core.config import ModelSpec
from bimo.core.doctor import Check
from bimo.evaluation.probes import cached
from bimo.model.gpt import GPT
from bimo.model.packed import unpack

_CACHE_TOLERANCE = 1e-4  # logits in fp32; the order of sums differs between one token and many


def model_checks(model: GPT) -> Iterator[Check]:
    """All checks of one model; those on gradients and on the first loss use a fresh model of its shape."""
    unpack(model)
    yield finite(model)
    yield causality(model)
    yield cached_step(model)
    yield initial_loss(model.spec)
    yield gradients(model.spec)


def finite(model: GPT) -> Check:
    """No weight is NaN or infinite."""
    bad = [name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    mend = "Go back to an earlier checkpoint."
    return Check("weights are finite", not bad, f"not finite: {', '.join(bad)}" if bad else "all of them", mend)


@torch.inference_mode()
def causality(model: GPT) -> Check:
    """Logits up to a position do not change by one bit when later tokens do."""
    model.eval()
    ids = _ids(model.spec, rows=2)
    half = ids.shape[1] // 2
    changed = ids.clone()
    changed[:, half:] = (changed[:, half:] + 1) % model.spec.vocab_size
    same = torch.equal(model(ids)[:, :half], model(changed)[:, :half])
    finding = "later tokens change nothing before them" if same else "later tokens change earlier logits"
    return Check("causality", same, finding, "The attention mask leaks: report this with the model's settings.")


@torch.inference_mode()
def cached_step(model: GPT) -> Check:
    """Logits are the same whether the text comes at once, in pieces, or token by token with a cache."""
    model.eval()
    ids = _ids(model.spec, rows=2).to(model.lm_head.weight.device)
    difference = float((cached(model, ids) - model(ids)).abs().max())
    mend = "The cache or the positions are wrong: report this with the model's settings."
    return Check("cache", difference < _CACHE_TOLERANCE, f"largest difference of a logit {difference:.1e}", mend)


@torch.inference_mode()
def initial_loss(spec: ModelSpec) -> Check:
    """A fresh model knows nothing: its loss on random text is ln V within 5 %."""
    model = _fresh(spec)
    ids = _ids(spec, rows=4)
    loss = float(F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()))
    expected = math.log(spec.vocab_size)
    finding = f"{loss:.3f}, ln V is {expected:.3f}"
    return Check("first loss", abs(loss / expected - 1) < 0.05, finding, "Lower model.initializer_range.")


def gradients(spec: ModelSpec) -> Check:
    """Every weight of a fresh model gets a gradient."""
    model = _fresh(spec)
    ids = _ids(spec, rows=2)
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    finding = f"none for {', '.join(dead)}" if dead else f"reach all {len(list(model.parameters()))} tensors"
    return Check("gradients", not dead, finding, "A part of the model is cut off: report this with its settings.")


def _fresh(spec: ModelSpec) -> GPT:
    model = GPT(spec)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model.eval()


def _ids(spec: ModelSpec, rows: int) -> torch.Tensor:
    """Random token ids, (rows, T)."""
    shape = (rows, min(64, spec.context_length))
    return torch.randint(spec.vocab_size, shape, generator=torch.Generator().manual_seed(1))
