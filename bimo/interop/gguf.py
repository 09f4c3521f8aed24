"""GGUF, the file of llama.cpp: a model with its tokenizer in one file, weights in blocks of a few bits.

Reading keeps the blocks packed and mapped (`model/packed.py`). What each architecture computes and how it names things
is in `architectures.py`, the file's layout in `gguf_file.py`, tokenizers in `gguf_vocab.py`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bimo.core.errors import UserError
from bimo.core.spec import ModelSpec
from bimo.interop.architectures import ARCHITECTURES, Architecture, architecture_of, factors_of, read_spec, write_spec
from bimo.interop.gguf_file import GGUFFile, read_gguf, write_gguf
from bimo.interop.gguf_vocab import read_tokenizer, write_tokenizer
from bimo.interop.huggingface import MOST_LAYERS, assign, empty_model
from bimo.model.blocks import FORMATS, BlockFormat, dequantize, quantize
from bimo.model.gpt import GPT
from bimo.model.packed import PackedTensor, plain
from bimo.tokenizer import Tokenizer

EXPORTS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_K": 15}
"""The formats that can be written, with llama.cpp's number for a file of mostly that format."""

_AGAIN = "Download or export the file again."
_EMBEDDINGS, _HEAD = "token_embd.weight", "output.weight"
_FINE = (_EMBEDDINGS, _HEAD)  # one byte per number also in 4-bit files: each is used for every token
_EXACT = ("ffn_gate_inp.weight", "position_embd.weight")
_BY_NUMBER = {format.number: format for format in FORMATS.values()}
_FRACTIONS = (
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base", "rope.scaling.factor"),
    *("rope.scaling.attn_factor", "attn_logit_softcapping", "final_logit_softcapping"),
)
_MOST_FACTORS = 2**16


