"""The part of a checkpoint that no process holds alone: torch's distributed checkpoint (DCP), in safetensors files.

Every process writes its own parts, and says in the file where in the whole they lie; whoever reads asks for the parts
that it needs, in one process or many. Nothing in these files is code (DCP's usual format is a pickle).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimo.core.artifacts import write_folder
from bimo.core.errors import UserError
from bimo.training.team import Team

PARTS = "parts"


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is one of which this process holds a part only."""
    return type(tensor) is not Tensor and hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """What of a tensor lies in this process, in the same memory."""
    with torch.no_grad():
        return tensor.to_local() if is_part(tensor) else tensor


def made_whole(part: Tensor, like: Any) -> Tensor:
    """The whole of which this process holds a part, cut as another tensor is; all that hold one must call this."""
    if not is_part(like):
        return part
    from torch.distributed.tensor import DTensor

    shape, stride = like.shape, like.stride()
    cut = DTensor.from_local(part, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride)
    return cut.full_tensor()


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A tensor, of which this process holds the same part as of another; one that is whole here is cut."""
    if not is_part(like) or is_part(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    there: Any = like
    return distribute_tensor(value.to(there.device), there.device_mesh, there.placements, src_data_rank=None)


def write_parts(folder: Path, parts: Mapping[str, Tensor], fill: Callable[[Path], None], team: Team) -> None:
    """Write a sealed folder together.

    Args:
        folder: Where it goes.
        parts: The tensors of which each process has a part.
        fill: Writes all else into the folder; called in the first process.
        team: All of these call this.

    Raises:
        UserError: One of them cannot write; in all of them, and what was there before is still there.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
    from torch.distributed.checkpoint.api import CheckpointException

    with contextlib.ExitStack() as stack:
        aside = ""
        failure: UserError | None = None
        if team.first:
            try:
                target = stack.enter_context(write_folder(folder))
                (target / PARTS).mkdir()
                aside = str(target)
            except UserError as error:
                failure = error
        aside = team.told(aside)
        if failure is not None:
            raise failure
        if not aside:
            raise UserError("cannot be written by the first process", where=str(folder), mend="See what that one says.")
        try:
            writer = HuggingFaceStorageWriter(str(Path(aside) / PARTS), save_distributed=True)
            save(dict(parts), storage_writer=writer, process_group=team.control)
        except CheckpointException as error:
            why = "; ".join(f"process {rank}: {wrapped[0]}" for rank, wrapped in error.failures.items())
            raise UserError(f"cannot be written ({why})", where=str(folder), mend="Free space.") from error
        if team.first:
            fill(Path(aside))
        team.by_first(stack.close)


def read_parts(folder: Path, cut: Mapping[str, Tensor], team: Team) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by their paths.

    Args:
        folder: Where it lies.
        cut: Parameters of which this process holds a part, by name. A tensor of the checkpoint whose path names one,
            and which has its shape, is read as it is cut.
        team: All of these call this.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    tensors: dict[str, Tensor] = {}
    for place in filter(Path.is_dir, (folder, folder / PARTS)):
        known = HuggingFaceStorageReader(str(place)).read_metadata().state_dict_metadata
        wanted = {path: _room(path, found, cut) for path, found in known.items()}
        with warnings.catch_warnings():  # torch warns of a process that is alone, which it may be
            warnings.simplefilter("ignore", UserWarning)
            reader = HuggingFaceStorageReader(str(place))
            load(wanted, storage_reader=reader, process_group=team.control, no_dist=team.alone)
        tensors |= wanted
    return tensors


def _room(path: str, found: Any, cut: Mapping[str, Tensor]) -> Tensor:
    """Memory for a tensor of a checkpoint, or for this process's part of it."""
    for word in path.split("/"):
        like = cut.get(word)
        if like is not None and like.shape == found.size:
            return torch.empty_like(like, dtype=found.properties.dtype)
    return torch.empty(found.size, dtype=found.properties.dtype)
