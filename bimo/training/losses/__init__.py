"""Losses: the sum over trained tokens, to be divided by their count once per update.

A loss of a user's own is any function (logits, targets, weights) → mean over trained tokens (`Loss`). The ready ones
can be called like that, and also give the sum from hidden states and the head's matrix, chunk by chunk, without ever
holding all logits (`ChunkedLoss`).
"""

from bimo.training.losses.chunks import ChunkedLoss, Each, Loss
from bimo.training.losses.distillation import Distillation, divergence
from bimo.training.losses.focal import Focal
from bimo.training.losses.labels import LabelLoss
from bimo.training.losses.likelihood import CrossEntropy, LabelSmoothing, ZLoss, chunked_cross_entropy, cross_entropy
from bimo.training.losses.naming import check_scalar, chosen_loss, loss_by_name, mean_of
from bimo.training.losses.preference import DirectPreference, Preference, SimplePreference
from bimo.training.losses.unlikelihood import Unlikelihood

__all__ = [
    "ChunkedLoss",
    "CrossEntropy",
    "DirectPreference",
    "Distillation",
    "Each",
    "Focal",
    "LabelLoss",
    "LabelSmoothing",
    "Loss",
    "Preference",
    "SimplePreference",
    "Unlikelihood",
    "ZLoss",
    "check_scalar",
    "chosen_loss",
    "chunked_cross_entropy",
    "cross_entropy",
    "divergence",
    "loss_by_name",
    "mean_of",
]