def load_gguf(path: Path) -> tuple[GPT, Tokenizer]:
    """Read a model and its tokenizer out of a GGUF file; matrices stay packed in the mapped file.

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
    model = empty_model(spec, str(path), n_tensors=len(file.tensors), n_numbers=n_numbers)
    _fill(model, architecture, file)
    return model.eval(), read_tokenizer(file.metadata, where=str(path))


def save_gguf(path: Path, model: GPT, tokenizer: Tokenizer, format: str = "F16", name: str = "bimo") -> None:
    """Write a model and its tokenizer as one GGUF file that llama.cpp loads.

    Vectors, routers and learned positions are written as F32. With Q4_0 and Q4_K the embeddings and the head are Q8_0.
    A matrix whose width does not fit the blocks is written as Q8_0, or else as F16. Matrices that are packed in the
    format already go over as they are, bit for bit.

    Args:
        path: Where to; an existing file is replaced.
        model: The model.
        tokenizer: The tokenizer.
        format: One of `EXPORTS`.
        name: What the file says that the model is called.

    Raises:
        UserError: No architecture of llama.cpp computes this model's function, or its tokenizer is not known there.
    """
    if format not in EXPORTS:
        raise UserError(f"unknown format {format!r}", where="GGUF", mend=f"One of {', '.join(EXPORTS)}.")
    spec = model.spec
    architecture = architecture_of(spec)
    metadata = {
        "general.architecture": architecture.name,
        "general.type": "model",
        "general.name": name,
        "general.file_type": EXPORTS[format],
        "general.quantization_version": 2,
        **write_spec(architecture, spec),
        **write_tokenizer(tokenizer, spec.vocab_size),
    }
    source = _Source(architecture, model)
    formats = {n: _format_of(n, shape, format, source.packed(n)) for n, shape in source.shapes.items()}
    tensors = [(n, shape, formats[n].number) for n, shape in source.shapes.items()]
    write_gguf(path, metadata, tensors, lambda n: source.rows(n, formats[n]).flatten().numpy())


class _Source:
    """The tensors of a file to be written, made one by one.

    Args:
        architecture: Whose names and layouts they have.
        model: Where they come from.
    """

    def __init__(self, architecture: Architecture, model: GPT) -> None:
        self.architecture, self.spec = architecture, model.spec
        self.parameters = dict(model.named_parameters())
        self.names = architecture.tensor_names(model.spec, {name: p.shape for name, p in self.parameters.items()})
        self.factors = factors_of(architecture, model.spec)
        self.parts: dict[str, list[str]] = {}  # their name → ours
        for name in self.parameters:
            self.parts.setdefault(self.names.theirs(name), []).append(name)
        self.shapes = {theirs: self._shape(parts) for theirs, parts in self.parts.items()}
        self.shapes |= {name: (len(numbers),) for name, numbers in self.factors.items()}
        if architecture.own_head and model.spec.tied_embeddings:
            self.parts[_HEAD] = self.parts[_EMBEDDINGS]
            self.shapes[_HEAD] = self.shapes[_EMBEDDINGS]

    def get(self, theirs: str) -> Tensor:
        """A tensor in their layout, float32, on the CPU."""
        if theirs in self.factors:
            return torch.tensor(self.factors[theirs])
        tensors = {name: self._prepared(name) for name in self.parts[theirs]}
        [tensor] = self.names.write(tensors).values()
        return tensor.contiguous()

    def packed(self, theirs: str) -> str:
        """The format in which all parts of a tensor are packed already; '' for none."""
        parts = [self.parameters[name] for name in self.parts.get(theirs, ())]
        formats = {part.format.name if isinstance(part, PackedTensor) else "" for part in parts}
        return formats.pop() if len(formats) == 1 else ""

    def rows(self, theirs: str, format: BlockFormat) -> Tensor:
        """A tensor as packed rows of a format, uint8, (…, rows, bytes of a row)."""
        if format.block_size == 1 or self.packed(theirs) != format.name:
            return quantize(self.get(theirs), format)
        # Layouts of theirs differ in the order of rows alone, so rows of bytes can be put into it, too.
        parts = {name: self._ordered(name, self._rows_of(name)) for name in self.parts[theirs]}
        [rows] = self.names.write(parts).values()
        return rows.contiguous()

    def _rows_of(self, name: str) -> Tensor:
        parameter = self.parameters[name]
        assert isinstance(parameter, PackedTensor), f"{name} is not packed"
        return parameter.rows.cpu()

    def _shape(self, parts: list[str]) -> tuple[int, ...]:
        shapes = [tuple(self.parameters[name].shape) for name in parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def _prepared(self, name: str) -> Tensor:
        tensor = plain(self.parameters[name].detach()).float().cpu()
        if self.spec.norm == "rmsnorm_1p" and "norm" in name:
            tensor = tensor + 1.0  # llama.cpp counts these weights from 0
        return self._ordered(name, tensor)

    def _ordered(self, name: str, tensor: Tensor) -> Tensor:
        """Rows in their order."""
        if self.architecture.interleaved and _turns(name):
            heads = tensor.unflatten(0, (-1, 2, self.spec.head_dim // 2))  # (heads, 2, pairs, …)
            tensor = heads.transpose(1, 2).flatten(0, 2)
        return tensor


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


def _fill(model: GPT, architecture: Architecture, file: GGUFFile) -> None:
    """Give every parameter its tensor: vectors and float32 as they are, other matrices packed."""
    parameters = dict(model.named_parameters())
    names = architecture.tensor_names(model.spec, {name: p.shape for name, p in parameters.items()})
    wanted: dict[str, tuple[int, ...]] = {}  # shapes of their tensors, each of which may hold several of ours
    for name, parameter in parameters.items():
        theirs = names.theirs(name)
        wanted[theirs] = (wanted.get(theirs, (0,))[0] + parameter.shape[0], *parameter.shape[1:])
    for theirs, shape in wanted.items():
        if theirs not in file.tensors:
            raise UserError(f"tensor {theirs!r} is missing", where=str(file.path), mend=_AGAIN)
        found = file.tensors[theirs].shape
        if found != shape:
            raise UserError(f"tensor {theirs!r} is {found}, the model has {shape}", where=str(file.path), mend=_AGAIN)
    for name in parameters:
        assign(model, name, _parameter(name, architecture, model.spec, file, names.read))
    if model.spec.tied_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    left = sorted(n for n in file.tensors.keys() - wanted.keys() - {*_factor_names(file)} if "rot_embd" not in n)
    if left:
        raise UserError(f"tensor {left[0]!r} has no place in the model", where=str(file.path), mend=_AGAIN)


def _parameter(name: str, architecture: Architecture, spec: ModelSpec, file: GGUFFile, read: Any) -> Tensor:
    theirs = architecture.tensor_names(spec, {}).theirs(name)
    info = file.tensors[theirs]
    vector = len(info.shape) == 1
    rows: Tensor = read(name, lambda source: (_vector if vector else _rows)(file, source))
    if architecture.interleaved and _turns(name) and len(rows) % spec.head_dim == 0:
        rows = rows.unflatten(0, (-1, spec.head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
    if vector:
        return rows - 1.0 if spec.norm == "rmsnorm_1p" and "norm" in name else rows
    format = _BY_NUMBER[info.type]
    if format.name == "F32":
        return rows.contiguous().view(torch.float32)
    return PackedTensor(rows, format, info.shape[-1])


def _turns(name: str) -> bool:
    """Whether rotary positions turn what comes out of this."""
    return name.rpartition(".")[0].endswith(("q_proj", "k_proj"))


def _rows(file: GGUFFile, name: str) -> Tensor:
    """A matrix as packed rows, uint8, (…, rows, bytes of a row), mapped."""
    info = file.tensors[name]
    return torch.from_numpy(file.data(name)).view(*info.shape[:-1], -1)


def _vector(file: GGUFFile, name: str) -> Tensor:
    """A small tensor as float32."""
    info = file.tensors[name]
    return dequantize(_rows(file, name), _BY_NUMBER[info.type]).reshape(info.shape)


def _format_of(name: str, shape: tuple[int, ...], format: str, packed: str) -> BlockFormat:
    """The format that a tensor is written in, which may be `packed` in one already."""
    if len(shape) == 1 or name.endswith(_EXACT):
        return FORMATS["F32"]
    if packed == format:
        return FORMATS[format]
    wanted = "Q8_0" if format.startswith("Q4") and name in _FINE else format
    fitting = (f for f in (wanted, "Q8_0", "F16") if shape[-1] % FORMATS[f].block_size == 0)
    return FORMATS[next(fitting)]
