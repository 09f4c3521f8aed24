"""What a model folder says of weights that lie in it packed: which of them, and in which of GGUF's block formats.

config.json names them under `quantization_config`; in model.safetensors they are rows of bytes under bimo's own names.
The model_type is bimo's, so that a program that knows nothing of this stops instead of taking bytes for numbers. The
sizes are said in the family's words: one of its classes that is told to read the folder all the same stops at shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bimo.core.errors import UserError
from bimo.model.formats import FORMATS, BlockFormat
from bimo.model.packed import PackedTensor

_METHOD = "bimo"
_AGAIN = "Copy the model's folder again."


def packing(model: nn.Module) -> dict[str, Any]:
    """The part of a config.json that says how a model's weights are packed."""
    packed = {name: p for name, p in model.named_parameters() if isinstance(p, PackedTensor)}
    formats: dict[str, list[str]] = {}
    for name, parameter in packed.items():
        formats.setdefault(parameter.format.name, []).append(name)
    return {"quantization_config": {"quant_method": _METHOD, "formats": formats}}


def read_formats(config: dict[str, Any], where: str) -> dict[str, BlockFormat]:
    """The format of each packed weight that a config.json names, by bimo's names; none where it names none.

    Raises:
        UserError: The weights are quantised in a way that bimo does not read, or the table is damaged.
    """
    said = config.get("quantization_config")
    if said is None:
        return {}
    method = said.get("quant_method") if isinstance(said, dict) else None
    if method != _METHOD or config.get("model_type") != _METHOD:
        raise UserError(
            f"its weights are quantised in a way that bimo does not read ({method!r:.50})",
            where=where,
            mend="Bring the plain weights, or a GGUF file.",
        )
    formats = said.get("formats")
    if not isinstance(formats, dict) or not all(isinstance(names, list) for names in formats.values()):
        raise UserError("quantization_config names no formats", where=where, mend=_AGAIN)
    found: dict[str, BlockFormat] = {}
    for format, names in formats.items():
        if format not in FORMATS:
            raise UserError(f"unknown format {format!r:.50}", where=where, mend="Update bimo.")
        for name in names:
            if not isinstance(name, str) or name in found:
                raise UserError(f"{name!r:.100} stands twice, or is no name", where=where, mend=_AGAIN)
            found[name] = FORMATS[format]
    return found


def check_rows(rows: Tensor, name: str, format: BlockFormat, shape: torch.Size, where: str) -> Tensor:
    """Packed rows that hold a weight of that shape.

    Raises:
        UserError: They are none, or of another shape.
    """
    blocks, rest = divmod(shape[-1], format.block_size)
    wanted = (*shape[:-1], blocks * format.block_bytes)
    if rows.dtype != torch.uint8 or rest or tuple(rows.shape) != wanted:
        found = f"{rows.dtype}, {tuple(rows.shape)}"
        raise UserError(f"tensor {name!r} is {found}, {format.name} needs bytes, {wanted}", where=where, mend=_AGAIN)
    return rows
