"""Weights and tokenizers of others, both ways: Hugging Face folders and GGUF files, for every family that
`families.py` and `architectures.py` name."""

from bimo.interop.adapter_writing import save_adapter
from bimo.interop.adapters import load_adapter
from bimo.interop.exporting import export, format_by_name, formats_in, save_packed
from bimo.interop.gguf import load_gguf, save_gguf
from bimo.interop.huggingface import load_model, save_model
from bimo.interop.label_heads import head_file, load_head
from bimo.interop.opening import find_model, open_model

__all__ = [
    "export",
    "find_model",
    "format_by_name",
    "formats_in",
    "head_file",
    "load_adapter",
    "load_gguf",
    "load_head",
    "load_model",
    "open_model",
    "save_adapter",
    "save_gguf",
    "save_model",
    "save_packed",
]
