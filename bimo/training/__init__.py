"""From batches to weights: one loop, its losses, optimizers, schedules, callbacks and checkpoints."""

from bimo.training.callbacks import (
    ActivationStatistics,
    BestCheckpoint,
    Callback,
    Checkpoints,
    EarlyStopping,
    Event,
    EventsFile,
    Gradient,
    GradientStatistics,
    MetricsFile,
    Progress,
    RateFinder,
    RateReport,
    Sampling,
    ShortRows,
    StepResult,
    TensorBoard,
    TimeBudget,
    WeightAverage,
    find_rate,
    make_callbacks,
)
from bimo.training.faults import Fault
from bimo.training.losses import cross_entropy
from bimo.training.trainer import Trainer
from bimo.training.watchdog import FlightRecorder, Watchdog

__all__ = [
    "ActivationStatistics",
    "BestCheckpoint",
    "Callback",
    "Checkpoints",
    "EarlyStopping",
    "Event",
    "EventsFile",
    "Fault",
    "FlightRecorder",
    "Gradient",
    "GradientStatistics",
    "MetricsFile",
    "Progress",
    "RateFinder",
    "RateReport",
    "Sampling",
    "ShortRows",
    "StepResult",
    "TensorBoard",
    "TimeBudget",
    "Trainer",
    "Watchdog",
    "WeightAverage",
    "cross_entropy",
    "find_rate",
    "make_callbacks",
]
