"""One process, torchrun or Ray: how the processes of a run find each other, on the same recipe.

torchrun says in the environment which process this is; Ray has joined the processes before it calls us. In both cases
`joined` gives a `Team`, and the trainers that are made inside of it work as a part of that.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from bimo.core.config import ParallelSettings
from bimo.core.errors import UserError
from bimo.training.team import Team

_CURRENT: ContextVar[Team | None] = ContextVar("the processes of this run", default=None)
_HOURS = timedelta(days=30)  # for which the others wait while the first process prepares the text
_ENDING = (signal.SIGTERM, signal.SIGINT)
_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out", "Socket")


def current() -> Team:
    """The team that this process works in; one process alone where nobody has joined any."""
    return _CURRENT.get() or Team()


def restarted() -> bool:
    """Whether torchrun has started the processes again after one of them was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def job() -> str:
    """What all starts of one torchrun, and no others, have in common."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return name if name != "none" else f"{platform.node()} {os.getppid()}"


@contextlib.contextmanager
def joined(settings: ParallelSettings | None = None, device: str = "auto") -> Iterator[Team]:
    """Within it, this process works together with the others that were started with it.

    Args:
        settings: How they share the work; None: each has a copy of the model.
        device: As in the training settings. Each process takes the GPU of its own number on its machine.

    Raises:
        UserError: The number of processes is not the one that the settings say, there are too few GPUs, or, later,
            another process is gone.
    """
    settings = settings or ParallelSettings()
    inner = _CURRENT.get()
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if _is_joined():
        rank, size = dist.get_rank(), dist.get_world_size()
    sizes = mesh_sizes(settings, size)
    if inner is not None or size == 1:
        yield inner or Team()
        return
    kind, ours = _take_device(device), not _is_joined()
    timeout = timedelta(minutes=settings.timeout_minutes)
    token = _CURRENT.set(None)
    try:
        with leaving_when_stuck():
            if ours:
                _meet("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout)
            team = _team(kind, sizes, timeout)
            _CURRENT.set(team)
            yield team
        if ours:
            dist.destroy_process_group()
    except (RuntimeError, OSError) as error:
        if not is_lost(error):
            raise
        why = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"process {rank} of {size} ends, because another one is gone or does not answer ({why})",
            mend="Look at what the other one says; go on from the last checkpoint with --resume, or start with "
            "torchrun --max-restarts 3, which does so by itself.",
        ) from error
    finally:
        _CURRENT.reset(token)


def _team(kind: str, sizes: tuple[int, int, int], timeout: timedelta) -> Team:
    """The processes that have met."""
    from torch.distributed.device_mesh import init_device_mesh  # here, because it takes a second to import

    control = dist.new_group(backend="gloo", timeout=timeout)
    patient = dist.new_group(backend="gloo", timeout=_HOURS)
    mesh = init_device_mesh(kind, sizes, mesh_dim_names=("data", "shard", "tensor"))
    rank, size, here = dist.get_rank(), dist.get_world_size(), _number("LOCAL_WORLD_SIZE", 1)
    return Team(rank, size, here, *sizes, mesh=mesh, control=control, patient=patient)


def _meet(backend: str, timeout: timedelta) -> None:
    """Find the other processes through torchrun's store.

    One that lives on over a restart still holds the addresses of the processes before; they must not be taken for new.
    """
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    if _number("GROUP_WORLD_SIZE", 1) == 1:  # agents of several machines meet in a store of their own each time
        store = dist.PrefixStore(f"start {_number('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


@contextlib.contextmanager
def leaving_when_stuck(patience_s: float = 20.0) -> Iterator[None]:
    """Within it, a signal that asks this process to end does end it, also while it waits for others that are gone.

    Python hears of signals between two of its lines. A line that waits for a GPU, which waits for another process that
    was killed, does not end; then a thread ends the process, before torchrun's own patience of 30 s is over.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    except ValueError:  # not the main thread: its owner handles signals
        os.close(reader)
        os.close(writer)
        yield
        return
    watched = threading.get_ident()
    thread = threading.Thread(target=_leave, args=(reader, watched, patience_s), name="leaving", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # ends the thread


def _leave(reader: int, watched: int, patience_s: float) -> None:
    """End the process when, after a signal, the watched thread stands at one place for too long."""

    def place() -> tuple[object, int]:
        frame = sys._current_frames().get(watched)
        return frame, frame.f_lasti if frame is not None else 0

    came = os.read(reader, 1)
    while came and came[0] not in _ENDING:
        came = os.read(reader, 1)
    while came:  # until the other end is closed
        before = place()
        if select.select([reader], [], [], patience_s)[0]:
            came = os.read(reader, 1)
        elif place() == before:
            os._exit(1)
    os.close(reader)


def mesh_sizes(settings: ParallelSettings, size: int) -> tuple[int, int, int]:
    """Processes along (data, shard, tensor).

    Raises:
        UserError: That many were not started.
    """
    data, shard, tensor = settings.data, settings.shard, settings.tensor
    if shard == 0:
        data = max(1, data)
        shard = size // (data * tensor)
    elif data == 0:
        data = size // (shard * tensor)
    if data * shard * tensor != size:
        wanted = [("data", settings.data), ("shard", settings.shard), ("tensor", settings.tensor)]
        words = " x ".join(f"{name} {count or '(the rest)'}" for name, count in wanted)
        raise UserError(
            f"{words} does not give {size} process{'es' if size > 1 else ''}, which is how many there are",
            where="parallel",
            mend="Start as many as that (torchrun --nproc-per-node N -m bimo train …), or set parallel.data or "
            "parallel.shard to 0, which takes the rest.",
        )
    return data, shard, tensor


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process does not answer."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, (RuntimeError, OSError)) and any(word in str(error) for word in _LOST)
    )


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def _number(name: str, default: int) -> int:
    """A number of torchrun's environment."""
    return int(os.environ.get(name) or default)


def _take_device(device: str) -> str:
    """cpu or cuda; of the GPUs of this machine, each process takes its own."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind not in ("cpu", "cuda"):
        raise UserError(
            f"several processes cannot share the device {device!r}",
            where="training.device",
            mend="Set it to auto, cpu or cuda: each process takes the GPU of its own number.",
        )
    local, count = _number("LOCAL_RANK", 0), torch.cuda.device_count()
    if kind == "cuda":
        if local >= count:
            raise UserError(
                f"there are {count} GPU(s) on this machine, and more processes than that",
                where="training.device",
                mend=f"Start {count} process(es) per machine: torchrun --nproc-per-node {count}.",
            )
        torch.cuda.set_device(local)
    return kind
