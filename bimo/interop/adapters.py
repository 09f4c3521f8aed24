"""Low-rank adapters in PEFT's folders: adapter_config.json + adapter_model.safetensors, read without peft.

Their matrices stand under the names of the family's own modules; where such a module is several of ours (a fused
query-key-value projection), each of ours gets its rows. What an adapter of plain LoRA cannot say (DoRA's magnitudes,
whole modules, bases that were changed) is refused by name and not left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bimo.core.errors import UserError
from bimo.core.json_files import read_json
from bimo.interop.families import FAMILIES, PLAIN
from bimo.interop.huggingface import open_safetensors
from bimo.interop.tensors import TensorNames
from bimo.model.gpt import GPT
from bimo.model.lora import Adapter, LowRank
from bimo.model.packed import plain

_AGAIN = "Copy the adapter's folder again."
_PLAIN_LORA = "Save it as plain LoRA, or merge it with peft."
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_UNKNOWN = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "layer_replication", "target_parameters"),
    *("alora_invocation_tokens", "trainable_token_indices", "arrow_config", "kasa_config", "monteclora_config"),
)
_NAME = re.compile(r"[\w.]+")
_CHANGED_BASES = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Ways to begin that change the model's own weights: the adapter alone is worth nothing."""


def load_adapter(folder: Path, model: GPT, name: str = "") -> Adapter:
    """Read an adapter that peft wrote.

    Args:
        folder: Its folder.
        model: The model that it was trained on.
        name: What to call it. "": as the folder.

    Returns:
        The adapter, checked against the model.

    Raises:
        UserError: A file is missing or damaged, it belongs to another model, or it is more than plain LoRA.
    """
    folder = Path(folder)
    path = folder / "adapter_config.json"
    config = read_json(path)
    _check_config(config, str(path))
    weights = folder / "adapter_model.safetensors"
    theirs, whole = _pairs(weights)
    _check_whole(model, whole, str(weights))
    places = _places(model, theirs, str(weights))
    parts: dict[str, LowRank] = {}
    for module, (down, up) in theirs.items():
        scale = _scale(config, module, down.shape[0], str(path))
        names = places[module]
        for ours in names.shapes:
            if names.theirs(ours).removesuffix(".weight") == module:
                parts[ours.removesuffix(".weight")] = LowRank(down, _rows_of(ours, names, up, str(weights)), scale)
    adapter = Adapter(name or folder.resolve().name, parts)
    adapter.check(model)
    return adapter


def _check_config(config: Mapping[str, Any], where: str) -> None:
    """Whether it is plain LoRA."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"peft_type is {kind!r:.50}, not 'LORA'", where=where, mend=_PLAIN_LORA)
    more = next((key for key in _UNKNOWN if config.get(key)), None)
    if more is None and config.get("bias", "none") != "none":
        more = "bias"
    if more is not None:
        raise UserError(f"{more} is not supported", where=where, mend=_PLAIN_LORA)
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGED_BASES):
        raise UserError(f"an adapter that began with {begun!r} changed the model too", where=where, mend=_PLAIN_LORA)


def _pairs(path: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Their modules and the matrices of each, (r, in) and (out, r), float32; and whole weights that lie beside them."""
    file = open_safetensors(path)
    sides: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key in file.keys():  # noqa: SIM118  # not a dictionary
        found = _KEY.fullmatch(key.removeprefix(_PREFIX))
        if found is None and (".lora_" in key or not key.endswith(".weight")):
            raise UserError(f"tensor {key!r:.200} is no matrix of plain LoRA", where=str(path), mend=_PLAIN_LORA)
        try:
            tensor: Tensor = file.get_tensor(key)
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"damaged weights ({error})", where=str(path), mend=_AGAIN) from error
        if tensor.dim() != 2 or not tensor.is_floating_point():
            raise UserError(f"tensor {key!r} is no matrix of numbers", where=str(path), mend=_AGAIN)
        if found is None:
            whole[key.removeprefix(_PREFIX).replace(".base_layer.", ".")] = tensor
        else:
            sides.setdefault(found["module"], {})[found["side"]] = tensor.float()
    for module, both in sides.items():
        if len(both) < 2 or both["A"].shape[0] != both["B"].shape[1]:
            raise UserError(f"{module} lacks one of two matrices that fit", where=str(path), mend=_AGAIN)
    return {module: (both["A"], both["B"]) for module, both in sides.items()}, whole


