"""All that an exact resume needs, and how it lies on disk.

The state of a run is one tree of plain values and tensors; `Trainer.state_dict` lists what is in it. Set aside in
memory it is what the watchdog rolls back to; on disk it is a checkpoint, a folder that is written whole or not at all
(`core.artifacts`):

    model.safetensors       the weights, by name; a tied matrix once
    optimizer.safetensors   the optimizer's tensors, by parameter and name
    state.safetensors       all other tensors: random states, averages, what callbacks keep
    state.json              everything else, with a reference where a tensor stands
    parts/                  of a model that several processes hold together: the tensors of which each has a part
    manifest.json           sha256 of each file

On how many processes a checkpoint is read need not be the number that has written it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bimo.core.artifacts import MANIFEST, verify, write_folder
from bimo.core.errors import UserError
from bimo.training.parts import PARTS, is_part, placed, read_parts, write_parts
from bimo.training.team import Team

Tree = dict[str, Any]
"""Nested dictionaries and lists of plain values and tensors."""

_FILES = ("model", "optimizer", "state")
_REFERENCE = "$tensor"


@dataclass
class TrainingState:
    """Where a run stands.

    Attributes:
        step: Updates made.
        tokens: Tokens read.
        seconds: Wall time spent in updates, over all sessions of the run.
        settled: The last step after which evaluation, sample and checkpoint had their turn.
        rate_scale: What every learning rate is multiplied by; the watchdog lowers it.
        most_rows: Rows that fit into memory at once, found out the hard way; 0: no limit is known.
        execution: How blocks are run, eager or compiled; "" while it has not been chosen.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    settled: int = 0
    rate_scale: float = 1.0
    most_rows: int = 0
    execution: str = ""


def write(folder: Path, tree: Tree, team: Team | None = None) -> None:
    """Write a checkpoint.

    Args:
        folder: Where it goes.
        tree: The state.
        team: The processes that hold it together; all of them must call this.

    Raises:
        UserError: The disk is full or must not be written to; what was there before is still there.
    """
    team = team or Team()
    tensors: dict[str, dict[str, Tensor]] = {name: {} for name in _FILES}
    plain = {}
    for name, branch in tree.items():
        file = name if name in _FILES else "state"
        plain[name] = _without_tensors(branch, name, tensors[file])
    parts = {name: tensor for file in tensors.values() for name, tensor in file.items() if is_part(tensor)}
    tensors = {file: {n: t for n, t in whole.items() if n not in parts} for file, whole in tensors.items()}

    def fill(target: Path) -> None:
        try:
            for name in _FILES:
                save_file(tensors[name], target / f"{name}.safetensors")
        except SafetensorError as error:  # it wraps the system's error in words of its own
            raise OSError(None, str(error)) from error
        (target / "state.json").write_text(json.dumps(plain), encoding="utf-8")

    def write_whole() -> None:
        _clear_damaged(folder)
        with write_folder(folder) as target:
            fill(target)

    if parts:
        team.by_first(lambda: _clear_damaged(folder))
        write_parts(folder, parts, fill, team)
    else:
        team.by_first(write_whole)


def read(folder: Path, model: nn.Module | None = None, team: Team | None = None) -> Tree:
    """Read a checkpoint, on however many processes it was written.

    Args:
        folder: Where it lies.
        model: The one that it is for: what belongs to a parameter of which this process holds a part is read in part.
        team: The processes that shall hold it together; all of them must call this.

    Raises:
        UserError: It is damaged.
    """
    team = team or Team()
    problems = team.by_first(lambda: verify(folder))
    if problems:
        raise UserError("; ".join(problems), where=str(folder), mend="Resume from an earlier checkpoint.")
    cut = {name: tensor for name, tensor in model_state(model).items() if is_part(tensor)} if model else {}
    try:
        tensors: dict[str, Tensor] = {}
        if cut or (folder / PARTS).exists():
            tensors = read_parts(folder, cut, team)
        else:
            for name in _FILES:
                tensors |= load_file(folder / f"{name}.safetensors")
        tree: Tree = _with_tensors(json.loads((folder / "state.json").read_text(encoding="utf-8")), tensors)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(
            f"this is not a checkpoint of this version of bimo ({type(error).__name__}: {error})",
            where=str(folder),
            mend="Resume from another checkpoint, or start a new run from the model that it holds.",
        ) from error
    return tree


def keep_newest(folder: Path, count: int, newest: Path) -> None:
    """Delete all but `count` checkpoints, of which `newest` is the last.

    What claims to be newer was damaged and passed over, or left by another branch of the run: it must not crowd out
    what was just written.
    """
    for old in sorted(path for path in folder.glob("step-*") if path.name <= newest.name)[:-count]:
        shutil.rmtree(old)


def clear_unfinished(folder: Path) -> None:
    """Delete what processes that were killed during a save have left in a folder of checkpoints."""
    for part in folder.glob(".step-*.part"):
        shutil.rmtree(part, ignore_errors=True)


def _clear_damaged(folder: Path) -> None:
    """Make room where a damaged checkpoint lies; without its manifest it would be taken for other things."""
    ours = {MANIFEST, "state.json", PARTS, *(f"{name}.safetensors" for name in _FILES)}
    if folder.is_dir() and {path.name for path in folder.iterdir()} <= ours and verify(folder):
        shutil.rmtree(folder)


