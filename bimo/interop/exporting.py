"""Writing a model for other tools: a Hugging Face folder, a GGUF file in one of its formats, or an ONNX graph."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bimo.core.artifacts import write_folder
from bimo.core.errors import UserError, nearest
from bimo.interop.gguf_file import read_gguf
from bimo.interop.gguf_writing import EXPORTS, save_gguf
from bimo.interop.huggingface import DTYPES, save_model
from bimo.interop.onnx import save_onnx
from bimo.model.formats import FORMATS as BLOCK_FORMATS
from bimo.model.gpt import GPT
from bimo.tokenizer import Tokenizer

FORMATS = ("hf", *EXPORTS, "onnx")
COST = "quantization.json"
"""What quantisation has cost, beside the weights."""


def export(
    model: GPT,
    tokenizer: Tokenizer | None,
    path: Path,
    format: str,
    dtype: str = "float32",
    *,
    source: Path | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a model.

    Args:
        model: The model.
        tokenizer: Its tokenizer; GGUF cannot do without, ONNX has no place for it.
        path: A folder for "hf", else a file.
        format: One of `FORMATS`.
        dtype: Of the weights in a folder: float32, float16 or bfloat16.
        source: Where the model came from, which is not written over.
        beside: More files of a folder, name → content.

    Returns:
        The path.

    Raises:
        UserError: The format is unknown, or cannot hold this model; or something else lies there.
    """
    _check_asked(format, dtype)
    try:
        _check_place(path, format, source)
        if format == "hf":
            with write_folder(path) as target:
                save_model(target, model, tokenizer, dtype)
                if tokenizer is not None:
                    tokenizer.save(target)
                for name, content in (beside or {}).items():
                    (target / name).write_bytes(content)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        if format == "onnx":
            save_onnx(path, model)
            return path
    except (OSError, UnicodeError) as error:  # a full disk, a file for a folder, a name that cannot be
        raise UserError(
            f"cannot be written ({error})", where=ascii(str(path))[1:-1][:300], mend="Choose another place."
        ) from error
    if tokenizer is None:
        raise UserError("a GGUF file needs a tokenizer, and this model has none", mend="Add its tokenizer.json.")
    save_gguf(path, model, tokenizer, format, name=path.stem)
    return path


def save_packed(
    model: GPT, tokenizer: Tokenizer | None, path: Path, *, facts: Mapping[str, Any], source: Path | None = None
) -> Path:
    """Write a quantised model as it is: a folder with its packed weights, which bimo alone opens.

    Args:
        model: The model.
        tokenizer: Its tokenizer; None: it knows ids and no text.
        path: A folder.
        facts: What quantisation has cost, for `quantization.json`.
        source: Where the model came from, which is not written over.

    Raises:
        UserError: Something else lies there, or the disk is full.
    """
    try:
        _check_place(path, "hf", source)
        with write_folder(path) as target:
            save_model(target, model, tokenizer, packed=True)
            if tokenizer is not None:
                tokenizer.save(target)
            (target / COST).write_text(json.dumps(facts, indent=2, ensure_ascii=False), encoding="utf-8")
    except (OSError, UnicodeError) as error:  # as in `export`
        raise UserError(
            f"cannot be written ({error})", where=ascii(str(path))[1:-1][:300], mend="Choose another place."
        ) from error
    return path


def _check_asked(format: str, dtype: str) -> None:
    if format not in FORMATS:
        raise UserError(f"no format {format!r}{nearest(format, FORMATS)}", mend=f"Use one of {', '.join(FORMATS)}.")
    if dtype not in DTYPES:
        raise UserError(f"no dtype {dtype!r}{nearest(dtype, DTYPES)}", mend=f"Use one of {', '.join(DTYPES)}.")
    if format != "hf" and dtype != "float32":
        raise UserError(f"dtype {dtype} is for a folder, not for {format}", mend="Choose the format alone.")


def _check_place(path: Path, format: str, source: Path | None) -> None:
    """Refuse a place where something would be lost, or where no command would find the model again."""
    where = str(path)
    if "\0" in where:
        raise UserError("a name cannot hold a NUL character", where=ascii(where), mend="Choose a new name.")
    where.encode()  # a name of bytes that are no text: it would have to stand inside of files
    if source is not None and path.resolve() == source.resolve():
        raise UserError("this is what the model was read from", where=where, mend="Choose a new name.")
    suffix = {"hf": "", "onnx": ".onnx"}.get(format, ".gguf")
    if path.suffix in {".gguf", ".onnx"} - {suffix} or (suffix == ".gguf" and path.suffix != suffix):
        what = "a folder" if format == "hf" else f"a {suffix} file"
        raise UserError(f"{format} is {what}, and the name is another kind's", where=where, mend="Name it so.")
    if format == "hf":
        others = path.is_dir() and any(path.iterdir()) and not (path / "config.json").exists()
        if others:  # a checkpoint, too, is a sealed folder
            raise UserError("this folder holds other things", where=where, mend="Choose a new name.")
        return
    if path.is_dir():
        raise UserError("this is a folder, and the format is one file", where=where, mend="Name a file.")
    if path.exists():
        ours = path.is_file()
        if ours and format != "onnx":
            with path.open("rb") as file:
                ours = file.read(4) in (b"GGUF", b"")
        if not ours:
            raise UserError("this is something else, which would be lost", where=where, mend="Choose a new name.")


def formats_in(path: Path) -> dict[str, int]:
    """How many tensors of each format a GGUF file holds, the most frequent first."""
    names = {format.number: format.name for format in BLOCK_FORMATS.values()}
    return dict(Counter(names[tensor.type] for tensor in read_gguf(path).tensors.values()).most_common())


def format_by_name(path: Path) -> str:
    """The format that a name suggests."""
    return {".gguf": "F16", ".onnx": "onnx"}.get(path.suffix, "hf")
