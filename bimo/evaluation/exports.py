"""Every export against its source: what was written is opened again and compared."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from bimo.core.errors import UserError, require
from bimo.evaluation.certificate import Finding
from bimo.evaluation.comparing import TOLERANCES, compare, left_out
from bimo.evaluation.llama_cpp_reference import compare_with_llama_cpp, divergence
from bimo.evaluation.probes import probe_ids
from bimo.evaluation.texts import compare_tokenizers
from bimo.interop import open_model
from bimo.interop.exporting import export
from bimo.model.gpt import GPT
from bimo.model.packed import unpack
from bimo.tokenizer import Tokenizer

LIMITS = {"hf": 0.0, "F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 200, "Q4_0": 1 / 7, "Q4_K": 1 / 7}
FORMATS = (*LIMITS, "onnx")
_DISK = (OSError, SafetensorError)  # safetensors has a class of its own for a disk that is full


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with writing():
        temporary = tempfile.TemporaryDirectory()
    with temporary as folder:
        yield Path(folder)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """While temporary files are written: what the disk refuses becomes one sentence, see `is_of_disk`."""
    try:
        yield
    except _DISK as error:
        short = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"temporary files cannot be written ({short})", mend="Free space, or set TMPDIR to a folder that has some."
        ) from error


def is_of_disk(error: BaseException) -> bool:
    """Whether it says that a file could not be written, and nothing about the model."""
    return isinstance(error, UserError) and isinstance(error.__cause__, _DISK)


def compare_exports(
    model: GPT, tokenizer: Tokenizer | None, formats: Sequence[str], *, with_llama_cpp: bool = False
) -> Iterator[Finding]:
    """Write a model in each format into a temporary folder, open it again, and compare.

    Args:
        model: The source.
        tokenizer: Its tokenizer.
        formats: Some of `FORMATS`; one that cannot hold the model is left out with the reason.
        with_llama_cpp: Whether GGUF files are opened by llama.cpp, too.

    Raises:
        UserError: The disk is full: that an export was not made says nothing about the model.
    """
    for format in formats:
        with temporary_folder() as folder:
            path = folder / ("model" if format == "hf" else "model.file")
            path = path if format in ("hf", "onnx") else path.with_suffix(".gguf")
            try:
                with writing():
                    export(model, tokenizer, path, format)
            except UserError as error:
                if is_of_disk(error):
                    raise
                yield left_out(f"export, {format}", "its source", error.what)
                continue
            yield from compare_export(model, tokenizer, path, format)
            if with_llama_cpp and path.suffix == ".gguf":
                again, found = open_model(path)
                assert found is not None, "a GGUF file has a tokenizer"
                yield from compare_with_llama_cpp(path, unpack(again), found, format)


def compare_export(
    model: GPT, tokenizer: Tokenizer | None, path: Path, format: str, dtype: str = "float32"
) -> Iterator[Finding]:
    """What was written, opened again, against the model that it was written from.

    Args:
        model: The source.
        tokenizer: Its tokenizer.
        path: The folder or file.
        format: One of `FORMATS`.
        dtype: Of the weights in a folder.
    """
    if format == "onnx":
        yield _compare_graph(model, path)
        return
    again, found = open_model(path)
    unpack(again)
    ours, theirs = (dict(m.named_parameters()) for m in (again, model))
    limit = LIMITS[{"float16": "F16", "bfloat16": "BF16"}.get(dtype, format)]
    result = compare(f"export, {format}", "its source", ours, theirs, allowed=limit)
    ids = probe_ids(model.spec)[0][:, :48]
    with torch.no_grad():
        apart = divergence(again.eval()(ids), model.eval()(ids))
    yield replace(result, note=f"{apart:.1e} nats from its source on a random text")
    if tokenizer is not None and found is None:
        yield Finding(f"tokens, {format}", "its source", math.inf, 0.0, "tokenizer", note="there is none")
    elif tokenizer is not None and found is not None:
        tokens = compare_tokenizers(found, tokenizer, exported=True, count=100)
        yield replace(tokens, check=f"tokens, {format}", reference="its source")


@torch.no_grad()
def _compare_graph(model: GPT, path: Path) -> Finding:
    """An ONNX graph in onnxruntime against the model, on texts of several lengths."""
    session = require("onnxruntime", "onnx").InferenceSession(str(path))
    ids, notes = probe_ids(model.spec)
    worst = Finding("logits, onnx", "its source", 0.0, TOLERANCES["logits"].allowed, "logits")
    for length in (2, min(7, ids.shape[1]), ids.shape[1]):
        piece = ids[:, :length]
        theirs = torch.from_numpy(session.run(None, {"ids": piece.numpy()})[0])
        found = compare("logits, onnx", "its source", {"logits": theirs}, {"logits": model.eval()(piece)}, floor=1.0)
        if found.difference > worst.difference:
            worst = found
    return replace(worst, note="; ".join(notes))
