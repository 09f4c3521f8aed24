"""Weights and tokenizers of others, both ways: Hugging Face folders and GGUF files, for every family that
`families.py` and `architectures.py` name. The names below are loaded when they are first used: a GGUF file is read
without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bimo.interop.adapter_writing import save_adapter
    from bimo.interop.adapters import load_adapter
    from bimo.interop.exporting import export, format_by_name, formats_in, save_packed
    from bimo.interop.gguf import load_gguf
    from bimo.interop.gguf_writing import save_gguf
    from bimo.interop.huggingface import load_model, save_model
    from bimo.interop.label_heads import head_file, load_head
    from bimo.interop.opening import find_model, open_model, open_stored

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
    "open_stored",
    "save_adapter",
    "save_gguf",
    "save_model",
    "save_packed",
]

_HOMES = {
    **dict.fromkeys(("export", "format_by_name", "formats_in", "save_packed"), "exporting"),
    **dict.fromkeys(("find_model", "open_model", "open_stored"), "opening"),
    **dict.fromkeys(("load_model", "save_model"), "huggingface"),
    **dict.fromkeys(("head_file", "load_head"), "label_heads"),
    **{"load_adapter": "adapters", "load_gguf": "gguf", "save_adapter": "adapter_writing", "save_gguf": "gguf_writing"},
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bimo.interop' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bimo.interop.{_HOMES[name]}"), name)
