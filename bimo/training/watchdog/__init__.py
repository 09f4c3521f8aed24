"""What sees a fault before the weights change and mends it: the watchdog, its senses, and the flight recorder."""

from bimo.training.watchdog.recorder import FlightRecorder
from bimo.training.watchdog.watchdog import Watchdog

__all__ = ["FlightRecorder", "Watchdog"]
