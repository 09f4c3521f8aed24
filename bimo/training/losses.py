"""Losses: the sum over trained tokens, to be divided by their count once per update.

A mean of means would give a token of a short row more weight than one of a long row as soon as gradients are
accumulated, so nothing in here divides. The default never holds all logits: it goes through the positions in chunks and
computes the gradient in the same pass (the idea of Liger Kernel, Hsu et al. 2024), which saves three tensors of (B, T,
V).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A user's own loss: (logits (B, T, V), targets (B, T), weights (B, T)) → a scalar, the mean over trained tokens.

There is always one to train on. The loop multiplies by the sum of the weights, so that parts of a batch add up exactly;
`bimo.testing.check_loss` says whether a loss allows that.
"""

# Logits held at once: 16 MB in float32 stay near the caches of a CPU, a GPU needs more to be busy.
_CHUNK_LOGITS = {"cpu": 2**22, "other": 2**27}


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The plain form of the default loss, with all logits in memory: mean negative log-likelihood in nats."""
    nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return (nats * weights.flatten()).sum() / weights.sum()


def chunked_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, softcap: float = 0.0
) -> Tensor:
    """Weighted sum of the negative log-likelihood in nats, from hidden states and the head's matrix.

    Args:
        hidden: Last hidden states, (B, T, C).
        head: The head's matrix, (V, C).
        targets: int64, (B, T).
        weights: float32, (B, T).
        softcap: The model's bound of its logits, c tanh(logit / c); 0: none.

    Returns:
        A scalar in float32. Under autocast the products run in the autocast dtype, the softmax in float32.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, head = hidden.to(dtype), head.to(dtype)
    flat = hidden.flatten(0, -2)  # (B * T, C)
    loss: Tensor = _ChunkedCrossEntropy.apply(flat, head, targets.flatten(), weights.flatten(), softcap)
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, softcap: float) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden) if wanted else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if wanted else None
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        kind = "cpu" if hidden.device.type == "cpu" else "other"
        rows = max(1, _CHUNK_LOGITS[kind] // head.shape[0])
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            x, target, weight = hidden[part], targets[part, None], weights[part, None].float()
            logits = (x @ head.T).float()  # (rows, V)
            slope = None
            if softcap:
                logits = logits.div_(softcap).tanh_()
                slope = 1 - logits.square()  # of the bounded by the unbounded logit
                logits.mul_(softcap)
            log_sum = logits.logsumexp(dim=-1, keepdim=True)
            total += ((log_sum - logits.gather(-1, target)) * weight).sum()
            if grad_hidden is None or grad_head is None:
                continue
            grad = logits.sub_(log_sum).exp_().mul_(weight)  # softmax x weight, in place of the logits
            grad = grad.scatter_add_(-1, target, -weight)
            grad = (grad if slope is None else grad.mul_(slope)).to(x.dtype)
            torch.mm(grad, head, out=grad_hidden[part])
            if x.dtype == torch.float32:
                grad_head.addmm_(grad.T, x)
            else:
                grad_head += grad.T @ x
        ctx.head_dtype = head.dtype
        ctx.save_for_backward(*(g for g in (grad_hidden, grad_head) if g is not None))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_head = ctx.saved_tensors
        scale = grads[0]
        return grad_hidden * scale.to(grad_hidden.dtype), (grad_head * scale).to(ctx.head_dtype), None, None, None
