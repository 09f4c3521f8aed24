"""All that an exact resume needs, and how it lies on disk.

A checkpoint is a folder that is written whole or not at all (`core.artifacts`):

    model.safetensors       the weights, by name; a tied matrix once
    optimizer.safetensors   the optimizer's tensors, named PARAMETER/STATE
    random.safetensors      states of the random generators
    state.json              step, tokens, seconds, position in the data, and what must match on resume
    manifest.json           sha256 of each file
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bimo.core.artifacts import verify, write_folder
from bimo.core.errors import UserError


@dataclass
class TrainingState:
    """Where a run stands.

    Attributes:
        step: Updates made.
        tokens: Tokens read.
        seconds: Wall time spent in updates, over all sessions of the run.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def save(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState, data: dict[str, Any]
) -> None:
    """Write a checkpoint; `data` is the data stream's own state and has to be plain JSON."""
    parameters = dict(model.named_parameters())
    moments = {
        f"{name}/{key}": torch.as_tensor(value).contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random |= {f"cuda:{i}": value for i, value in enumerate(torch.cuda.get_rng_state_all())}
    with write_folder(folder) as target:
        save_file({name: p.detach().contiguous() for name, p in parameters.items()}, target / "model.safetensors")
        save_file(moments, target / "optimizer.safetensors")
        save_file(random, target / "random.safetensors")
        text = json.dumps({"training": asdict(state), "data": data}, indent=1)
        (target / "state.json").write_text(text, encoding="utf-8")


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[TrainingState, dict[str, Any]]:
    """Read a checkpoint into model, optimizer and the random generators.

    Returns:
        The run's state and the data stream's state.

    Raises:
        UserError: The checkpoint is damaged or belongs to a model of another shape. Nothing has been changed then.
    """
    problems = verify(folder)
    if problems:
        raise UserError("; ".join(problems), where=str(folder), mend="Resume from an earlier checkpoint.")
    weights, moments = load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")
    parameters = dict(model.named_parameters())
    _check_shapes(folder, weights, parameters)
    saved = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    optimizer.state.clear()
    for key, value in moments.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        optimizer.state[parameter][moment] = value if value.dim() == 0 else value.to(parameter.device)
    random = load_file(folder / "random.safetensors")
    torch.set_rng_state(random.pop("cpu"))
    if random and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(list(random.values()))
    return TrainingState(**saved["training"]), saved["data"]


def keep_newest(folder: Path, count: int) -> None:
    """Delete all but the newest `count` checkpoints of a folder."""
    for old in sorted(folder.glob("step-*"))[:-count]:
        shutil.rmtree(old)


def _check_shapes(folder: Path, weights: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    """The checkpoint must hold exactly this model's parameters."""
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UserError(
                f"tensor {name!r} is {found.get(name, 'missing')} in the checkpoint, the model has "
                f"{expected.get(name, 'none of that name')}",
                where=str(folder),
                mend="Resume with the model settings of that run.",
            )
