"""The tests of the server once more, with the engine behind a wire."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_test_of_the_server_passes_with_the_engine_behind_a_wire() -> None:
    files = [str(path) for path in sorted(HERE.glob("test_*.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, env={**os.environ, "BIMO_TEST_WIRE": "1"}, cwd=HERE.parent.parent, capture_output=True, text=True,
        check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
