"""From a batch to a gradient: forward and backward passes over micro-batches, the gradient's norms, and clipping.

Accumulation is exact: gradients are sums over tokens, divided by the count of the whole batch.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bimo.core.batch import Batch
from bimo.core.config import TrainingSettings
from bimo.core.errors import UserError
from bimo.training import parallel
from bimo.training.callbacks import Gradient
from bimo.training.execution import Execution
from bimo.training.faults import Fault, check_finite, is_out_of_memory, nothing_to_train_on
from bimo.training.losses import ChunkedLoss, Loss, mean_of
from bimo.training.randomness import undisturbed
from bimo.training.signals import StopSignals
from bimo.training.state import TrainingState
from bimo.training.team import Team

_CPU_MICRO_TOKENS = 2048  # measured: half the memory of 4096 at the same speed; 1024 costs 4 %, 512 costs 9 %


@dataclass(frozen=True, slots=True)
class Totals:
    """Of a batch, over all processes.

    Attributes:
        trained: Sum of its weights.
        tokens: How many it has.
        parts: Micro-batches of the process that has most.
    """

    trained: float
    tokens: int
    parts: int


class Passes:
    """What a trainer computes between a batch and an update of the weights; `Trainer` sets the attributes."""

    model: Any
    settings: TrainingSettings
    loss: Loss
    device: str
    precision: str
    state: TrainingState
    execution: Execution
    team: Team
    _signals: StopSignals

    def totals(self, batch: Batch, fault: Fault | None) -> Totals:
        """Of the batch that all processes read together.

        Raises:
            Fault: The given one, or that of another process; or there is nothing to train on in any.
        """
        rows = 0 if fault else math.ceil(batch.n_rows / self.micro_rows(batch))
        mine = (0.0, 0.0, 0.0) if fault else (batch.weight_sum(), float(batch.n_tokens), float(rows))
        whole = self.team.agree(fault, *mine)[:: self.team.tensor]
        trained, tokens, _ = (sum(column) for column in zip(*whole, strict=True))
        if trained == 0:
            raise nothing_to_train_on(batch, self.state.step + 1)
        return Totals(trained, int(tokens), int(max(row[2] for row in whole)))

    def backward(self, batch: Batch, totals: Totals) -> Tensor:
        """Add up the gradient over micro-batches and processes.

        Returns:
            This process's part of the mean loss over all trained tokens.
        """
        loss, fault = torch.zeros((), device=self.device), None
        try:
            loss = self._backward(batch, totals)
        except Fault as error:
            fault = error
        if self.team.whole:
            self.team.agree(fault)
        elif fault is not None:  # the others wait for this process in the middle of a layer, and cannot be told
            raise UserError(fault.what, mend=fault.mend)
        parallel.reduce_gradients(self.model, self.team)
        return loss

    def _backward(self, batch: Batch, totals: Totals) -> Tensor:
        loss = torch.zeros((), device=self.device)
        rows = self.micro_rows(batch)
        if self.device.startswith("cuda"):
            batch = batch.pinned()
        out_of_memory = ""
        try:
            with self._signals.abandoning():
                for part in self._parts(batch, rows, totals.parts):
                    self.execution.settle(self, part)
                    with self.execution.running(self.model, part):
                        with self.execution.forgetting(self.model, part):
                            part_loss = self.loss_sum(part.to(self.device)) / totals.trained
                        part_loss.backward()
                    loss += part_loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            out_of_memory = str(error).partition("\n")[0]
        if out_of_memory and rows == 1 and self.execution.keep_less():
            self.model.zero_grad(set_to_none=True)
            return self._backward(batch, totals)
        if out_of_memory:  # raised here, because the error above holds on to all activations
            raise Fault(
                "out of memory",
                f"memory is used up at step {self.state.step + 1} with {rows} row(s) at once ({out_of_memory})",
                mend="Lower training.micro_batch_size or model.context_length.",
                rows=rows,
            )
        return loss

    def _parts(self, batch: Batch, rows: int, count: int) -> Iterator[Batch]:
        """Micro-batches: those with something to train on, or, where processes compute each layer together, as many as
        the one with most of them has."""
        parts = list(batch.split(rows))
        if self.team.whole:
            yield from (part for part in parts if part.weight_sum())
        else:
            yield from parts
            yield from itertools.repeat(parts[0].without_weight(), count - len(parts))

    def attempt(self, batch: Batch) -> None:
        """Compute the gradient of a (micro-)batch at the whole depth and forget it, to see how long it takes."""
        with undisturbed(), _whole(self.model), self.execution.running(self.model, batch):
            with self.execution.forgetting(self.model, batch):
                loss = self.loss_sum(batch.to(self.device))
            loss.backward()
        self.model.zero_grad(set_to_none=True)

    @property
    def rows_together(self) -> int:
        """How many neighbouring rows of a batch the loss compares, such as the two of a pair: they are not parted."""
        return int(getattr(self.loss, "rows_together", 1))

    def micro_rows(self, batch: Batch) -> int:
        """Rows of a forward pass: the setting, or what keeps the activations small without slowing the products."""
        rows = self.settings.micro_batch_size or batch.n_rows
        if not self.settings.micro_batch_size and self.device == "cpu":
            rows = max(1, _CPU_MICRO_TOKENS // batch.ids.shape[1])
        together = self.rows_together
        most = min(rows, self.state.most_rows or rows, max(1, batch.n_rows))
        return max(together, most - most % together)

    def loss_sum(self, batch: Batch) -> Tensor:
        """Loss of a (micro-)batch, summed over its trained tokens."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"):
            hidden = self.model.hidden(batch.ids, positions=batch.positions, documents=batch.documents)  # (B, T, C)
            if isinstance(self.loss, ChunkedLoss):
                return self.loss.sum(hidden, self.model.lm_head.weight, batch, self.model.spec.logit_softcap)
            logits, weight = self.model.logits(hidden), batch.weights.sum()
            if not weight:  # a mean over no tokens is 0 / 0
                return logits.sum() * 0.0
            return mean_of(self.loss, logits, batch.targets, batch.weights) * weight

    def loss_of(self, batch: Batch) -> float:
        """Mean loss of a batch, without training on it."""
        self.model.eval()
        totals = self.totals(batch, None)
        with torch.no_grad():
            parts = self._parts(batch, self.micro_rows(batch), totals.parts)
            losses = [self.loss_sum(part.to(self.device)) for part in parts]
        parallel.reshard(self.model)
        self.model.train()
        return self.team.total(sum(loss.item() for loss in losses))[0] / totals.trained

    def measure(self, batch: Batch, loss: Tensor) -> Gradient:
        """Loss and norms, in one transfer from the device; a NaN or an infinity ends the step here."""
        named = [(name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None]
        if self.team.alone:
            norms = torch._foreach_norm([gradient for _, gradient in named])
            total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros_like(loss)
            first, second, *rest = torch.stack([loss, total, *norms]).tolist()
        else:
            *rest, first = parallel.norms([gradient for _, gradient in named], self.team, loss).tolist()
            second = math.hypot(*rest)
        gradient = Gradient(batch, first, second, rest, [name for name, _ in named])
        check_finite(gradient.loss, gradient.norm, self.state.step + 1)
        return gradient

    def clip(self, norm: float) -> None:
        """Scale the gradient down where its norm is above the limit."""
        limit = self.settings.grad_clip
        if limit and norm + 1e-6 > limit:  # as torch.nn.utils.clip_grad_norm_, without a pass that multiplies by one
            parallel.scale_gradients(self.model, limit / (norm + 1e-6))


@contextlib.contextmanager
def _whole(model: Any) -> Iterator[None]:
    """Within it, no layer waits."""
    depth = getattr(model, "depth", None)
    model.depth = None
    try:
        yield
    finally:
        model.depth = depth
