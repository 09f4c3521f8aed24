"""Model folders in Hugging Face's layout: config.json + safetensors, read and written without transformers.

Only safetensors are read (never pickle), and only families that `families.py` knows (never code out of the folder). A
model that belongs to no family is written as model_type "bimo": bimo reads it, other tools do not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bimo.core.config import ModelSpec
from bimo.core.errors import UserError
from bimo.core.json_files import read_json
from bimo.interop.families import FAMILIES, PLAIN, Family, family_of, read_config
from bimo.interop.limits import MOST_LAYERS, check_size
from bimo.interop.packing import check_rows, packing, read_formats
from bimo.interop.tensors import TensorNames
from bimo.model.formats import BlockFormat
from bimo.model.gpt import GPT, without_weights
from bimo.model.packed import PackedTensor, assign, plain
from bimo.tokenizer import Tokenizer

_AGAIN = "Copy the model's folder again."
_LONGEST_HEADER = 2**24  # bytes; a model of a thousand layers needs less than 2 MB
_LONGEST_INDEX = 2**24
_MOST_TENSORS, _MOST_VALUES = 2**17, 2**17
_NO_WEIGHTS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
_OWN = {"architectures": [PLAIN.architecture], "model_type": PLAIN.model_type}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def save_model(
    folder: Path, model: GPT, tokenizer: Tokenizer | None, dtype: str = "float32", *, packed: bool = False
) -> None:
    """Write config.json, generation_config.json and model.safetensors into an existing folder.

    Args:
        folder: Where to.
        model: The model.
        tokenizer: Settles the ids of control tokens in the configuration; None: there are none.
        dtype: float32, float16 or bfloat16.
        packed: Whether packed weights stay as they are: then bimo alone reads the folder, whatever the family.

    Raises:
        UserError: A number does not fit the dtype, or the disk is full.
    """
    family = None if packed else family_of(model.spec)
    config = config_of(model.spec, tokenizer) | {"dtype": dtype, "torch_dtype": dtype}
    if packed:
        config |= _OWN | packing(model)
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config[key] is not None}
    if tokenizer is not None and len(tokenizer.end_ids) > 1:
        ends["eos_token_id"] = sorted(tokenizer.end_ids)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2), encoding="utf-8")
    parameters = {
        name: p.rows.cpu() if packed and isinstance(p, PackedTensor) else _as(p, DTYPES[dtype], name)
        for name, p in model.named_parameters()
    }
    names = TensorNames(family or PLAIN, model.spec, {n: p.shape for n, p in parameters.items()})
    tensors = {name: tensor.contiguous() for name, tensor in names.write(parameters).items()}
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "bimo" if packed else "pt"})
    except SafetensorError as error:  # what the system said
        raise UserError(f"cannot be written ({error})", where=str(folder), mend="Free space.") from error


def _as(parameter: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A parameter in another dtype, which must hold it."""
    numbers = plain(parameter.detach())
    found = numbers.to("cpu", dtype)
    if found.isinf().any() and not numbers.isinf().any():
        raise UserError(f"{name} holds a number that does not fit {dtype}", mend="Use bfloat16 or float32.")
    return found


def load_model(folder: Path) -> GPT:
    """Read a model folder: one of bimo's, or one that transformers wrote for a family of `families.py`.

    Returns:
        The model in float32, whatever the file holds; matrices that bimo has quantised stay packed in the mapped file.

    Raises:
        UserError: A file is missing, damaged, or asks for what bimo does not compute.
    """
    where = str(folder / "config.json")
    config = read_json(folder / "config.json")
    spec = _spec(config, where)
    family = next((f for f in FAMILIES if f.model_type == config.get("model_type")), PLAIN)
    formats = read_formats(config, where)
    weights = Weights(folder, family.prefix)
    if spec.tied_embeddings and _has_another_head(spec, family, weights):
        spec = replace(spec, tied_embeddings=False)
    n_numbers = weights.n_bytes * (2 if formats else 1)  # no format has less than four bits
    model = empty_model(spec, where, n_tensors=len(weights.names), n_numbers=n_numbers)
    fill(model, TensorNames(family, spec, {n: p.shape for n, p in model.named_parameters()}), weights, formats)
    return model.eval()


