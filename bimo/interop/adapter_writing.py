"""Low-rank adapters as folders of peft's: what `load_adapter` reads, and every tool that knows peft."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bimo.core.artifacts import write_folder
from bimo.core.errors import UserError
from bimo.core.json_files import read_json
from bimo.interop.families import FAMILIES, PLAIN, Family
from bimo.interop.gguf_file import read_gguf
from bimo.interop.tensors import TensorNames
from bimo.model.gpt import GPT
from bimo.model.lora import Adapter, LowRank


def save_adapter(folder: Path, model: GPT, adapter: Adapter, base: str = "") -> None:
    """Write an adapter as peft does: adapter_config.json + adapter_model.safetensors, under the family's own names.

    Where several layers of ours are one of theirs (a fused query-key-value projection), their ranks are put side by
    side: the product is the same.

    Args:
        folder: Where to; a folder that holds other things is not replaced.
        model: The model that it belongs to.
        adapter: The adapter.
        base: The model's name, its folder or its file: then the names are those of its family. "": those under which
            the model itself is exported.

    Raises:
        UserError: It does not fit the model, or cannot be written, or nobody knows the base's names.
    """
    adapter.check(model)
    if not adapter.parts:
        raise UserError("the adapter changes nothing", where=f"adapter {adapter.name!r}", mend="Train one first.")
    names = names_of(model, base)
    modules: dict[str, list[str]] = {}
    for path in adapter.parts:
        modules.setdefault(names.theirs(f"{path}.weight").removesuffix(".weight"), []).append(path)
    joined = {module: _joined(model, names, adapter, paths) for module, paths in modules.items()}
    tensors = {}
    for module, part in joined.items():
        stem = f"base_model.model.{module}"
        tensors[f"{stem}.lora_A.weight"] = part.down.float().contiguous().cpu()
        tensors[f"{stem}.lora_B.weight"] = part.up.float().contiguous().cpu()
    with write_folder(folder) as target:
        save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
        config = _config(joined, base, transposed=names.family.transposed)
        (target / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def names_of(model: GPT, base: str) -> TensorNames:
    """The names of a base's family; without a base, those that the model is exported with.

    Raises:
        UserError: Several families compute what the model does under other names, and the base does not say which.
    """
    fitting = [family for family in FAMILIES if family.says(model.spec)] or [PLAIN]
    shapes = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}
    kind = _kind_of(base)
    fitting = [PLAIN] if kind == PLAIN.model_type else fitting
    own = [f for f in fitting if f.model_type == kind] or [f for f in fitting if _is_kind(f, kind)] or fitting
    tables = [TensorNames(family, model.spec, shapes) for family in own]
    layers = [name for name in shapes if name.startswith("layers.") and name.endswith(".weight")]
    ways = {(table.family.transposed, *map(table.theirs, layers)) for table in tables}
    if base and len(ways) > 1:
        known = ", ".join(family.model_type for family in fitting)
        raise UserError(
            f"the adapter's layers have other names in each of {known}, and the base does not say which it is",
            where=base,
            mend="Name the base by its folder, with config.json.",
        )
    return tables[0]


def _kind_of(base: str) -> str:
    """What a run, a model's folder, a .gguf file or a hub name with a local copy says of its family; "": nothing."""
    if not base:
        return ""
    path = Path(base)
    if path.is_file() and path.suffix == ".gguf":
        with contextlib.suppress(UserError):
            return str(read_gguf(path).metadata.get("general.architecture", ""))
    configs = [path / "model" / "config.json", path / "config.json"]
    if not path.exists() and importlib.util.find_spec("huggingface_hub") is not None:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        with contextlib.suppress(HFValidationError):
            configs.append(Path(str(try_to_load_from_cache(base, "config.json"))))
    config = next((file for file in configs if file.is_file()), None)
    return str(read_json(config).get("model_type", "")) if config else ""


def _is_kind(family: Family, kind: str) -> bool:
    """Whether it is the family that GGUF files call so: gemma3 is gemma3_text there."""
    return bool(kind) and family.model_type.replace("_", "").startswith(kind)


def _joined(model: GPT, names: TensorNames, adapter: Adapter, paths: list[str]) -> LowRank:
    """What several of our layers add, as one addition to their layer: downs one below the other, ups in blocks."""
    first = paths[0]
    theirs = names.theirs(f"{first}.weight")
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    whole = [path for path in linears if names.theirs(f"{path}.weight") == theirs]
    parts = [adapter.parts.get(path) for path in whole]
    present = [part for part in parts if part is not None]
    if len(whole) == 1:
        return present[0]
    scale, width = present[0].scale, sum(part.down.shape[0] for part in present)
    ups: dict[str, Tensor] = {}
    column = 0
    for path, part in zip(whole, parts, strict=True):
        up = torch.zeros(names.shapes[f"{path}.weight"][0], width)
        if part is not None:
            rank = part.down.shape[0]
            up[:, column : column + rank] = part.up.float().cpu() * (part.scale / scale)
            column += rank
        ups[f"{path}.weight"] = up
    [up] = names.write(ups).values()
    up = up.T if names.family.transposed else up  # the table turns weights; adapters are never turned
    return LowRank(torch.cat([part.down.float().cpu() for part in present]), up, scale)


def _config(parts: Mapping[str, LowRank], base: str, *, transposed: bool) -> dict[str, Any]:
    ranks = {module: part.down.shape[0] for module, part in parts.items()}
    alphas = {module: part.scale * part.down.shape[0] for module, part in parts.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: other for module, other in ranks.items() if other != rank},
        "alpha_pattern": {module: other for module, other in alphas.items() if other != alpha},
        "target_modules": list(parts),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
    }
