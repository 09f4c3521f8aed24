"""Who runs beside bimo: what each peer needs of a model, in the same precision."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bimo.core.errors import UserError
from bimo.evaluation.contenders import LlamaCppContender, Maker, TransformersContender
from bimo.interop import export
from bimo.interop.gguf_writing import EXPORTS
from bimo.model.gpt import GPT
from bimo.model.packed import PackedTensor
from bimo.tokenizer import Tokenizer

_FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is measured.

    Attributes:
        path: Where it was read from.
        model: The model.
        tokenizer: Its tokenizer, where it has one.
        folder: For files that peers need.
        threads: For all.
        device: For all.
        precision: Of arithmetic on that device, fp32 or bf16.
    """

    path: Path
    model: GPT
    tokenizer: Tokenizer | None
    folder: Path
    threads: int
    device: str = "cpu"
    precision: str = "fp32"


def llama_cpp(subject: Subject) -> Maker:
    """llama.cpp on the file itself, or on one with the same kind of weights.

    Raises:
        UserError: It is not installed, or the model does not fit it.
    """
    _need("llama_cpp", "llama")
    if subject.device != "cpu":
        raise UserError("it is measured on CPUs only")
    path = subject.path
    if path.suffix != ".gguf":
        path = subject.folder / "model.gguf"
        export(subject.model, subject.tokenizer, path, format_of(subject.model))
    return LlamaCppContender, (str(path), subject.threads)


def transformers(subject: Subject) -> Maker:
    """transformers on the folder itself, or on an exported one; packed weights are unpacked.

    Raises:
        UserError: It is not installed, or the model does not fit it.
    """
    _need("transformers", "hf")
    path = subject.path
    if not (path / "config.json").exists() or packed_format(subject.model):
        path = export(subject.model, subject.tokenizer, subject.folder / "hf", "hf")
    dtype = "bfloat16" if subject.precision == "bf16" else "float32"
    return TransformersContender, (str(path), subject.threads, subject.device, dtype)


PEERS = {"llama.cpp": llama_cpp, "transformers": transformers}


def packed_format(model: GPT) -> str:
    """The format of most packed weights; '' when none are packed."""
    formats = Counter(p.format.name for p in model.parameters() if isinstance(p, PackedTensor))
    return formats.most_common(1)[0][0] if formats else ""


def format_of(model: GPT) -> str:
    """The format of a GGUF file for a model like this."""
    packed = packed_format(model)
    if packed and packed not in EXPORTS:
        raise UserError(f"weights in {packed} cannot be written for it")
    return packed or _FLOATS[str(model.lm_head.weight.dtype).removeprefix("torch.")]


def _need(module: str, extra: str) -> None:
    """Refuse what is not installed, without importing it here."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f'not installed; pip install "bimo[{extra}]"')
