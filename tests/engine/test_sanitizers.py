"""The C++ under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; each must see a planted mistake.

And on processors of other kinds, as qemu plays them.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "bimo/engine/kernels/src"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]

_PROBE = """
#include <cstdio>
#include <initializer_list>
#include "types.h"
int main() {
  for (const bimo::Kernels* k : {bimo::avx512_kernels(), bimo::avx2_kernels(), bimo::generic_kernels()})
    if (k) std::puts(k->name);
}
"""


@pytest.fixture(scope="module", params=["address,undefined", "thread"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("sanitized") / "check"
    sources = [str(path) for path in SOURCES.glob("*.cpp") if path.name != "api.cpp"]
    flags = ["-std=c++17", "-O2", "-g", "-pthread", f"-fsanitize={request.param}", "-fno-sanitize-recover=all"]
    command = ["g++", *flags, f"-I{SOURCES}", *sources, str(Path(__file__).with_name("sanitized.cpp")), "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return request.param, out


def test_every_format_and_instruction_set_is_clean(program: tuple[str, Path]) -> None:
    done = subprocess.run([program[1]], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sound" in done.stdout, done.stdout


def test_a_planted_mistake_is_seen(program: tuple[str, Path]) -> None:
    sanitizer, out = program
    mistake, words = ("race", "data race") if sanitizer == "thread" else ("overrun", "heap-buffer-overflow")
    done = subprocess.run([out, mistake], capture_output=True, text=True, timeout=600)
    assert done.returncode != 0, "it was told to make a mistake"
    assert words in done.stderr, done.stderr[-3000:]


@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-user")
@pytest.mark.parametrize(("processor", "expected"), [("Nehalem", ["plain C++"]), ("Haswell", ["AVX2", "plain C++"])])
def test_a_processor_without_them_meets_no_newer_instructions(
    processor: str, expected: list[str], tmp_path: Path
) -> None:
    (tmp_path / "probe.cpp").write_text(_PROBE)
    files = [str(SOURCES / f"{name}.cpp") for name in ("avx512", "avx2", "generic", "pack")]
    # Vectorised as in -O3, which even a table of functions is then; the rest of -O3 takes minutes.
    flags = ["-std=c++17", "-O1", "-ftree-slp-vectorize", "-static", f"-I{SOURCES}"]
    subprocess.run(["g++", *flags, *files, "probe.cpp", "-o", "probe"], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", processor, tmp_path / "probe"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[:-1] == expected, done.stderr[-1000:]
