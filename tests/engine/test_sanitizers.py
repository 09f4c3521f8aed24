"""The C++ under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; each must see a planted mistake."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "bimo/engine/kernels/src"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")]


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
