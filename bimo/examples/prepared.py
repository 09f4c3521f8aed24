"""Prepared token shards: rows on disk that are drawn while they are trained on, however many they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.data.loader import Loader, evaluation_batches
from bimo.data.packing import PackedRows
from bimo.data.shards import TokenShards
from bimo.training.streams import BatchStream

MEASURED_ROWS = 512
"""Most rows of prepared text that one evaluation reads, spread evenly."""


class PreparedRows:
    """Rows of prepared shards, mixed in proportion to their size.

    Args:
        sources: Rows of each source.
    """

    def __init__(self, sources: list[PackedRows]) -> None:
        self.sources = sources

    def stream(self, batch_size: int, seed: int) -> BatchStream:
        """Shuffled; an epoch has as many rows as there are."""
        loader = Loader(self.sources, batch_size=batch_size, seed=seed)
        batches = math.ceil(sum(map(len, self.sources)) / batch_size)
        return BatchStream(loader.batch, batches, {"seed": seed, "batch_size": batch_size, "data": loader.data})

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Once, or `MEASURED_ROWS` of them."""
        share = max(1, MEASURED_ROWS // len(self.sources))
        for rows in self.sources:
            yield from evaluation_batches(rows, batch_size, share)


def prepared_rows(data: Any, tokenizer: str, context_length: int, *, valid: bool) -> PreparedRows | None:
    """The rows of prepared text; None when it is something else.

    Args:
        data: A run's folder, its tokens/, a folder of *.tokens, or rows that are open already.
        tokenizer: Fingerprint of the tokenizer.
        context_length: Ids per row.
        valid: Take the held-out part of a run.
    """
    if isinstance(data, PackedRows):
        return PreparedRows([data])
    if isinstance(data, list) and data and all(isinstance(rows, PackedRows) for rows in data):
        return PreparedRows(data)
    if isinstance(data, TokenShards):
        return PreparedRows([PackedRows(data, context_length)])
    if not isinstance(data, Path):
        return None
    if data.suffix == ".tokens" and not data.is_dir():
        raise UserError("one shard alone cannot be opened", where=str(data), mend="Give the folder that it lies in.")
    folders = _folders(data, valid)
    return PreparedRows([PackedRows(TokenShards(f, tokenizer), context_length) for f in folders]) if folders else None


def _folders(folder: Path, valid: bool) -> list[Path]:
    """The folders of shards that a folder means."""
    inner = folder / "tokens" if (folder / "tokens").is_dir() else folder
    if any(inner.glob("*.tokens")):
        return [inner]
    if not any(inner.glob("*/*.tokens")) and not any(inner.glob("*/*/*.tokens")):
        return []
    found = sorted({shard.parent for shard in inner.glob("valid/*.tokens" if valid else "train/*/*.tokens")})
    if not found:
        part = "held-out" if valid else "training"
        raise UserError(
            f"there is no {part} text where a run has it",
            where=str(folder),
            mend="Give the run's folder, or the folder in which the *.tokens files lie; or prepare the text again.",
        )
    return found
