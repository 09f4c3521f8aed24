"""C++ kernels for the CPU: how they are found, how a model is laid out for them, and the one call that runs a step.

Everything here works without torch's operators; `bimo.engine.native` is the runner on top of it."""

from bimo.engine.kernels.library import Kernels, NoKernelsError, load_kernels

__all__ = ["Kernels", "NoKernelsError", "load_kernels"]
