"""What this machine is and can do. A value that is chosen for the user comes with its reason."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bimo.core.errors import UserError


@dataclass(frozen=True, slots=True)
class Choice:
    """A value and why it was chosen."""

    value: str
    reason: str


def choose_device(setting: str) -> Choice:
    """The device to compute on: as told, or the best there is."""
    import torch

    if setting == "auto":
        if torch.cuda.is_available():
            return Choice("cuda", f"a CUDA GPU is there: {torch.cuda.get_device_name()}")
        if torch.backends.mps.is_available():
            return Choice("mps", "Apple's GPU is there")
        return Choice("cpu", "no GPU was found")
    kind = setting.partition(":")[0]
    known = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not known.get(kind, False):
        there = [name for name, available in known.items() if available]
        raise UserError(f"device {setting!r} is not on this machine", mend=f"Use auto or one of: {', '.join(there)}.")
    return Choice(setting, "asked for")


def choose_precision(device: str, setting: str) -> Choice:
    """bf16 where the device multiplies it faster than fp32, unless told otherwise."""
    if setting != "auto":
        return Choice(setting, "asked for")
    if device.startswith("cuda"):
        import torch

        fast = torch.cuda.get_device_capability(device) >= (8, 0)
        return Choice("bf16", "this GPU has bf16 units") if fast else Choice("fp32", "this GPU has no bf16 units")
    if device == "cpu" and "amx_bf16" in cpu_flags():
        return Choice("bf16", "this CPU multiplies bf16 in hardware (AMX)")
    return Choice("fp32", "bf16 is not faster on this device")


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of the CPU, as Linux names them; empty where that is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), ":")
    return frozenset(flags.partition(":")[2].split())


def cpu_name() -> str:
    """Model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Physical cores that this process may use: its affinity, and the container's share of CPU time."""
    logical = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(logical, _physical_cores() or logical)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no limit ("max"), or no cgroups
        pass
    return max(1, cores)


def _physical_cores() -> int:
    """Cores without their hyper-threads; 0 when unknown."""
    siblings = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    try:
        return len({path.read_text(encoding="utf-8").strip() for path in siblings})
    except OSError:
        return 0


def set_threads(count: int) -> None:
    """Use this many CPU threads; 0: one per usable core."""
    import torch

    torch.set_num_threads(count or usable_cores())


def keep_memory_on_heap() -> bool:
    """Keep large blocks in the process after they are freed; returns whether the C library took the settings.

    A training step frees and takes the same activations over and over. glibc gives blocks above a threshold back to the
    system and gets them again as zeroed pages, one page fault per 4 KB: some 5 % of a step here, up to 19 % elsewhere.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**31 - 1))


@dataclass(frozen=True, slots=True)
class Speed:
    """What the machine reaches in the two things that a GPT needs.

    Attributes:
        flops: Matrix products in the given precision, floating-point operations per second.
        read_bytes: Memory reads, bytes per second.
    """

    flops: float
    read_bytes: float


def measure_speed(device: str = "cpu", precision: str = "fp32", seconds: float = 2.0) -> Speed:
    """Measure for about `seconds`: medians over rounds of products shaped like a model's, and of sums over memory."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    big = device.startswith("cuda")
    n = 8192 if big else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    flops = 2 * n**3 / _median_seconds(lambda: a @ b, device, seconds / 2)
    block = torch.ones((2**30 if big else 2**26) // 4, device=device)
    reading = _median_seconds(block.sum, device, seconds / 2)
    return Speed(flops, block.numel() * 4 / reading)


def _median_seconds(work: object, device: str, budget_s: float) -> float:
    import torch

    assert callable(work), "work must be a function"
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    work()
    synchronize()
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 1000):
        start = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def available_memory() -> int:
    """Bytes of memory that can still be had; 0 when unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)


def free_disk(path: Path) -> int:
    """Bytes free on the disk that holds the path."""
    return shutil.disk_usage(path).free


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
