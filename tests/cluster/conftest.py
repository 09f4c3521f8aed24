"""A Ray of our own with two workers, started once for all tests of the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bimo.cluster.session import session


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    pytest.importorskip("ray", reason="the extra bimo[ray] is not installed")
    with session("local", 2) as connected:
        yield connected
