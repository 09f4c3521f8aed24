"""What promises are looked at on: a part inside a small GPT, at shapes that bring out what ordinary shapes hide."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES
from bimo.core.spec import ModelSpec
from bimo.model.gpt import GPT

SMALL = ModelSpec(vocab_size=61, context_length=40, n_layers=2, d_model=24, n_heads=2, d_ff=32)
GPT2 = replace(SMALL, norm="layernorm", feedforward="gelu", positions="learned", biases="all", qk_norm=False)
NARROW = replace(SMALL, n_heads=4, n_kv_heads=2, head_dim=6, rotary_dim=6, d_model=20)
SHAPES = {
    "attention": {
        "as many key heads as query heads": SMALL,
        "4 query heads, 2 key heads, head_dim is not d_model / n_heads": NARROW,
        "3 query heads, 1 key head": replace(SMALL, n_heads=3, n_kv_heads=1, head_dim=8, rotary_dim=8),
        "a window of 5 in the first layer": replace(NARROW, window=5, full_layers=(1,)),
        "biases, learned positions, no norm of queries and keys": GPT2,
        "scale and cap of the scores, half of each head turned": replace(
            SMALL, attention_scale=0.5, attention_softcap=3.0, rotary_dim=6, norm_placement="sandwich"
        ),
        "norms after each part, and across heads": replace(
            SMALL, norm_placement="post", qk_norm_across_heads=True, dropout=0.1
        ),
    },
    "feedforward": {
        "no biases": SMALL,
        "biases": GPT2,
        "norms after each part, dropout": replace(SMALL, norm_placement="post", d_ff=8, dropout=0.1),
        "beside attention": replace(SMALL, d_ff=48, parallel_blocks=True),
    },
    "norm": {
        "before each part, and of queries and keys": SMALL,
        "biases": replace(GPT2, qk_norm=True),
        "after each part, and across heads": replace(SMALL, norm_placement="post", qk_norm_across_heads=True),
        "a large epsilon": replace(NARROW, norm_eps=0.1, norm_placement="sandwich"),
    },
    "positions": {
        "heads of 12": SMALL,
        "grouped heads of 6, scaled embeddings": replace(NARROW, embedding_scale=3.0, context_length=300),
        "half of each head turned, a window": replace(
            SMALL, rotary_dim=6, window=5, full_layers=(1,), window_rope_theta=100.0
        ),
    },
}
_SHORTEST = 16  # tokens that the promises look at
_KEPT_PLACES = {"attention": "self_attn", "feedforward": "mlp"}


@dataclass(frozen=True, slots=True)
class Subject:
    """A part inside a GPT.

    Attributes:
        kind: attention, feedforward, norm or positions.
        spec: The GPT; it names the part.
    """

    kind: str
    spec: ModelSpec

    def model(self, spec: ModelSpec | None = None) -> GPT:
        """The GPT in evaluation mode, with the same random weights each time: no zero hides what it scales."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = GPT(spec or self.spec)
            with torch.no_grad():
                for parameter in (p for p in model.parameters() if p.requires_grad):
                    size = 0.2 if parameter.dim() < 2 else 1 / math.sqrt(parameter.shape[-1])
                    parameter.add_(size * torch.randn(parameter.shape))
        return model.eval()

    def parts(self, model: GPT) -> dict[str, nn.Module]:
        """The modules under test in a model, by name."""
        if self.kind == "positions":
            return {"embed_positions": model.embed_positions}
        if self.kind in _KEPT_PLACES:
            names = [f"layers.{i}.{_KEPT_PLACES[self.kind]}" for i in range(self.spec.n_layers)]
            return {name: model.get_submodule(name) for name in names}
        return {name: module for name, module in model.named_modules() if name.endswith("norm")}

    def apply(self, model: GPT, x: Tensor, documents: Tensor | None = None) -> Tensor:
        """What the first part makes of x, (B, T, C), at the beginning of a text; `documents` matter to attention only.

        x is handed over as it is: who needs it again gives a copy.
        """
        steps = torch.arange(x.shape[1])[None]
        if self.kind == "norm":
            return model.norm(x)
        if self.kind == "positions":
            return model.embed_positions(x, steps)
        block = next(model.blocks())
        if self.kind == "feedforward":
            return block.mlp(x)
        return block.self_attn(x, model.contexts(0, steps, documents)[block.kind])

    def noise(self, rows: int, length: int, seed: int = 0) -> Tensor:
        """Random activations, (B, T, C)."""
        return torch.randn(rows, length, self.spec.d_model, generator=torch.Generator().manual_seed(seed))

    def ids(self, rows: int, length: int, seed: int = 0) -> Tensor:
        """A random text, (B, T); not longer than the context."""
        shape = (rows, min(length, self.spec.context_length))
        return torch.randint(self.spec.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def subjects(kind: str, part: Any, spec: ModelSpec | None = None) -> Iterator[dict[str, Subject]]:
    """The subjects for a part, by what is special about each; the part has a name in the registry meanwhile.

    torch works with one thread meanwhile: for tensors this small, more of them only wait for each other.

    Args:
        kind: What it is.
        part: A name in the registry, or what makes the module.
        spec: The only shape to look at; None: those of SHAPES that the part does not refuse.

    Raises:
        UserError: It refuses all, or the spec has too little room.
    """
    if spec is not None and spec.context_length < _SHORTEST:
        what = f"context_length is {spec.context_length}, a check reads {_SHORTEST} tokens"
        raise UserError(what, where="spec", mend="Give a longer one.")
    registry = REGISTRIES[kind]
    name = part if isinstance(part, str) else f"{name_of(part)}, under test"
    if isinstance(part, str):
        registry.get(part)  # an unknown name is told before anything else
    else:
        registry.registered[name] = part
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shapes = SHAPES[kind] if spec is None else {"with your spec": spec}
        found = {special: Subject(kind, _naming(shape, kind, name)) for special, shape in shapes.items()}
        refusals = {special: refusal(subject) for special, subject in found.items()}
        if all(refusals.values()):
            raise UserError(f"{name_of(part)} refuses every shape: {next(iter(refusals.values()))}")
        yield {special: subject for special, subject in found.items() if not refusals[special]}
    finally:
        torch.set_num_threads(threads)
        if not isinstance(part, str):
            del registry.registered[name]


def refusal(subject: Subject) -> str:
    """What the part says against the shape when it is made; '' when it says nothing, or fails in another way."""
    try:
        GPT(subject.spec)
    except UserError as error:
        return str(error)
    except Exception:  # the promise "made" tells the author
        return ""
    return ""


def _naming(spec: ModelSpec, kind: str, name: str) -> ModelSpec:
    """The spec with a part of that name."""
    choice: dict[str, Any] = {kind: name}
    return replace(spec, **choice)


def name_of(part: Any) -> str:
    """What a person calls it."""
    return part if isinstance(part, str) else getattr(part, "__name__", type(part).__name__)
