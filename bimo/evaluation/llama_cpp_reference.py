"""llama.cpp as a reference: how it reads a GGUF file, tokenises a text, and what it computes. Needs llama-cpp-python.

llama.cpp multiplies quantised weights with activations that it quantises, too, so its logits lie within the format's
rounding of the exact ones, not within float32's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bimo.core.errors import UserError, require
from bimo.evaluation.certificate import Finding
from bimo.evaluation.comparing import compare, left_out
from bimo.evaluation.probes import probe_ids
from bimo.evaluation.texts import SCRIPTS, random_texts, vocabulary_texts
from bimo.model.gpt import GPT
from bimo.tokenizer import Tokenizer

LIMITS = {"F32": 5e-3, "F16": 1e-2, "BF16": 3e-2, "Q8_0": 1e-1, "Q4_0": 1e-1, "Q4_K": 1e-1, "quantised": 1e-1}
"""How far logits may lie apart, over the largest, by the format of the matrices."""


class LlamaCpp:
    """A GGUF file as llama.cpp opens it.

    Args:
        path: The file.
        context: Tokens that it will see at most.
        only_vocabulary: Whether weights are left alone.

    Raises:
        UserError: llama-cpp-python is missing, or llama.cpp refuses the file.
    """

    def __init__(self, path: Path, context: int = 128, *, only_vocabulary: bool = False) -> None:
        package: Any = require("llama_cpp", "llama")
        self.messages: list[str] = []
        self._keep = package.llama_log_callback(lambda level, text, data: self.messages.append(text.decode()))
        package.llama_log_set(self._keep, None)
        options = {"n_ctx": context, "n_batch": context, "n_threads": 2, "logits_all": True, "verbose": False}
        try:
            self._model = package.Llama(str(path), **options, vocab_only=only_vocabulary, seed=0)
        except (ValueError, AssertionError, RuntimeError) as error:
            said = " ".join(line.strip() for line in self.messages if "error" in line.lower())
            raise UserError(f"llama.cpp refuses it ({said or error})", where=str(path)) from error

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which no control token is recognised."""
        return list(self._model.tokenize(text.encode(), add_bos=False, special=False))

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which control tokens may stand by their names."""
        return list(self._model.tokenize(text.encode(), add_bos=False, special=True))

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits after each token of a text, float32, (T, V)."""
        self._model.reset()
        self._model.eval(list(ids))
        return torch.from_numpy(np.array(self._model.scores[: len(ids)]))

    def greedy(self, prompt: Sequence[int], n_tokens: int) -> list[int]:
        """The likeliest continuation of a prompt."""
        self._model.reset()
        self._model.eval(list(prompt))
        found: list[int] = []
        for place in range(len(prompt) - 1, len(prompt) - 1 + n_tokens):
            found.append(int(np.argmax(self._model.scores[place])))
            self._model.eval(found[-1:])
        return found

    def close(self) -> None:
        """Free its memory."""
        self._model.close()


def compare_with_llama_cpp(path: Path, model: GPT, tokenizer: Tokenizer, format: str) -> Iterator[Finding]:
    """A GGUF file as bimo reads it against the same file in llama.cpp: ids of texts, and logits.

    Args:
        path: The file.
        model: The model that bimo read from it.
        tokenizer: The tokenizer that bimo read from it.
        format: What its matrices are, a key of `LIMITS`.
    """
    check = f"logits of llama.cpp, {format}"
    try:
        theirs = LlamaCpp(path)
    except UserError as error:
        yield Finding(check, "llama.cpp", math.inf, 0.0, note=error.what)
        return
    texts = [text for text in (*SCRIPTS, *random_texts(500), *vocabulary_texts(tokenizer, 500)) if text]
    wrong = [text for text in texts if theirs.encode(text) != tokenizer.encode(text)]
    note = f"{wrong[0]!r} gives other ids" if wrong else f"{len(texts)} texts are the same"
    yield Finding(f"tokens of llama.cpp, {format}", "llama.cpp", float(len(wrong)), 0.0, "tokenizer", note=note)
    scaling = model.spec.rope_scaling
    if scaling.kind == "longrope" and scaling.short_factors != scaling.long_factors:
        theirs.close()
        yield left_out(check, "llama.cpp", "it chooses the factors of longrope by its context, not by the text")
        return
    ids, _ = probe_ids(model.spec)
    ids = ids[:1, :48] % tokenizer.vocab_size
    with torch.no_grad():
        ours = model.eval()(ids).float()
    logits = theirs.logits(ids[0].tolist())[None]
    theirs.close()
    found = compare(check, "llama.cpp", {"logits": ours}, {"logits": logits}, allowed=LIMITS[format])
    yield replace(found, note=f"{divergence(ours, logits):.1e} nats")


def divergence(ours: Tensor, theirs: Tensor) -> float:
    """Mean Kullback-Leibler divergence in nats of next-token distributions, logits (…, V); `theirs` is the truth."""
    p, q = theirs.double().log_softmax(dim=-1), ours.double().log_softmax(dim=-1)
    found = float((p.exp() * (p - q)).sum(dim=-1).mean())
    return max(found, 0.0) if math.isfinite(found) else math.inf
