"""What the machine is, where a wrong answer costs speed or memory: hyper-threads, containers, page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bimo import UserError
from bimo.core import machine
from bimo.core.machine import cpu_limit, memory_left, physical_cores


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize("setting", ["cuda:99", "cuda:x", "cuda:", "cpu:7", "cpu:-1", "tpu", ""])
def test_a_device_that_is_not_there_is_refused_by_name(setting: str) -> None:
    with pytest.raises(UserError, match=f"device '{setting}' is not on this machine"):
        machine.choose_device(setting)


def test_hyper_threads_of_one_core_count_once_and_only_those_allowed(tmp_path: Path) -> None:
    siblings = {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}
    cpus = write(tmp_path, {f"cpu{n}/topology/thread_siblings_list": text for n, text in siblings.items()})
    assert physical_cores([0, 1, 4, 5], cpus) == 2, "four threads of two cores"
    assert physical_cores([0, 4], cpus) == 1, "allowed only both threads of one core"
    assert physical_cores([0, 1], cpus) == 2, "one thread of each"
    assert physical_cores(range(3), tmp_path / "unknown") == 3, "each counts where siblings are unknown"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 0),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0),
        ({}, 0),
    ],
)
def test_a_containers_share_of_cpu_time_is_seen(tmp_path: Path, files: dict[str, str], limit: int) -> None:
    assert cpu_limit(write(tmp_path, files)) == limit


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 600\ninactive_file 50\n"}, 350),
        ({"memory.max": "1000\n", "memory.current": "1200\n"}, 0),
        ({"memory.max": "max\n", "memory.current": "700\n"}, None),
        ({"memory/memory.limit_in_bytes": "1000\n", "memory/memory.usage_in_bytes": "400\n"}, 600),
        ({}, None),
    ],
)
def test_a_containers_memory_limit_is_seen(tmp_path: Path, files: dict[str, str], left: int | None) -> None:
    assert memory_left(write(tmp_path, files)) == left


def faults_of_repeated_blocks(prepare: str) -> int:
    """Page faults of taking, filling and freeing 40 MB twenty times, in a process of its own."""
    program = f"""
import ctypes, resource
from bimo.core import machine
assert {prepare}, "the C library took the settings"
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
def use():
    block = c.malloc(40_000_000)
    ctypes.memset(block, 1, 40_000_000)
    c.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_large_blocks_that_stay_on_the_heap_cost_no_page_faults() -> None:
    assert faults_of_repeated_blocks("machine.keep_memory_on_heap()") < 100
    assert faults_of_repeated_blocks("True") > 10_000, "the control: without it every page is taken anew"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_the_way_of_older_glibc_keeps_blocks_too() -> None:
    mapping_off = "ctypes.CDLL(None).mallopt(-4, 0) and ctypes.CDLL(None).mallopt(-1, 2**31 - 1)"
    assert faults_of_repeated_blocks(mapping_off) < 100, "M_MMAP_MAX of 0 does what the threshold does"


def test_memory_and_disk_are_plausible(tmp_path: Path) -> None:
    assert machine.peak_memory() > 2**20, "bytes, not kilobytes"
    assert machine.free_disk(tmp_path) > 0
    assert machine.usable_cores() >= 1


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux says how long threads waited")
def test_time_spent_waiting_for_a_core_is_seen() -> None:
    program = "import time\nend = time.time() + 0.8\nwhile time.time() < end: pass"
    everywhere, before = os.sched_getaffinity(0), machine.waited_for_cores()
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        with subprocess.Popen([sys.executable, "-c", program]):  # on the same core
            end = time.thread_time() + 0.2
            while time.thread_time() < end:
                pass
    finally:
        os.sched_setaffinity(0, everywhere)
    assert machine.waited_for_cores() - before > 0.05
