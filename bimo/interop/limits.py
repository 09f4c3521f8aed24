"""What a model of a file may ask for: nothing is made of its numbers before they were held against the file's size."""

from __future__ import annotations

from bimo.core.errors import UserError
from bimo.core.spec import ModelSpec

MOST_LAYERS = 512
"""More than any model has; a layer costs time before its tensors are looked at."""
_AGAIN = "Copy the model's folder again."
_LONGEST_CONTEXT, _LARGEST_HEAD, _LARGEST_NUMBER = 2**32, 2**16, 1e30


def check_size(spec: ModelSpec, where: str, *, n_tensors: int, n_numbers: int) -> None:
    """Refuse a model that its files cannot hold.

    Args:
        spec: The model.
        where: What to name in errors.
        n_tensors: Tensors that its files hold.
        n_numbers: Numbers that they hold at most.

    Raises:
        UserError: They cannot, or a number of the spec is none to compute with.
    """
    problem = _too_large(spec, n_tensors, n_numbers) or _not_finite(spec)
    if problem:
        raise UserError(problem, where=where, mend=_AGAIN)


def _too_large(spec: ModelSpec, n_tensors: int, n_numbers: int) -> str:
    """What of a spec cannot be in files of that size; '' when all can. Nothing may be made of it before."""
    if spec.n_layers > min(n_tensors, MOST_LAYERS):
        return f"it asks for {spec.n_layers} layers, but there are {n_tensors} tensors"
    if spec.context_length > _LONGEST_CONTEXT:
        return f"it asks for a context of {spec.context_length} tokens"
    if spec.head_dim > _LARGEST_HEAD:
        return f"it asks for heads of {spec.head_dim} numbers"
    sizes = {
        "embeddings": spec.vocab_size * spec.d_model,
        "heads": spec.n_heads * spec.head_dim,
        "a feed-forward part": spec.d_ff if not all(spec.sparse(layer) for layer in range(spec.n_layers)) else 0,
        "experts": spec.n_experts * spec.d_expert,
    }
    part = next((part for part, size in sizes.items() if size > n_numbers), "")
    return f"it asks for {part} of {sizes[part]} numbers, more than its files hold" if part else ""


def _not_finite(spec: ModelSpec) -> str:
    """A number of a spec that is not one to compute with; '' when all are."""
    scaling = spec.rope_scaling.to_dict()
    factors = {f"rope_scaling.{name}": scaling.pop(name) for name in ("short_factors", "long_factors")}
    lists = {name: [value] for name, value in {**spec.to_dict(), **scaling}.items()} | factors
    for name, numbers in lists.items():
        for number in numbers:
            if isinstance(number, (int, float)) and not abs(number) < _LARGEST_NUMBER:
                return f"{name} is {number!r:.50}"
    bad = next((name for name, numbers in factors.items() if any(number <= 0 for number in numbers)), "")
    return f"{bad} must be positive" if bad else ""
