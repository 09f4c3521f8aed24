"""A head of labels: a linear layer on the last hidden state, in the place of words that the model says.

`attach_head` puts it into a model from outside, so that trainer, optimizer and checkpoints see it; `detach_head` takes
it out again, and the model is a plain GPT.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bimo.model.gpt import GPT

_NAME = "label_head"


@dataclass(frozen=True)
class LabelHead:
    """A trained head.

    Attributes:
        weight: (labels, C).
        bias: (labels,).
    """

    weight: Tensor
    bias: Tensor

    def probabilities(self, states: Tensor) -> Tensor:
        """Hidden states of the last tokens, (…, C) → (…, labels)."""
        return (states.float() @ self.weight.T + self.bias).softmax(dim=-1)

    def shares(self, states: np.ndarray) -> np.ndarray:
        """The same for an engine's states, float32."""
        found: np.ndarray = self.probabilities(torch.from_numpy(states)).numpy()
        return found


def attach_head(model: GPT, n_labels: int, generator: torch.Generator | None = None) -> nn.Linear:
    """Give a model a head of so many labels, which starts near zero; also where the model itself is frozen."""
    like = model.lm_head.weight
    head = nn.Linear(model.spec.d_model, n_labels, device=like.device)
    nn.init.normal_(head.weight, std=0.02, generator=generator)
    nn.init.zeros_(head.bias)
    model.add_module(_NAME, head)
    return head


def detach_head(model: GPT) -> LabelHead:
    """Take the head out."""
    head = getattr(model, _NAME)
    assert isinstance(head, nn.Linear), "attach_head has put it there"
    delattr(model, _NAME)
    return LabelHead(head.weight.detach().cpu().float().clone(), head.bias.detach().cpu().float().clone())
