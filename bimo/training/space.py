"""What a search may change: the learning rate, the batch, and the structure of the model at equal parameters.

Structures differ in depth, width and heads; the feed-forward width closes the gap, so that all of them have the
parameters of the recipe's own model, within a few per cent. What was counted, not a formula, settles that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from bimo.core.config import RunSettings
from bimo.core.errors import UserError
from bimo.core.spec import ModelSpec
from bimo.model.gpt import GPT

Choice = dict[str, float | int | str]
"""Value of each thing that is searched."""

_DEPTHS = (0.5, 0.75, 1.0, 1.5, 2.0)  # times the recipe's layers
_BATCHES = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the recipe's batch
_HEAD_DIMS = (32, 64)  # beside the recipe's own
_RATE_REACH = 4.0  # the rate is searched up to this factor around the recipe's and the finder's
_EQUAL = 0.04  # parameters that may be more or less
_WIDTHS_OF_FF = (0.6, 1.6)  # times the recipe's share of d_ff in d_model: beyond, it would be another kind of model


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        low_rate: Lowest peak rate.
        high_rate: Highest.
        batch_sizes: Rows per update.
        shapes: Name of a structure → fields of `ModelSpec` that make it.
        shape: Name of the recipe's own.
    """

    low_rate: float
    high_rate: float
    batch_sizes: list[int]
    shapes: dict[str, dict[str, Any]]
    shape: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Space:
        """The inverse of `to_dict`."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def default(self, settings: RunSettings) -> Choice:
        """What the recipe itself chooses."""
        training = settings.training
        return {"learning_rate": training.learning_rate, "batch_size": training.batch_size, "shape": self.shape}

    def applied(self, settings: RunSettings, choice: Choice) -> RunSettings:
        """The recipe with a choice; the lowest rate keeps its share of the peak, a run its number of tokens."""
        old, rate, batch = settings.training, float(choice["learning_rate"]), int(choice["batch_size"])
        steps = max(1, round(old.steps * old.batch_size / batch))
        training = replace(
            old,
            learning_rate=rate,
            min_learning_rate=rate * (old.min_learning_rate / old.learning_rate),
            batch_size=batch,
            steps=steps,
            warmup_steps=round(old.warmup_steps * steps / old.steps),
        )
        shape = str(choice["shape"])
        model = settings.model if shape == self.shape else replace(settings.model, **self.shapes[shape])
        return replace(settings, training=training, model=model)


def make_space(settings: RunSettings, found_rate: float | None = None) -> Space:
    """The space around a recipe.

    Args:
        settings: The recipe; its vocabulary is that of the tokenizer.
        found_rate: What the learning-rate finder proposes; None: nothing is known.
    """
    training = settings.training
    rates = [training.learning_rate, found_rate or training.learning_rate]
    batches = sorted({max(1, round(training.batch_size * factor)) for factor in _BATCHES})
    own = shape_name(settings.model)
    return Space(
        low_rate=min(rates) / _RATE_REACH,
        high_rate=max(rates) * _RATE_REACH,
        batch_sizes=batches,
        shapes={own: {}, **dict(_shapes(settings.model))},
        shape=own,
    )


def shape_name(spec: ModelSpec) -> str:
    """A structure in a few characters, for example `6x384h6`: layers, width, heads."""
    return f"{spec.n_layers}x{spec.d_model}h{spec.n_heads}"


def count_parameters(spec: ModelSpec) -> int:
    """Weights of a model, counted without making it."""
    with torch.device("meta"):
        return GPT(spec).n_parameters()


def _shapes(spec: ModelSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """Other structures with as many parameters: each depth with each size of a head."""
    named = (*spec.full_layers, *spec.unrotated_layers, *spec.dense_layers)  # layers by number: depth is fixed
    depths = sorted({spec.n_layers if named else max(1, round(spec.n_layers * factor)) for factor in _DEPTHS})
    head_dims = sorted({spec.head_dim, *(d for d in _HEAD_DIMS if d <= spec.d_model)})
    if spec.d_model != spec.n_heads * spec.head_dim or spec.rotary_dim != spec.head_dim:
        head_dims = [spec.head_dim]  # heads that are no share of the width, or turned in part, stay as they are
    wanted = count_parameters(spec)
    for n_layers in depths:
        for head_dim in head_dims:
            found = _fitted(spec, wanted, n_layers, head_dim)
            if found is not None and shape_name(found) != shape_name(spec):
                yield shape_name(found), _changes(spec, found)


def _fitted(spec: ModelSpec, wanted: int, n_layers: int, head_dim: int) -> ModelSpec | None:
    """The structure of this depth whose width and feed-forward part come nearest to the wanted parameters."""
    per_group = spec.n_heads // spec.n_kv_heads
    best: tuple[float, ModelSpec] | None = None
    ideal = spec.d_model * (spec.n_layers / n_layers) ** 0.5 / head_dim  # a block has some 12 d_model² weights
    for heads in {max(1, int(ideal) + more) for more in (-1, 0, 1, 2)}:
        if heads % per_group:
            continue
        sizes = {"n_layers": n_layers, "n_heads": heads, "n_kv_heads": heads // per_group, "d_model": heads * head_dim}
        wide = replace(spec, **_fields(sizes), head_dim=head_dim, rotary_dim=head_dim)
        made = _with_feedforward(spec, wide, wanted)
        if made is None:
            continue
        stretched = made.d_ff / made.d_model / (spec.d_ff / spec.d_model)
        distance = abs(stretched - 1)
        if _WIDTHS_OF_FF[0] <= stretched <= _WIDTHS_OF_FF[1] and (best is None or distance < best[0]):
            best = (distance, made)
    return None if best is None else best[1]


def _with_feedforward(spec: ModelSpec, wide: ModelSpec, wanted: int) -> ModelSpec | None:
    """The width with the feed-forward part that closes the gap; None: none does."""
    step = 32
    expert = wide.d_expert == wide.d_ff

    def sized(d_ff: int) -> ModelSpec:
        return replace(wide, d_ff=d_ff, d_expert=d_ff if expert else wide.d_expert)

    try:
        base, per_step = count_parameters(sized(step)), count_parameters(sized(2 * step))
    except (UserError, RuntimeError, AssertionError):  # a part of the user's that does not take these sizes
        return None
    per_step -= base
    if per_step <= 0:
        return None
    made = sized(step * max(1, round((wanted - base) / per_step) + 1))
    return made if abs(count_parameters(made) / wanted - 1) <= _EQUAL else None


def _fields(sizes: dict[str, int]) -> dict[str, Any]:
    """Some sizes as fields of any type, for `replace`."""
    return dict(sizes)


def _changes(spec: ModelSpec, other: ModelSpec) -> dict[str, Any]:
    """Fields in which a structure differs."""
    then, now = spec.to_dict(), other.to_dict()
    return {name: now[name] for name in now if now[name] != then[name]}
