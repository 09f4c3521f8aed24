"""A model and its tokenizer as one GGUF file that llama.cpp loads; `gguf.py` reads them back."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bimo.core.errors import UserError
from bimo.interop.architectures import Architecture, architecture_of, factors_of, write_spec
from bimo.interop.gguf import turns
from bimo.interop.gguf_file import write_gguf
from bimo.interop.gguf_vocab import write_tokenizer
from bimo.model.blocks import quantize
from bimo.model.formats import FORMATS, BlockFormat
from bimo.model.gpt import GPT
from bimo.model.packed import PackedTensor, plain
from bimo.tokenizer import Tokenizer

EXPORTS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_K": 15}
"""The formats that can be written, with llama.cpp's number for a file of mostly that format."""

_EMBEDDINGS, _HEAD = "token_embd.weight", "output.weight"
_FINE = (_EMBEDDINGS, _HEAD)  # one byte per number also in 4-bit files: each is used for every token
_EXACT = ("ffn_gate_inp.weight", "position_embd.weight")


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
        if self.architecture.interleaved and turns(name):
            heads = tensor.unflatten(0, (-1, 2, self.spec.head_dim // 2))  # (heads, 2, pairs, …)
            tensor = heads.transpose(1, 2).flatten(0, 2)
        return tensor


def _format_of(name: str, shape: tuple[int, ...], format: str, packed: str) -> BlockFormat:
    """The format that a tensor is written in, which may be `packed` in one already."""
    if len(shape) == 1 or name.endswith(_EXACT):
        return FORMATS["F32"]
    if packed == format:
        return FORMATS[format]
    wanted = "Q8_0" if format.startswith("Q4") and name in _FINE else format
    fitting = (f for f in (wanted, "Q8_0", "F16") if shape[-1] % FORMATS[f].block_size == 0)
    return FORMATS[next(fitting)]
