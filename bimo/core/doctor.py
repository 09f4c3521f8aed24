"""Is this machine fit for the work? Each check says what it found, and the mend where something is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bimo.core import machine


@dataclass(frozen=True, slots=True)
class Check:
    """A finding.

    Attributes:
        name: What was looked at.
        ok: True: good; False: needs mending; None: good to know.
        finding: What was found.
        mend: What to do, where something should be done.
    """

    name: str
    ok: bool | None
    finding: str
    mend: str = ""


def environment_checks(folder: Path, seconds: float) -> Iterator[Check]:
    """Look at Python, torch, devices, compiler, memory and disk, then measure speed for about `seconds`."""
    yield Check("Python", sys.version_info >= (3, 11), platform.python_version(), "bimo needs 3.11 or newer.")
    if importlib.util.find_spec("torch") is None:
        yield Check("torch", False, "not installed", "pip install bimo")
        return
    import torch

    yield Check("torch", True, torch.__version__)
    device = machine.choose_device("auto")
    precision = machine.choose_precision(device.value, "auto")
    yield Check("device", True, f"{device.value}: {device.reason}")
    yield Check("precision", True, f"{precision.value}: {precision.reason}")
    cores = machine.usable_cores()
    yield Check("processor", True, f"{machine.cpu_name()}, {cores} core{'s' * (cores > 1)}")
    yield _threads(cores)
    yield _compiler()
    memory, disk = machine.available_memory() / 2**30, machine.free_disk(folder) / 2**30
    if memory:
        yield Check("memory", memory > 2, f"{memory:.1f} GiB free", "Close programs: a small run takes up to 2 GiB.")
    yield Check("disk", disk > 2, f"{disk:.1f} GiB free for {folder.resolve()}", "Free space, or run elsewhere.")
    for package, extra in (("pyarrow", "data"), ("transformers", "hf")):
        there = importlib.util.find_spec(package) is not None
        finding = "installed" if there else f'not installed (optional: pip install "bimo[{extra}]")'
        yield Check(package, True if there else None, finding)
    yield from _speed(device.value, precision.value, seconds)


def _threads(cores: int) -> Check:
    told = os.environ.get("OMP_NUM_THREADS")
    if told is None or told == str(cores):
        return Check("threads", True, f"{cores}, one per core")
    return Check("threads", False, f"OMP_NUM_THREADS={told}, but there are {cores} cores", "unset OMP_NUM_THREADS")


def _compiler() -> Check:
    path = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if path is None:
        return Check("compiler", False, "no C++ compiler", "Install one, for example: apt-get install g++")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return Check("compiler", True, (done.stdout.splitlines() or [path])[0])


def _speed(device: str, precision: str, seconds: float) -> Iterator[Check]:
    plain = machine.measure_speed(device, "fp32", seconds / (1 if precision == "fp32" else 2))
    yield Check("fp32 matrix products", None, f"{plain.flops / 1e9:,.0f} GFLOP/s")
    if precision != "fp32":
        fast = machine.measure_speed(device, precision, seconds / 2)
        ok = fast.flops > plain.flops
        mend = "Train with --training.precision fp32."
        yield Check(f"{precision} matrix products", ok, f"{fast.flops / 1e9:,.0f} GFLOP/s", "" if ok else mend)
    yield Check("memory reads", None, f"{plain.read_bytes / 1e9:,.0f} GB/s")