def _tables(model: GPT, shapes: Mapping[str, torch.Size]) -> list[TensorNames]:
    """The families whose names the model may have had, and our own names."""
    families = [*(family for family in FAMILIES if family.says(model.spec)), PLAIN]
    return [TensorNames(family, model.spec, shapes) for family in families]


def _check_whole(model: GPT, whole: Mapping[str, Tensor], where: str) -> None:
    """Peft copies embeddings and head beside an adapter of one of them: they must be those of the model."""
    own = dict(model.named_parameters(remove_duplicate=False))
    tables = _tables(model, {name: parameter.shape for name, parameter in own.items()})
    for theirs, tensor in whole.items():
        ours = next((own[n] for names in tables for n in own if names.theirs(n) == theirs), None)
        same = ours is not None and ours.shape == tensor.shape
        if ours is None or not (same and torch.equal(plain(ours.detach()).cpu().float(), tensor.float())):
            raise UserError(f"it brings weights of its own for {theirs!r:.200}", where=where, mend=_PLAIN_LORA)


def _places(model: GPT, theirs: Mapping[str, Any], where: str) -> dict[str, TensorNames]:
    """The table of names under which each of their modules is one of ours."""
    linears = {p for p, module in model.named_modules() if isinstance(module, nn.Linear)}
    shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False) if n.rpartition(".")[0] in linears}
    shapes = {name: shape for name, shape in shapes.items() if name.endswith(".weight")}
    best: dict[str, TensorNames] = {}
    for names in _tables(model, shapes):
        known = {names.theirs(name).removesuffix(".weight") for name in shapes}
        found = {module: names for module in theirs if module in known}
        best = found if len(found) > len(best) else best
    missing = next((module for module in theirs if module not in best), None)
    if missing is not None:
        raise UserError(
            f"it changes {missing!r:.200}, which is no linear layer of this model",
            where=where,
            mend="Use the model that it was trained on, and adapters of its linear layers.",
        )
    return best


def _rows_of(ours: str, names: TensorNames, up: Tensor, where: str) -> Tensor:
    """The rows of their `up`, (out, r), that belong to a module of ours."""
    try:
        # The table reads weights, which some families turn; adapters are never turned.
        return names.read(ours, lambda _: up.T if names.family.transposed else up).contiguous()
    except RuntimeError as error:  # of torch: rows that cannot be dealt to the heads
        raise UserError(f"{ours} cannot be cut out of {tuple(up.shape)}", where=where, mend=_AGAIN) from error


def _scale(config: Mapping[str, Any], module: str, rank: int, where: str) -> float:
    """What multiplies the product: alpha / r, or alpha / √r (Kalajdzievski 2023, rsLoRA)."""
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    try:
        odd = next((pattern for pattern in patterns if not _NAME.fullmatch(pattern)), None)
        if odd is not None:  # peft takes it for a regular expression, which may take forever
            raise UserError(f"alpha_pattern {odd!r:.100} is no name of modules", where=where, mend=_PLAIN_LORA)
        fitting = [value for name, value in patterns.items() if f".{module}".endswith(f".{name}")]
        alpha = fitting[0] if fitting else alpha
        scale = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)  # type: ignore[arg-type]
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"lora_alpha or alpha_pattern has a wrong value ({error})", where=where, mend=_AGAIN) from error
    if not math.isfinite(scale):
        raise UserError(f"lora_alpha is {alpha}", where=where, mend=_AGAIN)
    return scale
