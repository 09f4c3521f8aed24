"""Training a low-rank adapter: a model's linear layers get two small matrices each, and only these are trained.

`attach` changes the model in place and from outside: names of weights stay, the frozen ones get no gradient. `detach`
takes the small matrices out again as an `Adapter`, and the model is what it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo.core.errors import UserError, nearest
from bimo.model.gpt import GPT
from bimo.model.lora import Adapter, LowRank
from bimo.model.packed import PackedTensor


class AdaptedLinear(nn.Linear):
    """A linear layer whose own weight is frozen: y = W x + b + scale * up (down x)."""

    lora_down: nn.Parameter  # (r, in)
    lora_up: nn.Parameter  # (out, r)
    scale: float
    dropout: float

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        low = F.linear(F.dropout(x, self.dropout, self.training) if self.dropout else x, self.lora_down)  # (…, r)
        return F.linear(x, self.weight, self.bias) + F.linear(low * self.scale, self.lora_up)


def attach(
    model: GPT,
    rank: int,
    alpha: float = 0.0,
    targets: Sequence[str] = (),
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> GPT:
    """Freeze a model and give its linear layers a low-rank addition that starts at zero (Hu et al. 2021).

    Args:
        model: Changed in place.
        rank: Of each addition.
        alpha: Divided by the rank it multiplies the addition; 0: twice the rank.
        targets: Last names of the layers, such as "q_proj". Empty: all linear layers of the blocks.
        dropout: Share of the addition's input that is dropped in training.
        generator: Draws the `down` matrices.

    Returns:
        The model.

    Raises:
        UserError: It has no such layer, has one already, or a weight is packed.
    """
    linears = {path: module for path, module in model.named_modules() if type(module) is nn.Linear}
    blocks = {path: module for path, module in linears.items() if path.startswith("layers.")}
    names = dict.fromkeys(path.rpartition(".")[2] for path in blocks)
    odd = next((target for target in targets if target not in names), None)
    if odd is not None or not blocks:
        known = ", ".join(names) or "none"
        raise UserError(f"the blocks have no linear layer {odd!r}{nearest(odd or '', names)}", mend=f"Known: {known}.")
    packed = next((name for name, p in model.named_parameters() if isinstance(p, PackedTensor)), None)
    if packed:
        raise UserError(f"{packed} is packed and cannot be trained beside", mend="Call bimo.unpack(lm.model) first.")
    model.requires_grad_(False)
    for path, linear in blocks.items():
        if targets and path.rpartition(".")[2] not in targets:
            continue
        like = linear.weight
        down = torch.empty(rank, linear.in_features)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)  # as the paper's own code
        linear.__class__ = AdaptedLinear
        assert isinstance(linear, AdaptedLinear), "just made one"
        linear.lora_down = nn.Parameter(down.to(like.device, like.dtype))
        linear.lora_up = nn.Parameter(torch.zeros(linear.out_features, rank, device=like.device, dtype=like.dtype))
        linear.scale, linear.dropout = (alpha or 2.0 * rank) / rank, dropout
    return model


@contextmanager
def unadapted(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model computes what it does without its additions."""
    layers = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    scales = [layer.scale for layer in layers]
    try:
        for layer in layers:
            layer.scale = 0.0
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale


def adapter_in(model: nn.Module, name: str) -> Adapter:
    """A copy of the additions as they are now."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, AdaptedLinear)}
    parts = {
        path: LowRank(layer.lora_down.detach().clone(), layer.lora_up.detach().clone(), layer.scale)
        for path, layer in layers.items()
    }
    return Adapter(name, parts)


def detach(model: GPT, name: str) -> Adapter:
    """Take the additions out: the model computes again what it did before `attach`, and all of it can be trained."""
    adapter = adapter_in(model, name)
    for path in adapter.parts:
        layer = model.get_submodule(path)
        del layer.lora_down, layer.lora_up, layer.scale, layer.dropout
        layer.__class__ = nn.Linear
    model.requires_grad_(True)
    return adapter
