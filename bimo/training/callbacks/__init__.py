"""Callbacks: what sees and changes a run without being part of the loop; the protocol and the ready ones."""

from bimo.training.callbacks.average import WeightAverage
from bimo.training.callbacks.best import BestCheckpoint
from bimo.training.callbacks.growing_depth import GrowingDepth
from bimo.training.callbacks.layer_statistics import ActivationStatistics, GradientStatistics, LayerStatistics
from bimo.training.callbacks.naming import callback_by_name, checked, make_callbacks
from bimo.training.callbacks.progress import Progress
from bimo.training.callbacks.protocol import Callback, Event, Gradient, StepResult
from bimo.training.callbacks.rates import RateFinder, RateReport, find_rate
from bimo.training.callbacks.records import Checkpoints, EventsFile, MetricsFile
from bimo.training.callbacks.sampling import Sample, Sampling
from bimo.training.callbacks.short_rows import ShortRows
from bimo.training.callbacks.stopping import EarlyStopping, TimeBudget
from bimo.training.callbacks.tensorboard import TensorBoard

__all__ = [
    "ActivationStatistics",
    "BestCheckpoint",
    "Callback",
    "Checkpoints",
    "EarlyStopping",
    "Event",
    "EventsFile",
    "Gradient",
    "GradientStatistics",
    "GrowingDepth",
    "LayerStatistics",
    "MetricsFile",
    "Progress",
    "RateFinder",
    "RateReport",
    "Sample",
    "Sampling",
    "ShortRows",
    "StepResult",
    "TensorBoard",
    "TimeBudget",
    "WeightAverage",
    "callback_by_name",
    "checked",
    "find_rate",
    "make_callbacks",
]