def copied(tree: Any, before: Any = None) -> Any:
    """A copy of a tree that later changes do not reach.

    Args:
        tree: What to copy.
        before: An earlier copy, whose memory is used again where the shapes agree.
    """
    if isinstance(tree, Tensor):
        alike = isinstance(before, Tensor) and is_part(before) == is_part(tree)
        if alike and before.shape == tree.shape and before.dtype == tree.dtype:
            return before.copy_(tree.detach())
        return tree.detach().clone()
    if isinstance(tree, Mapping):
        earlier = before if isinstance(before, Mapping) else {}
        return {key: copied(value, earlier.get(key)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        former = before if isinstance(before, list) and len(before) == len(tree) else [None] * len(tree)
        return [copied(value, old) for value, old in zip(tree, former, strict=True)]
    return tree


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, a tied one once, and the buffers that belong to the model's state."""
    kept = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *buffers.items())}


def load_model_state(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into a model of the same shape; `check_shapes` looks beforehand."""
    model.untrained = False  # type: ignore[assignment]  # modules say that they hold tensors only
    for name, tensor in model_state(model).items():
        tensor.copy_(placed(saved[name], tensor))  # the detached tensor shares the model's memory


def check_belongs(tree: Tree, identity: dict[str, Any], model: nn.Module, where: str) -> None:
    """A checkpoint must be one of this model, with this tokenizer.

    Raises:
        UserError: It is not; the first difference is named.
    """
    then, mend = tree["identity"], "Resume with the model settings of that run."
    for name, value in identity["model"].items():
        if name in then["model"] and then["model"][name] != value:
            raise UserError(
                f"{name} was {then['model'][name]!r} when this was saved, the model has {value!r}",
                where=where,
                mend=mend,
            )
    if then["tokenizer"] and identity["tokenizer"] and then["tokenizer"] != identity["tokenizer"]:
        raise UserError(
            "this was saved with another tokenizer: its weights know other ids",
            where=where,
            mend="Resume with the tokenizer of that run.",
        )
    found = {name: tuple(tensor.shape) for name, tensor in tree["model"].items()}
    expected = {name: tuple(tensor.shape) for name, tensor in model_state(model).items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UserError(
                f"tensor {name!r} is {found.get(name, 'missing')} in the checkpoint, the model has "
                f"{expected.get(name, 'none of that name')}",
                where=where,
                mend=mend,
            )


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> Tree:
    """An optimizer's state by the names of the parameters, so that it does not depend on their order."""
    numbers = _numbers(optimizer, model)
    whole = optimizer.state_dict()
    groups = [
        {key: value for key, value in group.items() if key not in ("params", "part_of")}
        for group in _undivided(whole["param_groups"])
    ]
    return {
        "state": {name: whole["state"][number] for name, number in numbers.items() if number in whole["state"]},
        "groups": groups,
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module, saved: Tree) -> None:
    """Let an optimizer go on from a saved state; its tensors go to the devices of their parameters.

    Raises:
        UserError: It is the state of another optimizer.
    """
    numbers = _numbers(optimizer, model)
    own = optimizer.state_dict()["param_groups"]
    if len(_undivided(own)) != len(saved["groups"]) or not saved["state"].keys() <= numbers.keys():
        raise UserError(
            "the checkpoint was made with another optimizer: its groups or parameters are not those of this one",
            mend="Resume with the optimizer of that run.",
        )
    groups = []
    for number, now in enumerate(own):  # what is parted here may have been whole there, and the other way round
        place = now.get("part_of", number)
        groups.append({**saved["groups"][place], **{key: now[key] for key in ("params", "part_of") if key in now}})
    state = {numbers[name]: copied(moments) for name, moments in saved["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _undivided(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An optimizer's groups, of those that `parallel.split_groups` has parted the first piece only."""
    seen: set[int] = set()
    return [g for n, g in enumerate(groups) if (p := g.get("part_of", n)) not in seen and not seen.add(p)]  # type: ignore[func-returns-value]


def _numbers(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, int]:
    """Name of each parameter that the optimizer holds → torch's number for it; those outside of the model by number."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {names.get(id(parameter), f"#{number}"): number for number, parameter in enumerate(held)}


def _without_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The value with a reference for each tensor, which goes into `tensors` under its path."""
    if isinstance(value, Tensor) and is_part(value):
        tensors[path] = value.detach()
        return {_REFERENCE: path}
    if isinstance(value, Tensor):
        whole = value.detach().cpu().contiguous()
        part = whole.untyped_storage().nbytes() != whole.nbytes  # a file must not hold two views of one memory
        tensors[path] = whole.clone() if part else whole
        return {_REFERENCE: path}
    if isinstance(value, Mapping):
        return {str(key): _without_tensors(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{path}/{number}", tensors) for number, item in enumerate(value)]
    assert value is None or isinstance(value, (bool, int, float, str)), (
        f"{path} is {type(value).__name__}; a state holds plain values and tensors"
    )
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_without_tensors`; tuples have become lists."""
    if isinstance(value, dict):
        if value.keys() == {_REFERENCE}:
            return tensors[value[_REFERENCE]]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    return [_with_tensors(item, tensors) for item in value] if isinstance(value, list) else value
