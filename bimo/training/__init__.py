"""From batches to weights: one loop, its losses, optimizers, schedules, callbacks and checkpoints."""

from bimo.training.callbacks import (
    Callback,
    Checkpoints,
    EarlyStopping,
    Event,
    EventsFile,
    Gradient,
    MetricsFile,
    StepResult,
    TimeBudget,
)
from bimo.training.faults import Fault
from bimo.training.losses import cross_entropy
from bimo.training.trainer import Trainer

__all__ = [
    "Callback",
    "Checkpoints",
    "EarlyStopping",
    "Event",
    "EventsFile",
    "Fault",
    "Gradient",
    "MetricsFile",
    "StepResult",
    "TimeBudget",
    "Trainer",
    "cross_entropy",
]
