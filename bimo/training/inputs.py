"""What a user may hand to `fit`, as a stream of batches.

Batches are taken as they are; ids become rows; text needs a model that brings its tokenizer (`bimo.LM`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from bimo.core.batch import Batch
from bimo.core.config import TrainingSettings
from bimo.core.errors import UserError
from bimo.training.losses import cross_entropy
from bimo.training.streams import BatchStream, Resumable, stream_batches


@runtime_checkable
class TextModel(Protocol):
    """A model that brings its tokenizer (`bimo.LM`): it turns what a user has into batches, and measures text."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer."""
        ...

    def batches(self, inputs: Any, targets: Any, *, batch_size: int, seed: int) -> BatchStream | Resumable:
        """A stream of batches; with a length where it has epochs."""
        ...


def as_stream(model: nn.Module | TextModel, data: Any, targets: Any, settings: TrainingSettings) -> Any:
    """What a user has as an iterable of batches."""
    if isinstance(data, Resumable):
        return data
    if isinstance(data, Sequence) and not isinstance(data, str) and len(data) > 0 and isinstance(data[0], Batch):
        return stream_batches(data)
    if isinstance(model, TextModel):
        return model.batches(data, targets, batch_size=settings.batch_size, seed=settings.seed)
    return data


def held_out(
    model: nn.Module | TextModel, validation: Any, settings: TrainingSettings
) -> Callable[[nn.Module], dict[str, float]]:
    """A function that measures a model on held-out data: its mean loss in nats per trained token."""
    pair = isinstance(validation, tuple) and len(validation) == 2
    inputs, targets = validation if pair else (validation, None)
    stream = as_stream(model, inputs, targets, settings)
    batches = [stream[n] for n in range(length(stream))]

    def measure(gpt: nn.Module) -> dict[str, float]:
        device = next(gpt.parameters()).device
        total, count = 0.0, 0.0
        with torch.inference_mode():
            for batch in batches:
                part, weight = batch.to(device), batch.weight_sum()
                if weight:
                    logits = gpt(part.ids, positions=part.positions, documents=part.documents)
                    total += weight * cross_entropy(logits, part.targets, part.weights).item()
                    count += weight
        return {"loss": total / max(count, 1.0)}

    return measure


def length(data: Any) -> int:
    """Batches per epoch."""
    if not hasattr(data, "__len__"):
        raise UserError("epochs needs data with a length", mend="Give settings.steps instead.")
    return len(data)
