"""Callbacks: what sees and changes a run without being part of the loop; the protocol and the ready ones."""

from bimo.training.callbacks.protocol import Callback, Event, Gradient, StepResult
from bimo.training.callbacks.records import Checkpoints, EventsFile, MetricsFile
from bimo.training.callbacks.stopping import EarlyStopping, TimeBudget

__all__ = [
    "Callback",
    "Checkpoints",
    "EarlyStopping",
    "Event",
    "EventsFile",
    "Gradient",
    "MetricsFile",
    "StepResult",
    "TimeBudget",
]
