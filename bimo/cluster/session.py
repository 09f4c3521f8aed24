"""The connection to a cluster: one that runs, one by its address, or a Ray of this machine's own.

Ray's dashboard, usage statistics and progress bars stay off: nothing is opened or sent that the work does not need.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bimo
from bimo.core import machine
from bimo.core.errors import UserError, require

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers run the Python that they are started with
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
_OBJECT_STORE_BYTES = 2**30  # of a Ray of our own; text passes through it in blocks


@contextlib.contextmanager
def session(cluster: str, workers: int) -> Iterator[Any]:
    """Give the module `ray`, connected; afterwards the connection is closed, and a Ray of our own has ended.

    A program that is connected already stays so.

    Args:
        cluster: auto (a cluster that this machine belongs to, else one of our own), local (one of our own), or an
            address, ray://HOST:PORT.
        workers: How many processes will train; a Ray of our own has room for them.

    Raises:
        UserError: Ray is not installed, nobody answers, or the cluster has no room.
    """
    check_cluster(cluster, workers)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    ray = require("ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    try:
        _connect(ray, cluster, workers)
        yield ray
    finally:
        ray.shutdown()


def check_cluster(cluster: str, workers: int) -> None:
    """What was asked for, before anything is started."""
    if cluster not in ("auto", "local") and not cluster.startswith("ray://"):
        raise UserError(f"{cluster!r} is no cluster", where="--cluster", mend="Give auto, local or ray://HOST:PORT.")
    if workers < 1:
        raise UserError(f"workers must be at least 1, is {workers}", where="--workers", mend="Give a number.")


def check_room(ray: Any, workers: int, *, gpus: bool) -> None:
    """Whether the cluster can hold the workers at all; Ray would wait for ever."""
    kind = "GPU" if gpus else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < workers:
        raise UserError(
            f"the cluster has {there} {kind}(s), too few for {workers} workers",
            where="--workers",
            mend="Ask for fewer, or let more machines join.",
        )


def _connect(ray: Any, cluster: str, workers: int) -> None:
    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "logging_config": ray.LoggingConfig(encoding="TEXT", log_level="ERROR"),
        "log_to_driver": True,
    }
    own = {
        "num_cpus": max(workers, machine.usable_cores()),
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
    }
    # Other machines get this code from Ray; on this one it is there.
    ship = {"runtime_env": {"py_modules": [str(Path(bimo.__file__).parent)]}}
    # Nobody takes this machine away from itself, and its watcher needs the dashboard.
    alone = {"runtime_env": {"env_vars": {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}}}
    if cluster == "local":
        ray.init(address="local", **options, **own, **alone)
        return
    try:
        if cluster == "auto":
            ray.init(address="auto", **options)
        else:
            ray.init(address=cluster, **options, **ship)
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        if cluster == "auto":
            ray.init(address="local", **options, **own, **alone)
            return
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"no cluster answers ({reason})", where=cluster, mend="Look at its address with: ray status"
        ) from error
