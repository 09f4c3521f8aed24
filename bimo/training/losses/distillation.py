"""Distillation: learn what a teacher thinks of every id, not only which one came (Hinton, Vinyals, Dean 2015)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.model.gpt import GPT
from bimo.training.losses.chunks import ChunkedLoss, Each, check_range, wide


@dataclass(frozen=True, eq=False)
class Distillation(ChunkedLoss):
    """alpha x T² x KL(teacher || student), both at temperature T, + (1 - alpha) x cross-entropy.

    The factor T² keeps the size of the gradient when the temperature changes. The teacher reads the same ids, without
    dropout and without gradient; the logits of a GPT are made chunk by chunk, like the student's.

    Args:
        teacher: A GPT, or any module ids (B, T) → logits (B, T, V), with the student's tokenizer.
        temperature: Above 1, improbable ids count more.
        alpha: Share of the teacher; the rest is for the targets.
    """

    teacher: nn.Module
    temperature: float = 2.0
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, nn.Module):
            raise UserError(
                f"the teacher must be a model, is {self.teacher!r}",
                where="loss",
                mend="Open it first: bimo.load(…).model.",
            )
        check_range("temperature", self.temperature, 1e-3)
        check_range("alpha", self.alpha, 0, 1)
        self.teacher.eval()

    def on(self, batch: Batch) -> Each:
        targets, teacher_logits = batch.targets.flatten(), self._read(batch)

        def each(logits: Tensor, part: slice) -> Tensor:
            theirs = wide(teacher_logits(part))  # (rows, V)
            self._check("ids", theirs.shape[-1], logits.shape[-1])
            soft = divergence(logits, theirs, self.temperature)
            hard = -logits.log_softmax(dim=-1).gather(-1, targets[part, None]).squeeze(-1)
            return self.alpha * soft + (1 - self.alpha) * hard

        return each

    def sum(self, hidden: Tensor, head: Tensor, batch: Batch, softcap: float = 0.0) -> Tensor:
        if isinstance(self.teacher, GPT):  # before it meets an id or a place that it does not know
            self._check("ids", self.teacher.spec.vocab_size, head.shape[0])
            length = batch.ids.shape[1]
            self._check("positions", min(self.teacher.spec.context_length, length), length)
        return super().sum(hidden, head, batch, softcap)

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Refused: from logits and targets alone nobody knows what the teacher has to read."""
        raise UserError(
            "distillation needs the ids that the teacher reads",
            where="loss",
            mend="Give it to a Trainer, or use `sum`; `divergence` compares logits that you have.",
        )

    @torch.no_grad()
    def _read(self, batch: Batch) -> Callable[[slice], Tensor]:
        """What the teacher says: some positions of the flat batch → its logits, (rows, V)."""
        teacher = self.teacher.to(batch.ids.device)
        if isinstance(teacher, GPT):
            hidden = teacher.hidden(batch.ids, positions=batch.positions, documents=batch.documents)
            return _Head(teacher, hidden.flatten(0, 1))
        logits = teacher(batch.ids)
        if not isinstance(logits, Tensor) or logits.shape[:-1] != batch.ids.shape:
            raise UserError(
                f"the teacher gives {type(logits).__name__} and not logits (B, T, V)",
                where="loss",
                mend="Wrap it in a module that does.",
            )
        return logits.flatten(0, 1).__getitem__  # (B * T, V)

    @staticmethod
    def _check(what: str, teacher: int, student: int) -> None:
        if teacher != student:
            raise UserError(
                f"the teacher knows {teacher} {what} and the student {student}",
                where="loss",
                mend="Take a teacher with the student's tokenizer, and rows no longer than its context.",
            )


@dataclass(frozen=True)
class _Head:
    """Logits of a GPT that has already read: only of those positions that are asked for."""

    gpt: GPT
    hidden: Tensor  # (B * T, C)

    @torch.no_grad()
    def __call__(self, part: slice) -> Tensor:
        return self.gpt.logits(self.hidden[part])


def divergence(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T² KL(teacher || student) in nats at temperature T, of each position: (…, V) → (…)."""
    ours = (logits / temperature).log_softmax(dim=-1)
    theirs = (teacher_logits / temperature).log_softmax(dim=-1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(dim=-1)