def _has_another_head(spec: ModelSpec, family: Family, weights: Weights) -> bool:
    """Whether the files of tied embeddings hold a head that is not the embeddings; it counts, as in transformers."""
    shape = torch.Size((spec.vocab_size, spec.d_model))
    names = TensorNames(family, spec, {"embed_tokens.weight": shape, "lm_head.weight": shape})
    both = [names.theirs(name) for name in ("embed_tokens.weight", "lm_head.weight")]
    if not {*both} <= {*weights.names} or any(list(weights.shape(name)) != [*shape] for name in both):
        return False
    return not torch.equal(*map(weights.get, both))


def config_of(spec: ModelSpec, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The config.json of a spec; its own form is kept under "bimo", which others ignore."""
    family = family_of(spec)
    pad = spec.padding_id if spec.padding_id >= 0 else tokenizer.pad_id if tokenizer else None
    words = family.write(spec) if family else _OWN
    return {
        **words,
        "initializer_range": spec.initializer_range or 0.02,
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": tokenizer.begin_id if tokenizer else None,
        "eos_token_id": tokenizer.end_id if tokenizer else None,
        "pad_token_id": pad,
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
        if os.path.lexists(index):
            files = _shards(index)
        elif (folder / "model.safetensors").is_file():
            files = ["model.safetensors"]
        else:
            raise UserError(
                "this model folder has no model.safetensors", where=str(folder), mend="Bring weights as safetensors."
            )
        self._homes: dict[str, tuple[Any, str, Path]] = {}  # their full name → open file, name in it, path
        for path in (folder / name for name in files):
            file = open_safetensors(path)
            for name in file.keys():  # noqa: SIM118  # not a dictionary
                if name in self._homes:
                    raise UserError(f"tensor {name!r} stands in two files", where=str(path), mend=_AGAIN)
                self._homes[name] = (file, name, path)
        if prefix and not any(name.startswith(prefix) for name in self._homes):
            heads = ("lm_head", "embed_out")
            self._homes = {n if n.startswith(heads) else prefix + n: home for n, home in self._homes.items()}
        self.names = self._homes.keys()
        self.n_bytes = sum((folder / name).stat().st_size for name in files)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape; () when it is missing."""
        if name not in self._homes:
            return ()
        file, inner, _ = self._homes[name]
        return tuple(file.get_slice(inner).get_shape())

    def get(self, name: str, *, packed: bool = False) -> Tensor:
        """A tensor in its own dtype, or packed rows, mapped from the file where possible."""
        if name not in self._homes:
            raise UserError(f"tensor {name!r} is missing", where=str(self.folder), mend=_AGAIN)
        file, inner, path = self._homes[name]
        try:
            tensor: Tensor = file.get_tensor(inner)
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"damaged weights ({error})", where=str(path), mend=_AGAIN) from error
        if not (tensor.is_floating_point() or (packed and tensor.dtype == torch.uint8)):
            raise UserError(f"tensor {name!r} holds {tensor.dtype}", where=str(path), mend="Bring the plain weights.")
        return tensor


def empty_model(spec: ModelSpec, where: str, *, n_tensors: int, n_numbers: int) -> GPT:
    """A GPT without memory for its weights, which `fill` brings; buffers are real.

    Args:
        spec: The model.
        where: What to name in errors.
        n_tensors: Tensors that its files hold.
        n_numbers: Numbers that they hold at most.

    Raises:
        UserError: The files cannot hold such a model, or there is none.
    """
    check_size(spec, where, n_tensors=n_tensors, n_numbers=n_numbers)
    try:
        return without_weights(spec)
    except (RuntimeError, ArithmeticError, ValueError) as error:  # of torch, or of numbers that go with no others
        raise UserError(f"there is no such model ({error})", where=where, mend=_AGAIN) from error


