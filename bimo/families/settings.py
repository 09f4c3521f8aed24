"""What a comparison of families may spend, and how its models are made; loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bimo.core.settings import Settings

_WIDTHS = ((0.5, 64), (1.5, 96), (6.0, 128), (20.0, 192), (60.0, 256), (240.0, 384))
_LARGEST_WIDTH = 512
_VOCABULARIES = ((0.3e6, 1024), (1.5e6, 2048), (50e6, 4096))
_LARGEST_VOCABULARY = 8192


@dataclass(frozen=True)
class CompareSettings(Settings):
    """The time for all of it, and what is the same for every family."""

    minutes: float = 5.0
    """For the whole command: three fifths are trained, shared equally by the families; reading, floors, looks at
    held-out rows and answers take the rest."""
    n_layers: int = 4
    """Blocks; an encoder-decoder shares them out, half and half."""
    d_model: int = 0
    """Width of all families; a multiple of 32. 0: by the time, 128 for 5 minutes."""
    vocab_size: int = 0
    """Ids of the tokenizer, which is trained on the training rows. 0: by the amount of text, at most 8192."""
    context_length: int = 0
    """Tokens of text and answer together. 0: as long as nearly all rows are, at most 320; longer texts lose their end,
    for all families alike."""
    batch_tokens: int = 0
    """Tokens per update, padding included. 0: by the time, 1024 for 5 minutes; twice that where answers are
    labels, each of which teaches less than a text."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Of all families."""
    rates: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Learning rates that each family tries in a part of its time, as multiples of the optimizer's own."""
    dropout: float = 0.1
    """Share of activations that training zeroes, in all families."""
    limit: int = 0
    """At most so many measured examples, evenly spread. 0: as many as all families can answer in the time."""
    fields: dict = field(default_factory=dict)
    """Your names of the task's fields: {"source": "english"}."""
    beams: int = 1
    """Above 1: answers are found by beam search; 1: greedy."""
    floors: tuple[str, ...] = ("task",)
    """Simple ways that a model must beat, by name; "task" for those of the task; [] for none."""
    rounds: int = 2000
    """Resamples behind intervals and p-values."""
    seed: int = 0
    """Of weights, order and resamples."""
    threads: int = 0
    """CPU threads, the same for all families. 0: one per core."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def problems(self) -> list[str]:
        least = {"n_layers": 2, "beams": 1, "batch_tokens": 0, "rounds": 100, "vocab_size": 0, "context_length": 0}
        least |= {"d_model": 0, "limit": 0, "seed": 0, "threads": 0}
        found = [f"{n} must be at least {m}, is {getattr(self, n)}" for n, m in least.items() if getattr(self, n) < m]
        if not 0 < self.minutes < float("inf"):
            found.append(f"minutes must be positive, is {self.minutes}")
        if self.d_model % 32:
            found.append(f"d_model must be a multiple of 32, is {self.d_model}")
        if 0 < self.vocab_size < 300:
            found.append(f"vocab_size must be at least 300, is {self.vocab_size}")
        if 0 < self.context_length < 32:
            found.append(f"context_length must be at least 32, is {self.context_length}")
        if not self.rates or not all(0 < rate <= 100 for rate in self.rates):
            found.append(f"rates must be at least one positive number, are {list(self.rates)}")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout must lie in 0 … 1, is {self.dropout}")
        if not all(isinstance(text, str) for pair in self.fields.items() for text in pair):
            found.append(f"fields must be names by names, are {self.fields}")
        return found

    @property
    def width(self) -> int:
        """The width, as told or by the time."""
        fitting = (width for minutes, width in _WIDTHS if self.minutes <= minutes)
        return self.d_model or next(fitting, _LARGEST_WIDTH)

    def vocabulary(self, n_bytes: int) -> int:
        """Ids of the tokenizer, as told or by the bytes of the training text."""
        fitting = (ids for limit, ids in _VOCABULARIES if n_bytes <= limit)
        return self.vocab_size or next(fitting, _LARGEST_VOCABULARY)

    def batch(self, labels: bool) -> int:
        """Tokens per update, as told or by the time (training/budget.py): the square root of what is read."""
        return self.batch_tokens or max(256, round(1024 * (self.minutes / 5) ** 0.5)) * (2 if labels else 1)
