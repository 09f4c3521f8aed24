"""Writing a model for other tools: a Hugging Face folder, or a GGUF file in one of its formats."""

from __future__ import annotations

from pathlib import Path

from bimo.core.artifacts import write_folder
from bimo.core.errors import UserError
from bimo.interop.gguf import EXPORTS, save_gguf
from bimo.interop.huggingface import save_model
from bimo.model.gpt import GPT
from bimo.tokenizer import Tokenizer

FORMATS = ("hf", *EXPORTS)


def export(model: GPT, tokenizer: Tokenizer | None, path: Path, format: str, dtype: str = "float32") -> Path:
    """Write a model.

    Args:
        model: The model.
        tokenizer: Its tokenizer; GGUF cannot do without.
        path: A folder for "hf", else a file.
        format: One of `FORMATS`.
        dtype: Of the weights in a folder: float32, float16 or bfloat16.

    Returns:
        The path.

    Raises:
        UserError: The format is unknown, or cannot hold this model.
    """
    if format == "hf":
        with write_folder(path) as target:
            save_model(target, model, tokenizer, dtype)
            if tokenizer is not None:
                tokenizer.save(target)
        return path
    if tokenizer is None:
        raise UserError("a GGUF file needs a tokenizer, and this model has none", mend="Add its tokenizer.json.")
    save_gguf(path, model, tokenizer, format, name=path.stem)
    return path
