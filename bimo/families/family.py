"""The contract of a family: made with so many weights, trained step by step against a clock, asked at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bimo.core.batch import Batch
from bimo.core.config import TrainingSettings
from bimo.core.spec import ModelSpec
from bimo.evaluation.answer import Answer
from bimo.tasks import Task
from bimo.tokenizer import Tokenizer


@dataclass(frozen=True)
class Common:
    """What is the same for all families.

    Attributes:
        task: What is learned.
        tokenizer: Text to ids.
        spec: The shape of the GPT; the others are made as wide, with as many layers and weights.
        n_parameters: Of the GPT, embeddings among them.
        training: Optimizer, rate, clipping, threads, device.
        precision: fp32 or bf16.
        labels: Those of the task; none for a task that is answered in words.
        answer_tokens: How long an answer may be.
        beams: Above 1, answers are found by beam search.
    """

    task: Task
    tokenizer: Tokenizer
    spec: ModelSpec
    n_parameters: int
    training: TrainingSettings
    precision: str
    labels: Sequence[str]
    answer_tokens: int
    beams: int

    @property
    def device(self) -> str:
        """Where all of them compute."""
        return self.training.device


class Family(Protocol):
    """One kind of model.

    Attributes:
        name: As tables show it.
        about: Its shape, in words.
        n_parameters: How many weights it has, shared ones counted once.
    """

    name: str
    about: str
    n_parameters: int

    def begin(self, rate: float) -> None:
        """New random weights, always the same, and a new optimizer with this peak rate."""
        ...

    def step(self, batch: Batch, share: float) -> float:
        """One update with a share of the peak rate; gives the loss before it, infinite where it cannot be computed."""
        ...

    def loss(self, batches: Sequence[Batch]) -> float:
        """Mean loss on held-out rows, in nats per token or label that is to be said."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """A copy of all weights."""
        ...

    def put_back(self, weights: dict[str, Tensor]) -> None:
        """Take such a copy."""
        ...

    def answer(self, prompts: Sequence[list[int]]) -> list[Answer]:
        """An answer to each prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Sides:
    """The rows of a batch, parted into what is read and what is to be said, each padded to its longest.

    Attributes:
        prompts: (B, S).
        seen: bool, (B, S): false at padding.
        answers: (B, A), their end token among them.
        said: bool, (B, A).
    """

    prompts: Tensor
    seen: Tensor
    answers: Tensor
    said: Tensor


def sides_of(batch: Batch, pad: int) -> Sides:
    """Prompt and answer of each row: the very ids that the GPT reads and says."""
    prompts, answers = [], []
    for ids, targets, weights in zip(batch.ids, batch.targets, batch.weights, strict=True):
        places = weights.nonzero()[:, 0]
        first, last = int(places[0]), int(places[-1])
        prompts.append(ids[: first + 1])
        answers.append(targets[first : last + 1])
    return Sides(*padded(prompts, pad), *padded(answers, pad))


def padded(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Rows of ids side by side, (B, T), and where they are no padding."""
    ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1])[None] < lengths[:, None]


def in_groups(prompts: Sequence[list[int]], size: int) -> Iterator[list[int]]:
    """Places of the prompts, those of like length together, so that there is little padding."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(order), size):
        yield order[start : start + size]
