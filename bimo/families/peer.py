"""What the families from transformers share: as many weights as the GPT, and the same step of training.

The step is the trainer's: the same optimizer with the same groups and rates, clipping, precision and threads. Only the
model and its loss are others.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bimo.core import machine
from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.families.family import Common
from bimo.training.muon import Muon
from bimo.training.optimizers import adamw, set_rates

_GAP = 0.05
"""The largest share by which the number of weights may differ."""
_EMBEDDING, _OTHERS, _INNER_BLOCKS = 0.25, 0.5, 4  # as for the GPT: shares of the matrices' rate, parts of a width


def need_transformers() -> Any:
    """The package, without its remarks on what else is not installed.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "transformers is not installed, and two of the families come from it",
            where="compare",
            mend='pip install "bimo[hf]"',
        )
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import transformers

    return transformers


def matched(build: Callable[[int], nn.Module], wanted: int) -> tuple[int, nn.Module]:
    """The feed-forward width with which a model has as many weights as wanted, and that model.

    Args:
        build: Makes it with a width; its number of weights grows evenly with it.
        wanted: Number of weights.

    Raises:
        UserError: No width comes close: the rest of the model is too large already.
    """
    with torch.device("meta"):
        few, more = (n_weights(build(width)) for width in (8, 16))
    width = max(8, _INNER_BLOCKS * round((8 + 8 * (wanted - few) / (more - few)) / _INNER_BLOCKS))
    model = build(width)
    gap = n_weights(model) / wanted - 1
    if abs(gap) > _GAP:
        raise UserError(
            f"no {type(model).__name__} of this width and depth has {wanted:,} weights; the closest is {gap:+.0%} off",
            where="compare",
            mend="Change --d_model or --n_layers.",
        )
    return width, model


def n_weights(model: nn.Module) -> int:
    """Weights that are learned, shared ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


class Peer:
    """A model of transformers with random weights, trained like the GPT.

    Args:
        common: What is the same for all families.
        model: The model; its weights are drawn anew at each beginning.
        loss_sum: (model, batch) → the loss summed over what is to be said, and how much that is.
    """

    def __init__(self, common: Common, model: nn.Module, loss_sum: Callable[[Any, Batch], tuple[Tensor, int]]) -> None:
        self.common, self.model, self.loss_sum = common, model, loss_sum
        self.n_parameters = n_weights(model)
        self.optimizer: torch.optim.Optimizer | None = None
        self.rate = 0.0
        self.first = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def begin(self, rate: float) -> None:
        """As `Family.begin`."""
        self.put_back(self.first)
        self.rate = rate
        self.model.to(self.common.device)
        training = replace(self.common.training, learning_rate=rate, min_learning_rate=0.0)
        self.optimizer = (_muon if training.optimizer == "muon" else adamw)(self.model, training)
        machine.set_threads(training.threads)

    def step(self, batch: Batch, share: float) -> float:
        """As `Family.step`."""
        assert self.optimizer is not None, "begin comes first"
        training = self.common.training
        self.model.train()
        set_rates(self.optimizer, self.rate * share, share, False)
        with self._autocast():
            total, count = self.loss_sum(self.model, batch)
        loss = total / count
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), training.grad_clip or math.inf)
        fine = bool(torch.isfinite(norm) & torch.isfinite(loss))
        if fine:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach()) if fine else math.inf

    @torch.no_grad()
    def loss(self, batches: Sequence[Batch]) -> float:
        """As `Family.loss`."""
        self.model.eval()
        sums = [self.loss_sum(self.model, batch) for batch in batches]
        return sum(float(total) for total, _ in sums) / max(1, sum(count for _, count in sums))

    def weights(self) -> dict[str, Tensor]:
        """As `Family.weights`."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def put_back(self, weights: dict[str, Tensor]) -> None:
        """As `Family.put_back`."""
        self.model.load_state_dict(weights)

    def _autocast(self) -> Any:
        kind = torch.device(self.common.device).type
        return torch.autocast(kind, torch.bfloat16, enabled=self.common.precision == "bf16")


def seeded(seed: int, build: Callable[[], Any]) -> Any:
    """What is built with random numbers of this seed; the numbers of others are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _muon(model: nn.Module, training: Any) -> torch.optim.Optimizer:
    """Muon for the matrices of the layers, cut into heads and groups of neurons as in the GPT; AdamW for the rest."""
    matrices: defaultdict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
    rest: defaultdict[float, list[nn.Parameter]] = defaultdict(list)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    config: Any = model.config
    heads = getattr(config, "num_attention_heads", None) or config.encoder_attention_heads
    for name, p in model.named_parameters():
        if not p.requires_grad:  # sinusoidal positions
            continue
        if p.dim() >= 2 and ".layers." in name:
            matrices[(*p.shape, *_blocks_of(name, p, heads))].append(p)
        else:
            rest[_EMBEDDING if id(p) in embeddings else _OTHERS].append(p)
    common = {"momentum": training.momentum, "weight_decay": training.weight_decay}
    common |= {"rounded": training.precision != "fp32"}
    groups: list[dict[str, Any]] = [
        {"params": same, "blocks": blocks, "along": along, **common} for (*_, blocks, along), same in matrices.items()
    ]
    betas = (training.beta1, training.beta2)
    groups += [{"params": same, "betas": betas, "rate_share": share} for share, same in rest.items()]
    return Muon([{"lr": training.learning_rate * group.get("rate_share", 1.0), **group} for group in groups])


def _blocks_of(name: str, parameter: nn.Parameter, heads: int) -> tuple[int, int]:
    """Blocks of a matrix and the dimension along which they lie: the head's or neuron's outputs, or its inputs."""
    along = int(name.endswith(("out_proj.weight", "fc2.weight", "Wo.weight")))
    fused = 3 if "Wqkv" in name else 1  # queries, keys and values in one matrix
    blocks = fused * heads if "attn" in name else _INNER_BLOCKS
    return (blocks if parameter.shape[along] % blocks == 0 else 1), along
