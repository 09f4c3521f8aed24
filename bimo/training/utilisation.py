"""Model FLOP utilisation (MFU, Chowdhery et al. 2022): which share of what the maker promises goes into the model.

Only operations that the model itself needs are counted: activations that are computed again, and an optimizer's own
matrix products, are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bimo.training.callbacks.protocol import StepResult
from bimo.training.datasheets import peak_flops

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer


def promised_flops(device: str) -> float:
    """bf16 operations per second by the data sheet; 0 where there is none."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.startswith("cuda") else 0.0


def utilisation(trainer: Trainer, result: StepResult, promised: float | None = None) -> float:
    """The share that an update reached, over all processes; 0: unknown.

    Args:
        trainer: The run.
        result: Its last update.
        promised: Operations per second of one device; None: by its data sheet.
    """
    flops = getattr(trainer.model, "flops_per_token", None)
    promised = promised_flops(trainer.device) if promised is None else promised
    if flops is None or not promised:
        return 0.0
    return float(flops()) * result.tokens_per_second / (promised * trainer.team.size)
