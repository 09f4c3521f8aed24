"""The weights that the torch runner computes with: on which device, in which dtype, packed or plain."""

from __future__ import annotations

import torch

from bimo.core.errors import UserError
from bimo.engine.settings import EngineSettings
from bimo.model.gpt import GPT
from bimo.model.packed import PackedTensor, twin, unpack
from bimo.model.weight_only import PACKED, laid_out

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def weights_for(model: GPT, settings: EngineSettings, *, with_adapters: bool = False) -> GPT:
    """The model as the settings want it; itself, unpacked, where they want nothing.

    On a GPU, 8- and 4-bit weights stay packed, and what flows between them is of two bytes, unless a plain dtype is
    asked for. Adapters add to plain weights only.

    Raises:
        UserError: The device is not there, or adapters meet packed weights that were asked for.
    """
    first = next(model.parameters())
    device, word = _device(settings.device, first.device), settings.dtype
    if word in PACKED and with_adapters:
        raise UserError(f"adapters do not go with dtype={word}", mend="Merge the adapter, or leave dtype at auto.")
    packed = any(isinstance(p, PackedTensor) and p.format.name in PACKED.values() for p in model.parameters())
    stays = packed and device.type == "cuda" and not with_adapters and word not in DTYPES
    if word == "auto" and device == first.device and not stays:
        return unpack(model)
    if word in DTYPES:
        dtype = DTYPES[word]
    elif word == "auto" and not packed:
        dtype = next((p.dtype for p in model.parameters() if p.dim() == 2), torch.float32)
    else:
        dtype = _two_bytes(device) if device.type == "cuda" else torch.float32
    return laid_out(model if stays or word in PACKED else unpack(twin(model)), device, dtype, PACKED.get(word, ""))


def _two_bytes(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def _device(name: str, own: torch.device) -> torch.device:
    """The device that is meant; '' is that of the weights."""
    if not name:
        return own
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch's words for a device that it does not know or have
        what = f"there is no device {name!r} ({str(error).splitlines()[0][:120]})"
        raise UserError(what, mend="Leave device empty, or name one that torch has: cpu, cuda, mps.") from error
