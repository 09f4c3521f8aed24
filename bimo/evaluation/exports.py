"""Every export against its source: what was written is opened again and compared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from bimo.core.errors import UserError
from bimo.evaluation.certificate import Finding
from bimo.evaluation.comparing import compare
from bimo.evaluation.probes import probe_ids
from bimo.evaluation.texts import compare_tokenizers
from bimo.interop import open_model
from bimo.interop.exporting import export
from bimo.model.gpt import GPT
from bimo.model.packed import unpack
from bimo.tokenizer import Tokenizer

LIMITS = {"hf": 0.0, "F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 200, "Q4_0": 1 / 7, "Q4_K": 1 / 7}
FORMATS = tuple(LIMITS)


def compare_exports(model: GPT, tokenizer: Tokenizer | None, formats: Sequence[str]) -> Iterator[Finding]:
    """Write a model in each format into a temporary folder, open it again, and compare."""
    for format in formats:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ("model" if format == "hf" else "model.gguf")
            try:
                export(model, tokenizer, path, format)
            except UserError as error:
                yield Finding(f"export, {format}", "its source", 0.0, 0.0, note=f"left out: {error.what}")
                continue
            yield from compare_export(model, tokenizer, path, format)


def compare_export(model: GPT, tokenizer: Tokenizer | None, path: Path, format: str) -> Iterator[Finding]:
    """What was written, opened again, against the model that it was written from.

    Args:
        model: The source.
        tokenizer: Its tokenizer.
        path: The folder or file.
        format: A key of `LIMITS`.
    """
    again, found = open_model(path)
    unpack(again)
    ours, theirs = (dict(m.named_parameters()) for m in (again, model))
    result = compare(f"export, {format}", "its source", ours, theirs, allowed=LIMITS[format])
    note = f"{_divergence(again, model):.1e} nats from its source on a random text"
    yield Finding(result.check, result.reference, result.difference, result.allowed, result.tensor, note=note)
    if tokenizer is not None and found is not None:
        tokens = compare_tokenizers(found, tokenizer, 100)
        yield Finding(f"tokens, {format}", "its source", tokens.difference, 0.0, tokens.tensor, note=tokens.note)


@torch.no_grad()
def _divergence(again: GPT, model: GPT) -> float:
    """Mean Kullback-Leibler divergence of the next token's distribution, in nats."""
    ids = probe_ids(model.spec)[0][:, :48]
    p, q = (m.eval()(ids).double().log_softmax(dim=-1) for m in (model, again))
    return max(0.0, float((p.exp() * (p - q)).sum(dim=-1).mean()))
