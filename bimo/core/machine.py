"""What this machine is and can do. A value that is chosen for the user comes with its reason."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bimo.core.errors import UserError

_CGROUPS = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


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
    kind, colon, index = setting.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    numbered = not colon or (index.isascii() and index.isdigit() and int(index) < count.get(kind, 0))
    if not count.get(kind) or not numbered:
        there = [name for name, n in count.items() if n]
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
    if device.startswith("cpu"):
        # AVX512-BF16 without AMX is not enough: 89 GFLOP/s in bf16 for 107 in fp32 (torch 2.13, 1024³, 2 threads).
        amx = "amx_bf16" in cpu_flags()
        return Choice("bf16", "this CPU multiplies bf16 in hardware (AMX)") if amx else Choice("fp32", "no AMX here")
    return Choice("fp32", "whether bf16 is faster here has not been measured")


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
    import platform

    return name or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Physical cores that this process may use: its affinity, and the container's share of CPU time."""
    logical = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = physical_cores(logical)
    return min(cores, cpu_limit() or cores)


def physical_cores(logical: Collection[int], cpus: Path = _CPUS) -> int:
    """How many cores these logical CPUs are; two hyper-threads are one. Where that is unknown, each counts."""
    siblings = (cpus / f"cpu{number}" / "topology" / "thread_siblings_list" for number in logical)
    return len({path.read_text(encoding="utf-8") if path.exists() else path for path in siblings})


def cpu_limit(cgroups: Path = _CGROUPS) -> int:
    """Whole CPUs whose time the container may use, at least 1; 0: no limit."""
    first = cgroups / "cpu"  # version 1 of control groups has a folder per resource, version 2 has not
    words = _words(cgroups / "cpu.max") or _words(first / "cpu.cfs_quota_us") + _words(first / "cpu.cfs_period_us")
    if len(words) != 2 or not all(word.isdigit() for word in words):  # "max" and -1: no limit
        return 0
    quota, period = map(int, words)
    return max(1, quota // period)


def _words(path: Path) -> list[str]:
    """The words of a small system file; none where it does not exist."""
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []


def set_threads(count: int) -> None:
    """Use this many CPU threads; 0: one per usable core."""
    import torch

    torch.set_num_threads(count or usable_cores())


def keep_memory_on_heap() -> bool:
    """Keep large blocks in the process after they are freed; returns whether the C library took the settings.

    A training step frees and takes the same activations over and over. glibc gives blocks above a threshold back to the
    system and gets them again as zeroed pages, one page fault per 4 KB: some 5 % of a step here, up to 19 % elsewhere.
    """
    import platform

    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX in malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    # Older versions refuse a threshold above 32 MiB (mallopt(3)); there, no block at all is mapped on its own.
    stays = mallopt(mmap_threshold, 2**30) or mallopt(mmap_max, 0)
    return bool(stays and mallopt(trim_threshold, 2**31 - 1))


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


def _median_seconds(work: Callable[[], object], device: str, budget_s: float) -> float:
    import statistics

    import torch

    # GPUs compute behind our back: without waiting, only the call would be timed.
    waits: dict[str, Callable[[], None]] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    synchronize = waits.get(device.partition(":")[0], lambda: None)
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
    """Bytes of memory that can still be had, here and within the container's limit; 0 when unknown."""
    words = _words(Path("/proc/meminfo"))
    free = int(words[words.index("MemAvailable:") + 1]) * 1024 if "MemAvailable:" in words else 0
    left = memory_left(_CGROUPS)
    return free if left is None else min(free, left)


def memory_left(cgroups: Path) -> int | None:
    """Bytes up to the container's memory limit, dropped file caches included; None: no limit."""
    second = (cgroups, "memory.max", "memory.current", "inactive_file")
    first = (cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for folder, limit, used, caches in (second, first):
        words = _words(folder / limit) + _words(folder / used)
        if len(words) == 2 and all(word.isdigit() for word in words):
            stat = _words(folder / "memory.stat")
            dropped = int(stat[stat.index(caches) + 1]) if caches in stat else 0
            return max(0, int(words[0]) - int(words[1]) + dropped)
    return None


def free_disk(path: Path) -> int:
    """Bytes free on the disk that holds the path."""
    import shutil

    return shutil.disk_usage(path).free


def peak_memory() -> int:
    """The most memory that this process has held, in bytes; 0 when unknown."""
    try:
        import resource  # here, because Windows has none
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def held_memory() -> int:
    """The memory that this process holds now, in bytes; 0 when unknown."""
    words = _words(Path("/proc/self/statm"))
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else 0


def waited_for_cores() -> float:
    """Seconds that the threads of this process have waited for a core, added up; 0 where Linux does not say."""
    waited = 0
    for thread in Path("/proc/self/task").glob("*"):
        words = _words(thread / "schedstat")  # nanoseconds on a core, nanoseconds waiting for one, turns
        waited += int(words[1]) if len(words) == 3 else 0
    return waited / 1e9
