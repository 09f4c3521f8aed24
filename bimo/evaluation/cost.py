"""What quantisation costs: a quantised model beside the full one on the same text.

Both are computed exactly. Engines that multiply 8-bit activations with packed weights round a second time, on the fly;
that is measured, too, by rounding the inputs of every matrix as they do: 8 bits, a scale per 32 numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bimo.model.gpt import GPT
from bimo.model.packed import PackedTensor, twin, unpack
from bimo.model.rounding import GROUP

_CHUNK_LOGITS = 2**23  # of each model, held at once: 32 MB in float32
_ROWS_TOKENS = 1024  # that go through a model together


@dataclass(frozen=True)
class Distance:
    """How far next-token distributions lie from those of the full model.

    Attributes:
        kl: Mean Kullback-Leibler divergence to the full model, nats per token.
        kl_error: Its standard error.
        top1_changes: Share of positions at which another token is the likeliest.
        bits_per_byte: Of the text; NaN without a tokenizer.
    """

    kl: float
    kl_error: float
    top1_changes: float
    bits_per_byte: float


@dataclass(frozen=True)
class Cost:
    """What a quantised model costs and saves.

    Attributes:
        weights: Its distance from the full model, computed exactly.
        engine: The same with activations of 8 bits, as engines compute.
        bits_per_byte_before: Of the full model.
        bytes_before: Size of the full model's weights as they were stored; `bytes_after` likewise.
        n_tokens: What was measured on.
    """

    weights: Distance
    engine: Distance
    bits_per_byte_before: float
    bytes_before: int
    bytes_after: int
    n_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which knows no NaN."""
        return _without_nan(asdict(self))


@torch.no_grad()
def measure_cost(
    full: GPT, quantized: GPT, ids: Tensor, token_bytes: Tensor | None, on_progress: Callable[[float], None]
) -> Cost:
    """Compare a quantised model with the full one.

    Args:
        full: In evaluation mode, as is `quantized`.
        quantized: A model of the same shape.
        ids: Text, int64, (N, T).
        token_bytes: Bytes of text per id, (V,); None: unknown.
        on_progress: Told the share that is done.
    """
    names = [n for n, m in quantized.named_modules() if isinstance(m, nn.Linear) and isinstance(m.weight, PackedTensor)]
    after, quantized = stored_bytes(quantized), unpack(twin(quantized))
    linears = [quantized.get_submodule(name) for name in names]
    sums = [_Sums(), _Sums()]  # exact, and as engines compute
    nats, n_bytes = 0.0, 0
    pieces = ids.split(max(1, _ROWS_TOKENS // ids.shape[1]))
    for i, piece in enumerate(pieces):
        targets = piece[:, 1:].flatten()
        hidden = [model.hidden(piece)[:, :-1].flatten(0, 1) for model in (full, quantized)]  # (n, C)
        with rounded_activations(linears):
            hidden.append(quantized.hidden(piece)[:, :-1].flatten(0, 1))
        rows = max(1, _CHUNK_LOGITS // full.spec.vocab_size)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            truth, exact = (_log_probabilities(m, h[part]) for m, h in zip((full, quantized), hidden, strict=False))
            with rounded_activations(linears):
                engine = _log_probabilities(quantized, hidden[2][part])
            nats -= float(truth.gather(-1, targets[part, None]).sum())
            for found, theirs in zip(sums, (exact, engine), strict=True):
                found.add(truth, theirs, targets[part])
        n_bytes += int(token_bytes[targets].sum()) if token_bytes is not None else 0
        on_progress((i + 1) / len(pieces))
    bits = 1 / math.log(2) / n_bytes if n_bytes else math.nan
    distances = [found.distance(bits) for found in sums]
    return Cost(distances[0], distances[1], nats * bits, stored_bytes(full), after, ids[:, 1:].numel())


@contextlib.contextmanager
def rounded_activations(linears: Sequence[nn.Module]) -> Iterator[None]:
    """While this lasts, the inputs of some matrices are rounded to 8 bits with a scale per 32 numbers."""

    def rounded(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        groups = args[0].unflatten(-1, (-1, GROUP))
        scale = groups.abs().amax(dim=-1, keepdim=True) / 127
        levels = (groups / torch.where(scale == 0, 1.0, scale)).round_()
        return ((levels * scale).flatten(-2), *args[1:])

    hooks = [linear.register_forward_pre_hook(rounded) for linear in linears]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all weights as they lie in memory, a tied matrix counted once."""
    parts = [p.rows if isinstance(p, PackedTensor) else p for p in model.parameters()]
    return sum(part.numel() * part.element_size() for part in parts)


class _Sums:
    """What a `Distance` is made of."""

    def __init__(self) -> None:
        self.n, self.kl, self.squares, self.changes, self.nats = 0, 0.0, 0.0, 0, 0.0

    def add(self, truth: Tensor, ours: Tensor, targets: Tensor) -> None:
        """Log-probabilities, (n, V), and the tokens that came, (n,)."""
        kl = (truth.exp() * (truth - ours)).sum(dim=-1).double()  # (n,)
        self.n += len(kl)
        self.kl += float(kl.sum())
        self.squares += float(kl.square().sum())
        self.changes += int((truth.argmax(dim=-1) != ours.argmax(dim=-1)).sum())
        self.nats -= float(ours.gather(-1, targets[:, None]).sum())

    def distance(self, bits_per_nat_and_byte: float) -> Distance:
        mean = self.kl / self.n
        if not math.isfinite(mean):
            return Distance(math.inf, math.inf, self.changes / self.n, math.inf)
        error = math.sqrt(max(0.0, self.squares / self.n - mean**2) / self.n)
        return Distance(max(mean, 0.0), error, self.changes / self.n, self.nats * bits_per_nat_and_byte)


def _log_probabilities(model: GPT, hidden: Tensor) -> Tensor:
    return model.logits(hidden).float().log_softmax(dim=-1)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
