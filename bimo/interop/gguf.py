"""GGUF, the file of llama.cpp: a model with its tokenizer in one file, weights in blocks of a few bits.

Reading keeps the blocks packed and mapped, and loads no torch: what comes out is a `StoredModel`. What each
architecture computes and how it names things is in `architectures.py`, the file's layout in `gguf_file.py`, tokenizers
in `gguf_vocab.py`. `gguf_writing.py` writes such files.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bimo.core.errors import UserError
from bimo.core.spec import ModelSpec
from bimo.interop.architectures import ARCHITECTURES, Architecture, read_spec
from bimo.interop.gguf_file import GGUFFile, read_gguf
from bimo.interop.gguf_vocab import read_tokenizer
from bimo.interop.limits import MOST_LAYERS, check_size
from bimo.interop.tensors import TensorNames
from bimo.model.formats import FORMATS
from bimo.model.frequencies import frequencies
from bimo.model.shapes import parameter_shapes
from bimo.model.stored import StoredModel, StoredTensor
from bimo.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bimo.model.gpt import GPT

_AGAIN = "Download or export the file again."
_BY_NUMBER = {format.number: format for format in FORMATS.values()}
_FRACTIONS = (
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base", "rope.scaling.factor"),
    *("rope.scaling.attn_factor", "attn_logit_softcapping", "final_logit_softcapping"),
)
_MOST_FACTORS = 2**16


def load_gguf(path: Path) -> tuple[GPT, Tokenizer]:
    """Read a model and its tokenizer out of a GGUF file; matrices stay packed in the mapped file.

    Raises:
        UserError: As `read_model`.
    """
    stored, tokenizer = read_model(path)
    return stored.build(), tokenizer


def read_model(path: Path) -> tuple[StoredModel, Tokenizer]:
    """A model as it lies in a GGUF file, and its tokenizer.

    Raises:
        UserError: The file is damaged or hostile, or asks for what bimo does not compute.
    """
    file = read_gguf(path)
    name = file.metadata.get("general.architecture")
    architecture = next((a for a in ARCHITECTURES if a.name == name), None)
    if architecture is None:
        known = ", ".join(a.name for a in ARCHITECTURES)
        raise UserError(f"the architecture {name!r} is not supported", where=str(path), mend=f"Known: {known}.")
    spec = _spec(architecture, file)
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > spec.vocab_size:
        what = f"the tokenizer has {len(tokens)} ids, the model only {spec.vocab_size}"
        raise UserError(what, where=str(path), mend=_AGAIN)
    n_numbers = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    check_size(spec, str(path), n_tensors=len(file.tensors), n_numbers=n_numbers)
    _check_frequencies(spec, str(path))
    stored = StoredModel(spec, spec.n_layers, _tensors(spec, architecture, file))
    return stored, read_tokenizer(file.metadata, where=str(path))


def turns(name: str) -> bool:
    """Whether rotary positions turn what comes out of a parameter."""
    return name.rpartition(".")[0].endswith(("q_proj", "k_proj"))


def _spec(architecture: Architecture, file: GGUFFile) -> ModelSpec:
    where = str(file.path)
    _check_fields(architecture.name, file)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    factors = {name: tuple(_vector(file, name).tolist()) for name in _factor_names(file)}
    try:
        return read_spec(architecture, file.metadata, shapes, factors)
    except KeyError as error:
        raise UserError(f"the field or tensor {error} is missing", where=where, mend=_AGAIN) from error
    except UserError as error:
        raise UserError(error.what, where=where, mend=_AGAIN) from error
    except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError) as error:
        raise UserError(f"a field has a wrong value ({error})", where=where, mend=_AGAIN) from error


def _check_fields(name: str, file: GGUFFile) -> None:
    """Refuse fields of an architecture that are no numbers where there must be some, and absurdly many layers."""
    where = str(file.path)
    for key in (f"{name}.{key}" for key in _FRACTIONS):
        found = file.metadata.get(key, 1.0)
        for number in found if isinstance(found, list) else [found]:
            if not isinstance(number, (int, float)) or isinstance(number, bool):
                raise UserError(f"the field {key} is {number!r:.50}, which is no number", where=where, mend=_AGAIN)
    count = file.metadata.get(f"{name}.block_count")
    layers = max((n for n in (count if isinstance(count, list) else [count]) if isinstance(n, int)), default=0)
    if layers > min(MOST_LAYERS, len(file.tensors)):  # lists of that length would be made
        raise UserError(f"{layers} layers, but {len(file.tensors)} tensors", where=where, mend=_AGAIN)


def _factor_names(file: GGUFFile) -> list[str]:
    known = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
    found = [name for name in known if name in file.tensors]
    long = next((name for name in found if math.prod(file.tensors[name].shape) > _MOST_FACTORS), None)
    if long is not None:
        raise UserError(f"tensor {long!r} holds more factors than heads have", where=str(file.path), mend=_AGAIN)
    return found


def _check_frequencies(spec: ModelSpec, where: str) -> None:
    if spec.positions != "rotary":
        return
    try:
        with np.errstate(all="ignore"):
            frequencies(spec)
    except (ArithmeticError, ValueError) as error:  # of numbers that go with no others
        raise UserError(f"there is no such model ({error})", where=where, mend=_AGAIN) from error


def _tensors(spec: ModelSpec, architecture: Architecture, file: GGUFFile) -> dict[str, StoredTensor]:
    """Every parameter: vectors as float32, matrices as they lie."""
    shapes = parameter_shapes(spec)
    names = architecture.tensor_names(spec, shapes)
    wanted: dict[str, tuple[int, ...]] = {}  # shapes of their tensors, each of which may hold several of ours
    for name, shape in shapes.items():
        theirs = names.theirs(name)
        wanted[theirs] = (wanted.get(theirs, (0,))[0] + shape[0], *shape[1:])
    for theirs, shape in wanted.items():
        if theirs not in file.tensors:
            raise UserError(f"tensor {theirs!r} is missing", where=str(file.path), mend=_AGAIN)
        found = file.tensors[theirs].shape
        if found != shape:
            raise UserError(f"tensor {theirs!r} is {found}, the model has {shape}", where=str(file.path), mend=_AGAIN)
    left = sorted(n for n in file.tensors.keys() - wanted.keys() - {*_factor_names(file)} if "rot_embd" not in n)
    if left:
        raise UserError(f"tensor {left[0]!r} has no place in the model", where=str(file.path), mend=_AGAIN)
    return {name: _tensor(name, architecture, names, file) for name in shapes}


def _tensor(name: str, architecture: Architecture, names: TensorNames, file: GGUFFile) -> StoredTensor:
    theirs, spec = names.theirs(name), names.spec
    info, own = file.tensors[theirs], names.rows(name)
    sides = architecture.interleaved and turns(name)
    if len(info.shape) > 1:
        rows = file.data(theirs).reshape(*info.shape[:-1], -1)[own]
        return StoredTensor(rows, _BY_NUMBER[info.type], spec.head_dim // 2 if sides else 0)
    numbers = _vector(file, theirs)[own]
    if sides:
        numbers = numbers.reshape(-1, spec.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    if spec.norm == "rmsnorm_1p" and "norm" in name:
        numbers = numbers - np.float32(1)
    return StoredTensor(np.ascontiguousarray(numbers).view(np.uint8), FORMATS["F32"])


def _vector(file: GGUFFile, name: str) -> np.ndarray:
    """A small tensor as float32."""
    info = file.tensors[name]
    stored = StoredTensor(file.data(name).reshape(*info.shape[:-1], -1), _BY_NUMBER[info.type])
    return stored.floats().reshape(info.shape)