def fill(model: GPT, names: TensorNames, weights: Weights, formats: Mapping[str, BlockFormat] | None = None) -> None:
    """Give every parameter its tensor in float32; the names and shapes must match exactly.

    Args:
        model: Without weights.
        names: How the file calls them.
        weights: The file.
        formats: By our names, those that lie in it as packed rows.
    """
    used: set[str] = set()
    formats = formats or {}

    def get(name: str) -> Tensor:
        used.add(name)
        return weights.get(name)

    where = str(weights.folder)
    for name, parameter in list(model.named_parameters()):
        theirs = names.theirs(name)
        if name in formats:
            used.add(theirs)
            rows = check_rows(weights.get(theirs, packed=True), theirs, formats[name], parameter.shape, where)
            assign(model, name, PackedTensor(rows, formats[name], parameter.shape[-1]))
            continue
        _check_experts(name, parameter, names, weights)
        try:
            tensor = names.read(name, get)
            if tensor.shape != parameter.shape:
                found, wanted = tuple(tensor.shape), tuple(parameter.shape)
                raise UserError(f"tensor {theirs!r} is {found}, the model has {wanted}", where=where, mend=_AGAIN)
            assign(model, name, tensor.float().contiguous())
        except RuntimeError as error:  # of torch: numbers that it does not convert
            raise UserError(f"tensor {theirs!r} cannot be used ({error})", where=where, mend=_AGAIN) from error
    if model.spec.tied_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
        used.add(names.theirs("lm_head.weight"))
    strange = sorted(formats.keys() - dict(model.named_parameters()).keys())
    if strange:
        raise UserError(f"the model has no {strange[0]!r:.100} that could be packed", where=where, mend=_AGAIN)
    left = sorted(name for name in weights.names - used if not name.endswith(_NO_WEIGHTS))
    if left:
        raise UserError(
            f"tensor {left[0]!r} is in the file, the model has no tensor of that name", where=where, mend=_AGAIN
        )


def _check_experts(name: str, parameter: Tensor, names: TensorNames, weights: Weights) -> None:
    """Experts are put together out of tensors of their own: that they fit must be known before."""
    if "*" not in names.theirs(name):
        return
    n_experts, *shape = parameter.shape
    found = names.sources(name) if n_experts <= len(weights.names) else [names.theirs(name)]
    odd = next((source for source in found if list(weights.shape(source)) != shape), None)
    if odd is not None:
        what = f"is {weights.shape(odd)}, the model has {tuple(shape)}" if odd in weights.names else "is missing"
        raise UserError(f"tensor {odd!r} {what}", where=str(weights.folder), mend=_AGAIN)


def _spec(config: dict[str, Any], where: str) -> ModelSpec:
    """The spec of a config.json, whatever is wrong with it."""
    layers = next((config[key] for key in ("num_hidden_layers", "n_layer") if key in config), 0)
    if isinstance(layers, int) and layers > MOST_LAYERS:  # lists of that length would be made
        raise UserError(f"it asks for {layers!r:.50} layers", where=where, mend=_AGAIN)
    try:
        return read_config(config, where)
    except UserError as error:
        raise error if error.where == where else UserError(error.what, where=where, mend=error.mend) from error
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        raise UserError(f"a field has a wrong value ({error})", where=where, mend=_AGAIN) from error


def _shards(index: Path) -> list[str]:
    """File names of a sharded checkpoint; only files right in the folder are opened."""
    places = read_json(index, _LONGEST_INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError("weight_map is no table of file names", where=str(index), mend=_AGAIN)
    files = sorted(set(places.values()))
    outside = [name for name in files if Path(name).name != name or not name.endswith(".safetensors")]
    if outside:
        raise UserError(f"{outside[0]!r} is no .safetensors file of this folder", where=str(index), mend=_AGAIN)
    return files


def open_safetensors(path: Path) -> Any:
    """A safetensors file whose header is sound."""
    try:
        if not path.is_file():
            raise UserError("no such file", where=str(path), mend=_AGAIN)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_LONGEST_HEADER, path.stat().st_size):
                raise UserError(f"damaged weights (a header of {length} bytes)", where=str(path), mend=_AGAIN)
            header = file.read(length)
        n_entries = header.count(b'"data_offsets"')
        if n_entries > _MOST_TENSORS or header.count(b",") > 16 * n_entries + _MOST_VALUES:
            raise UserError(f"damaged weights (the header of {n_entries} tensors)", where=str(path), mend=_AGAIN)
        json.loads(header.decode(), object_pairs_hook=_once)  # of names that stand twice, the library takes the last
        opened: Any = safe_open(path, framework="pt")  # type: ignore[no-untyped-call]
        return opened
    except (SafetensorError, OSError, OverflowError, ValueError, RecursionError) as error:
        raise UserError(f"damaged weights ({error})", where=str(path), mend=_AGAIN) from error


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Refuse a JSON object in which a name stands twice; nothing of it is kept."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name stands twice")
