"""Checks with a tokenizer: rows that the context cuts, and scripts that it spells byte by byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bimo.data.checkup.characters import SCRIPT_NAMES, Block, script_counts
from bimo.data.checkup.sides import Side
from bimo.data.checkup.whole_checks import add_rows

_GROUP = 1 << 20  # characters that are encoded together
_SAMPLE = 4 << 20  # characters of text that scripts are judged by
TOO_MANY = 0.7  # tokens per byte above which a script is spelt byte by byte
_BYTES_PER_TOKEN = 4.0  # of text in Latin letters, where no tokenizer says better


class Encoder(Protocol):
    """What the checkup needs of a tokenizer."""

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[np.ndarray]: ...


class TokenCheck:
    """Counts tokens while rows are read.

    Args:
        tokenizer: None: tokens are estimated.
        context_length: 0: nothing is cut.

    Attributes:
        n_cut: Rows that are longer than the context.
        per_byte: Tokens and bytes by script.
    """

    def __init__(self, tokenizer: Encoder | None, context_length: int) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length
        self.n_cut = 0
        self.per_byte: dict[str, list[int]] = {}
        self._waiting: dict[int, list[tuple[int, str]]] = {}
        self._size = self._sampled = 0
        self._cut: dict[int, list[tuple[int, int]]] = {}

    def add(self, side: Side, number: int, *texts: str) -> None:
        """A row, by its number in the ledger of the side."""
        size = sum(map(len, texts))
        long = 0 < self.context_length < 3.2 * size  # most characters have no more bytes, and no byte has two tokens
        sampled = self.tokenizer is not None and self._sampled < _SAMPLE
        if long or sampled:
            self._sampled += size
            self._waiting.setdefault(id(side), []).append((number, "\n".join(texts)))
            self._size += size
            if self._size > _GROUP:
                self._count(side)

    def finish(self, side: Side) -> None:
        """Report what was found on a side."""
        self._count(side)
        cut = self._cut.get(id(side), [])
        self.n_cut += len(cut)
        about = "" if self.tokenizer else "about "
        what = "{}{:,} tokens, where the context holds {:,}"
        numbers = np.array([number for number, _ in cut], np.int64)
        add_rows(side, "cut by context", numbers, lambda i: what.format(about, cut[i][1], self.context_length))
        if side.ledger.files:
            self._report_scripts(side)

    def tokens_per_byte(self) -> dict[str, float]:
        """By script, where a tokenizer was given."""
        return {script: round(tokens / size, 3) for script, (tokens, size) in self.per_byte.items() if size}

    def _count(self, side: Side) -> None:
        waiting = self._waiting.pop(id(side), [])
        self._size = 0
        texts = [text for _, text in waiting]
        if not texts:
            return
        counts = self._counts(texts)
        if self.context_length:
            over = [(number, n) for (number, _), n in zip(waiting, counts, strict=True) if n > self.context_length]
            self._cut.setdefault(id(side), []).extend(over)
        if self.tokenizer is None:
            return
        scripts = script_counts(Block.of(texts, range(len(texts))))
        for text, n, main in zip(texts, counts, scripts.argmax(1).tolist(), strict=True):
            sums = self.per_byte.setdefault(SCRIPT_NAMES[main], [0, 0])
            sums[0] += n
            sums[1] += len(text.encode("utf-8", "surrogatepass"))

    def _counts(self, texts: list[str]) -> list[int]:
        if self.tokenizer is None:
            foreign = [sum(not c.isascii() for c in text) for text in texts]
            return [round((len(t) - f) / _BYTES_PER_TOKEN + 0.7 * f) for t, f in zip(texts, foreign, strict=True)]
        return [len(ids) for ids in self.tokenizer.encode_batch(texts)]

    def _report_scripts(self, side: Side) -> None:
        for script, ratio in self.tokens_per_byte().items():
            if ratio > TOO_MANY and self.per_byte[script][1] > 2000:
                what = f"text in {script} takes {ratio:.2f} tokens per byte: the tokenizer does not know the script"
                side.say("tokens per byte", side.ledger.files[0], 0, what)


def summary(tokens: TokenCheck, n_rows: int) -> dict[str, Any]:
    """The figures of a report."""
    figures: dict[str, Any] = {}
    if tokens.context_length:
        figures["share_cut_by_context"] = round(tokens.n_cut / n_rows, 4) if n_rows else 0.0
    if tokens.tokenizer:
        figures["tokens_per_byte"] = tokens.tokens_per_byte()
    return figures
