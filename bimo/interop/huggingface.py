"""Model folders in Hugging Face's layout: config.json + safetensors, read and written without transformers.

Only safetensors are read (never pickle), and only families that `families.py` knows (never code out of the folder). A
model that belongs to no family is written as model_type "bimo": bimo reads it, other tools do not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bimo.core.config import ModelSpec
from bimo.core.errors import UserError
from bimo.interop.families import FAMILIES, family_of, read_config
from bimo.interop.tensors import PLAIN, TensorNames
from bimo.model.gpt import GPT
from bimo.model.packed import plain
from bimo.tokenizer import Tokenizer

_AGAIN = "Copy the model's folder again."
_LONGEST_HEADER = 32 * 2**20  # bytes; a model of a thousand layers needs less than 2 MB
_NO_WEIGHTS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def save_model(folder: Path, model: GPT, tokenizer: Tokenizer | None, dtype: str = "float32") -> None:
    """Write config.json, generation_config.json and model.safetensors into an existing folder.

    Args:
        folder: Where to.
        model: The model.
        tokenizer: Settles the ids of control tokens in the configuration; None: there are none.
        dtype: float32, float16 or bfloat16.
    """
    config = config_of(model.spec, tokenizer) | {"dtype": dtype, "torch_dtype": dtype}
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config[key] is not None}
    if tokenizer is not None and len(tokenizer.end_ids) > 1:
        ends["eos_token_id"] = sorted(tokenizer.end_ids)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2), encoding="utf-8")
    parameters = {name: plain(p.detach()).to("cpu", DTYPES[dtype]) for name, p in model.named_parameters()}
    names = TensorNames(family_of(model.spec) or PLAIN, model.spec, {n: p.shape for n, p in parameters.items()})
    tensors = {name: tensor.contiguous() for name, tensor in names.write(parameters).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: Path) -> GPT:
    """Read a model folder: one of bimo's, or one that transformers wrote for a family of `families.py`.

    Returns:
        The model in float32, whatever the file holds.

    Raises:
        UserError: A file is missing, damaged, or asks for what bimo does not compute.
    """
    where = str(folder / "config.json")
    config = read_json(folder / "config.json")
    spec = read_config(config, where)
    family = next((f for f in FAMILIES if f.model_type == config.get("model_type")), PLAIN)
    weights = Weights(folder, family.prefix)
    if spec.n_layers > len(weights.names):
        raise UserError(f"{spec.n_layers} layers, but only {len(weights.names)} tensors", where=where, mend=_AGAIN)
    model = empty_model(spec)
    fill(model, TensorNames(family, spec, {n: p.shape for n, p in model.named_parameters()}), weights)
    return model.eval()


def config_of(spec: ModelSpec, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The config.json of a spec; its own form is kept under "bimo", which others ignore."""
    family = family_of(spec)
    words = family.write(spec) if family else {"architectures": [PLAIN.architecture], "model_type": "bimo"}
    return {
        **words,
        "initializer_range": spec.initializer_range,
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": tokenizer.begin_id if tokenizer else None,
        "eos_token_id": tokenizer.end_id if tokenizer else None,
        "pad_token_id": tokenizer.pad_id if tokenizer else None,
        "bimo": spec.to_dict(),
    }


class Weights:
    """The tensors of a folder's safetensors, one or many files, opened lazily.

    Args:
        folder: The model's folder.
        prefix: Put before names that lack it: some checkpoints were saved without the head around them.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        if index.exists():
            files = _shards(index)
        elif (folder / "model.safetensors").exists():
            files = ["model.safetensors"]
        else:
            raise UserError(
                "this model folder has no model.safetensors", where=str(folder), mend="Bring weights as safetensors."
            )
        self._homes: dict[str, tuple[Any, str, Path]] = {}  # their full name → open file, name in it, path
        for path in (folder / name for name in files):
            file = _opened(path)
            for name in file.keys():  # noqa: SIM118  # not a dictionary
                self._homes[name] = (file, name, path)
        if prefix and not any(name.startswith(prefix) for name in self._homes):
            heads = ("lm_head", "embed_out")
            self._homes = {n if n.startswith(heads) else prefix + n: home for n, home in self._homes.items()}
        self.names = self._homes.keys()

    def get(self, name: str) -> Tensor:
        """A tensor in its own dtype, mapped from the file where possible."""
        if name not in self._homes:
            raise UserError(f"tensor {name!r} is missing", where=str(self.folder), mend=_AGAIN)
        file, inner, path = self._homes[name]
        try:
            tensor: Tensor = file.get_tensor(inner)
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"damaged weights ({error})", where=str(path), mend=_AGAIN) from error
        if not tensor.is_floating_point():
            raise UserError(f"tensor {name!r} holds {tensor.dtype}", where=str(path), mend="Bring the plain weights.")
        return tensor


def empty_model(spec: ModelSpec) -> GPT:
    """A GPT without memory for its weights, which `fill` brings; buffers are real."""
    with torch.device("meta"):
        model = GPT(spec)
    if any(buffer.is_meta for buffer in model.buffers()):  # of a module of the user
        return GPT(spec)
    return model


def fill(model: GPT, names: TensorNames, weights: Weights) -> None:
    """Give every parameter its tensor in float32; the names and shapes must match exactly."""
    used: set[str] = set()

    def get(name: str) -> Tensor:
        used.add(name)
        return weights.get(name)

    for name, parameter in list(model.named_parameters()):
        tensor = names.read(name, get)
        if tensor.shape != parameter.shape:
            raise UserError(
                f"tensor {names.theirs(name)!r} is {tuple(tensor.shape)}, the model has {tuple(parameter.shape)}",
                where=str(weights.folder),
                mend=_AGAIN,
            )
        assign(model, name, tensor.float().contiguous())
    if model.spec.tied_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
        used.add(names.theirs("lm_head.weight"))
    left = sorted(name for name in weights.names - used if not name.endswith(_NO_WEIGHTS))
    if left:
        raise UserError(
            f"tensor {left[0]!r} is in the file, the model has no tensor of that name",
            where=str(weights.folder),
            mend=_AGAIN,
        )


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of a parameter."""
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object out of a file.

    Raises:
        UserError: There is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("no such file", where=str(path), mend="Name a run or a model folder.") from error
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", where=str(path), mend=_AGAIN) from error
    if not isinstance(content, dict):
        raise UserError("not a JSON object", where=str(path), mend=_AGAIN)
    return content


def _shards(index: Path) -> list[str]:
    """File names of a sharded checkpoint; only files right in the folder are opened."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError("weight_map is no table of file names", where=str(index), mend=_AGAIN)
    files = sorted(set(places.values()))
    outside = [name for name in files if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise UserError(f"{outside[0]!r} is no .safetensors file of this folder", where=str(index), mend=_AGAIN)
    return files


def _opened(path: Path) -> Any:
    """A safetensors file whose header is sound."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LONGEST_HEADER, path.stat().st_size):
                raise UserError(f"damaged weights (a header of {length} bytes)", where=str(path), mend=_AGAIN)
        opened: Callable[..., Any] = safe_open
        return opened(path, framework="pt")
    except (SafetensorError, OSError, OverflowError) as error:
        raise UserError(f"damaged weights ({error})", where=str(path), mend=_AGAIN) from error
