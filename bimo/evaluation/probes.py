"""What a GPT is asked during verification: ids, activations, gradients, and whether it agrees with itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.core.errors import UserError
from bimo.core.spec import ModelSpec
from bimo.engine import SamplingParams, new_tokens
from bimo.model.cache import KVCache
from bimo.model.gpt import GPT

LONGEST_PROBE = 1100  # tokens; a probe is as long as it must be to reach beyond windows, but no longer than this
_USUAL_PROBE = 48
_SEEDS = range(-(2**63), 2**63)


def check_seed(seed: int) -> None:
    """Refuse what torch's generators do not take."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed not in _SEEDS:
        raise UserError(
            f"the seed is {str(seed)[:40]}", where="seed", mend="Use a whole number from -2**63 to 2**63 - 1."
        )


def probe_ids(spec: ModelSpec, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Random ids, (2, T), long enough for the window and the longer rotary factors to matter where that is possible.

    Returns:
        The ids, and what they could not reach, in words.
    """
    length, notes = min(_USUAL_PROBE, spec.context_length), []
    windowed = any(spec.windowed(layer) for layer in range(spec.n_layers))
    reaches = {"window": spec.window if windowed else 0, "rope_scaling.original_context": 0}
    if spec.rope_scaling.kind == "longrope":
        reaches["rope_scaling.original_context"] = spec.rope_scaling.original_context
    for name, tokens in reaches.items():
        if tokens and tokens + 8 <= min(LONGEST_PROBE, spec.context_length):
            length = max(length, tokens + 8)
        elif 0 < tokens < spec.context_length:
            notes.append(f"{name} ({tokens} tokens) is longer than the probe")
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(spec.vocab_size, (2, length), generator=generator)
    # No text reads padding; its embedding has no gradient there, which a difference of losses does not know.
    return ids.masked_fill(ids == spec.padding_id, (spec.padding_id + 1) % spec.vocab_size), notes


def module_names(spec: ModelSpec) -> list[str]:
    """The modules whose results are compared, in order of computation."""
    layers = [f"layers.{i}{part}" for i in range(spec.n_layers) for part in (".self_attn", ".mlp", "")]
    return ["embed_tokens", *layers, "norm"]


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules return while the context lasts, by name, float32."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, result: Any) -> None:
            found[name] = (result[0] if isinstance(result, tuple) else result).detach().float()

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def activations(model: GPT, ids: Tensor) -> dict[str, Tensor]:
    """What each module computes on the way from ids, (B, T), to logits: (B, T, C) each, and "logits", (B, T, V)."""
    modules = {name: model.get_submodule(name) for name in module_names(model.spec)}
    with recorded(modules) as found:
        logits = model(ids)
    return {**found, "logits": logits.float()}


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross entropy of each next token."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


def gradients(model: GPT, ids: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The loss, and its gradient for each parameter; gradients that the model holds already are left as they are."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    needed = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            loss = loss_of(model(ids), ids)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for parameter, was in zip(parameters, needed, strict=True):
            parameter.requires_grad_(was)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return float(loss.detach()), dict(zip(names, filled, strict=True))


def greedy(model: GPT, prompt: Tensor, n_tokens: int) -> list[int]:
    """The likeliest continuation of a prompt, (T,), as the engine finds it."""
    return list(new_tokens(model, prompt.tolist(), SamplingParams(max_tokens=n_tokens, temperature=0)))


@torch.no_grad()
def cached(model: GPT, ids: Tensor) -> Tensor:
    """Logits of ids, (B, T), that come in pieces and then one by one, with a cache: (B, T, V)."""
    B, T = ids.shape
    weight = model.lm_head.weight
    cache = KVCache(model.spec, B, T, device=weight.device, dtype=weight.dtype)
    # The first piece is as long as the whole as far as positions are concerned (longrope).
    stretch = model.embed_positions.stretch
    first = next(n for n in range(T // 4, T + 1) if stretch(n) == stretch(T))
    singles = max(T // 2, first, T - 24)
    pieces = [ids[:, :first], ids[:, first:singles], *ids[:, singles:].split(1, dim=1)]
    return torch.cat([model(piece, cache=cache) for piece in pieces if piece.shape[1]], dim=1).float()


@torch.no_grad()
def single(model: GPT, ids: Tensor) -> Tensor:
    """Logits of the rows of ids, (B, T), each alone."""
    return torch.cat([model(row[None]) for row in ids]).float()


@torch.no_grad()
def padded(model: GPT, ids: Tensor, *, left: bool, padding: int = 5) -> Tensor:
    """Logits of ids with padding at one side, which is a document of its own: those of the text, (B, n, V)."""
    B, T = ids.shape
    padding = min(padding, T - 1)
    kept = T - padding
    fill = torch.full((B, padding), (int(ids[0, 0]) + 1) % model.spec.vocab_size)
    text, steps = ids[:, :kept], torch.arange(kept).expand(B, -1)
    own, other = torch.ones(B, kept, dtype=torch.long), torch.zeros(B, padding, dtype=torch.long)
    parts = [(fill, other, other), (text, steps, own)] if left else [(text, steps, own), (fill, other, other)]
    row, positions, documents = (torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True))
    logits = model(row, positions=positions, documents=documents).float()
    return logits[:, padding:] if left else logits[:, :kept]
