"""The seams of the model: what a module that people bring must offer.

A module is a `torch.nn.Module` with the methods below, and a factory (mostly its class) makes it from the spec. It
obeys the spec, or refuses it with a `UserError` when it is made. Its weights are parameters; other numbers are buffers
that follow from the spec alone, because a model's folder holds its parameters only. `bimo.testing` says whether all
this is so. The seam of the training, the loss, is `bimo.training.losses.Loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from bimo.core.spec import ModelSpec
from bimo.model.backends import Attend, AttnContext


class AttentionPart(Protocol):
    """Lets each token look at those before it."""

    def forward(self, x: Tensor, ctx: AttnContext) -> Tensor:
        """(B, T, C) in and out.

        It turns queries and keys by `ctx.cos` and `ctx.sin`, then appends keys and values to `ctx.cache` and goes on
        with what that returns. Mask, scale and cap are obeyed by `attend`, when it is given `ctx`.
        """
        ...


class FeedForwardPart(Protocol):
    """Works on each token alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) in and out."""
        ...


class NormPart(Protocol):
    """Normalises each vector alone, over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape whose last dimension is the width; the same shape out."""
        ...


class PositionsPart(Protocol):
    """Tells each token its place; `bimo.model.positions.NoPositions` says more and is good to inherit from."""

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        """What the first block reads: (B, T, C) in and out, at places (B or 1, T)."""
        ...

    def rotation(self, steps: Tensor, *, windowed: bool) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines, (B or 1, T, 1, pairs) each, by which queries and keys are turned; None: not at all."""
        ...

    def stretch(self, length: int) -> int:
        """Which set of frequencies a text of so many tokens has."""
        ...


MakeAttention = Callable[[ModelSpec, int, Attend], AttentionPart]
"""(spec, number of the layer, backend) → module."""
MakeFeedForward = Callable[[ModelSpec], FeedForwardPart]
MakeNorm = Callable[[ModelSpec, int], NormPart]
"""(spec, width) → module."""
MakePositions = Callable[[ModelSpec], PositionsPart]
