"""A loss without all logits: chunks of positions, value and gradient in the same pass.

Logits are by far the largest tensor of a training step: V numbers per position, three times with their gradient. Here a
chunk's logits are made, turned into its loss and its gradient, and forgotten (the idea of Liger Kernel, Hsu et al.
2024). A mean of means would give a token of a short row more weight than one of a long row as soon as gradients are
accumulated, so chunks are summed, and the loop divides once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from bimo.core.batch import Batch
from bimo.core.errors import UserError

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A user's own loss: (logits (B, T, V), targets (B, T), weights (B, T)) → a scalar, the mean over trained tokens.

There is always one to train on. The loop multiplies by the sum of the weights, so that parts of a batch add up exactly;
`bimo.testing.check_loss` says whether a loss allows that.
"""

Each = Callable[[Tensor, slice], Tensor]
"""Logits (N, V) of some of a batch's B * T positions, and which ones these are → the loss of each, (N,), in nats."""

ChunkFunction = Callable[[Tensor, slice, bool], tuple[Tensor, Tensor | None]]
"""Logits (N, V), which it may change, in the dtype of the product that made them; of which positions; whether a
gradient is wanted. Gives their weighted sum in float32, and its gradient (N, V)."""

# Logits held at once: 16 MB in float32 stay near the caches of a CPU, a GPU needs more to be busy.
CHUNK_LOGITS = {"cpu": 2**22, "other": 2**27}
_MOSTLY = 0.9  # of the positions are trained: taking them out would save less than it costs
_GPU_BYTES_PER_LOGIT = 160  # of its memory: logits and their gradient in bf16 take a fortieth, 2 GB of 80

COMPILED: ContextVar[bool] = ContextVar("whether the arithmetic of a chunk is compiled where it can be", default=False)


class ChunkedLoss(ABC):
    """A loss that needs no more than the logits of some positions at a time.

    `on` is all that one of your own has to say: what each position costs. Objects are also a `Loss`: called with all
    logits, they give the mean over trained tokens.

    Attributes:
        position_by_position: Whether a position costs what its own logits and target say, whatever stands around it:
            then those that are not trained need no logits.
    """

    position_by_position = False

    @abstractmethod
    def on(self, batch: Batch) -> Each:
        """The loss of each position of a batch, before weights; only differentiable functions of the logits.

        Called once per forward pass. Where the object is called as a `Loss`, there is nothing but targets and weights:
        then the batch's ids are its targets.
        """

    def chunk_function(self, batch: Batch) -> ChunkFunction:
        """Value and gradient of a chunk, by autograd; a loss whose gradient has a closed form says it here."""
        each, weights = self.on(batch), batch.weights.flatten()

        def by_autograd(logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
            with torch.enable_grad():
                leaf = wide(logits).requires_grad_(wanted)
                total = (each(leaf, part) * weights[part]).sum()
            return total.detach(), torch.autograd.grad(total, leaf)[0] if wanted else None

        return by_autograd

    def sum(self, hidden: Tensor, head: Tensor, batch: Batch, softcap: float = 0.0) -> Tensor:
        """Weighted sum over a batch, from hidden states and the head's matrix; see `sum_in_chunks`."""
        if self.position_by_position and not COMPILED.get():  # the compiler wants shapes that stay
            hidden, batch = _trained(hidden, batch)
        return sum_in_chunks(hidden, head, self.chunk_function(batch), softcap)

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The plain form, with all logits (B, T, V) in memory: the mean over trained tokens."""
        each = self.on(Batch(targets, targets, weights))
        nats = each(wide(logits.flatten(0, 1)), slice(None))  # (B * T,)
        return (nats * weights.flatten()).sum() / weights.sum()


def _trained(hidden: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """The positions that are trained, as one row, where many are not: prompts and padding cost most of the logits."""
    counts = batch.weights.flatten() != 0
    places = counts.nonzero().squeeze(-1)
    if len(places) > _MOSTLY * counts.numel():
        return hidden, batch
    targets = batch.targets.flatten()[places][None]
    return hidden.flatten(0, -2)[places][None], Batch(targets, targets, batch.weights.flatten()[places][None])


def sum_in_chunks(hidden: Tensor, head: Tensor, chunk: ChunkFunction, softcap: float = 0.0) -> Tensor:
    """Sum of a loss over all positions, from hidden states and the head's matrix.

    Args:
        hidden: Last hidden states, (B, T, C).
        head: The head's matrix, (V, C).
        chunk: The loss and its gradient for some positions.
        softcap: The model's bound of its logits, c tanh(logit / c); 0: none.

    Returns:
        A scalar in float32 (float64 when the states are). Under autocast the products run in the autocast dtype, the
        loss in float32.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    total: Tensor = _InChunks.apply(hidden.flatten(0, -2), head, chunk, softcap)
    return total


def chunk_rows(device: torch.device, n_logits: int) -> int:
    """Positions of a chunk; on a GPU a power of two, which fills it well and mostly leaves no chunk of another size."""
    if device.type == "cpu":
        return max(1, CHUNK_LOGITS["cpu"] // n_logits)
    most = CHUNK_LOGITS["other"]
    if device.type == "cuda":
        most = torch.cuda.get_device_properties(device).total_memory // _GPU_BYTES_PER_LOGIT
    return 1 << max(0, (most // n_logits).bit_length() - 1)


def wide(numbers: Tensor) -> Tensor:
    """In float32 where they are narrower: an exponential needs it."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def check_range(name: str, value: object, low: float, high: float = math.inf) -> None:
    """Refuse a parameter of a loss that is no number of this range.

    Raises:
        UserError: Which parameter, and what it may be.
    """
    if not isinstance(value, (int, float)) or not low <= value <= high or math.isinf(value):
        allowed = f"a number from {low:g} to {high:g}" if high < math.inf else f"a number of at least {low:g}"
        raise UserError(f"{name} must be {allowed}, is {value!r}", where="loss", mend="Change it.")


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, chunk: ChunkFunction, softcap: float) -> Tensor:
        by_hidden, by_head = ctx.needs_input_grad[:2]
        wanted = by_hidden or by_head
        ctx.head_dtype, head = head.dtype, head.to(hidden.dtype)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if by_hidden else None  # (B * T, C)
        grad_head = torch.zeros_like(head, dtype=exact) if by_head else None  # (V, C); None: the head is frozen
        total = torch.zeros((), device=hidden.device, dtype=exact)
        rows = chunk_rows(hidden.device, head.shape[0])
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            x = hidden[part]
            logits = x @ head.T  # (rows, V)
            slope = None
            if softcap:
                logits = wide(logits).div_(softcap).tanh_()
                slope = 1 - logits.square()  # of the bounded by the unbounded logit
                logits.mul_(softcap)
            value, grad = chunk(logits, part, wanted)
            total += value
            if grad is None:
                continue
            grad = (grad if slope is None else grad.mul_(slope)).to(x.dtype)
            if grad_hidden is not None:
                torch.mm(grad, head, out=grad_hidden[part])
            if grad_head is not None and x.dtype == exact:
                grad_head.addmm_(grad.T, x)
            elif grad_head is not None:
                grad_head += grad.T @ x
        ctx.save_for_backward(grad_hidden, grad_head)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grads[0]
        by_hidden = None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype)
        by_head = None if grad_head is None else (grad_head * scale).to(ctx.head_dtype)
        return by_hidden, by_head, None, None
