"""Writing a model for other tools: a Hugging Face folder, a GGUF file in one of its formats, or an ONNX graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bimo.core.artifacts import write_folder
from bimo.core.errors import UserError, nearest
from bimo.interop.gguf import EXPORTS, save_gguf
from bimo.interop.gguf_file import read_gguf
from bimo.interop.huggingface import DTYPES, save_model
from bimo.interop.onnx import save_onnx
from bimo.model.blocks import FORMATS as BLOCK_FORMATS
from bimo.model.gpt import GPT
from bimo.tokenizer import Tokenizer

FORMATS = ("hf", *EXPORTS, "onnx")


def export(model: GPT, tokenizer: Tokenizer | None, path: Path, format: str, dtype: str = "float32") -> Path:
    """Write a model.

    Args:
        model: The model.
        tokenizer: Its tokenizer; GGUF cannot do without, ONNX has no place for it.
        path: A folder for "hf", else a file.
        format: One of `FORMATS`.
        dtype: Of the weights in a folder: float32, float16 or bfloat16.

    Returns:
        The path.

    Raises:
        UserError: The format is unknown, or cannot hold this model.
    """
    if format not in FORMATS:
        raise UserError(f"no format {format!r}{nearest(format, FORMATS)}", mend=f"Use one of {', '.join(FORMATS)}.")
    if dtype not in DTYPES:
        raise UserError(f"no dtype {dtype!r}{nearest(dtype, DTYPES)}", mend=f"Use one of {', '.join(DTYPES)}.")
    if format != "hf" and dtype != "float32":
        raise UserError(f"dtype {dtype} is for a folder, not for {format}", mend="Choose the format alone.")
    if format != "hf" and path.is_dir():
        raise UserError("this is a folder, and the format is one file", where=str(path), mend="Name a file.")
    if format == "hf":
        with write_folder(path) as target:
            save_model(target, model, tokenizer, dtype)
            if tokenizer is not None:
                tokenizer.save(target)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if format == "onnx":
        save_onnx(path, model)
        return path
    if tokenizer is None:
        raise UserError("a GGUF file needs a tokenizer, and this model has none", mend="Add its tokenizer.json.")
    save_gguf(path, model, tokenizer, format, name=path.stem)
    return path


def formats_in(path: Path) -> dict[str, int]:
    """How many tensors of each format a GGUF file holds, the most frequent first."""
    names = {format.number: format.name for format in BLOCK_FORMATS.values()}
    return dict(Counter(names[tensor.type] for tensor in read_gguf(path).tensors.values()).most_common())


def format_by_name(path: Path) -> str:
    """The format that a name suggests."""
    return {".gguf": "F16", ".onnx": "onnx"}.get(path.suffix, "hf")
