"""Which batches a run of tasks reads: rows of like length, or rows that several records share; and why.

Grouping leaves little padding, keeps attention short and needs no mask. Packing has no padding, shapes that stay the
same, and all tasks in a batch, but attention goes over the whole row under a mask. Which is less work depends on the
lengths of the records and on the context; `auto` counts it for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from bimo.core.config import RunSettings
from bimo.core.errors import UserError
from bimo.materials import Material, Rows
from bimo.training.grouping import grouped, grouped_sizes, mixed
from bimo.training.pairs import PairRows
from bimo.training.row_packing import packed, packed_size
from bimo.training.rows import TokenRows
from bimo.training.streams import BatchStream

_WORTH = 0.95  # of the work of grouping; what is nearly equal stays as it is
_TILE = 64  # keys: fused kernels compute whole tiles, so a short causal row saves less than half of its scores


def with_batches(settings: RunSettings, rows: Rows, model: Any) -> tuple[RunSettings, str]:
    """The settings with `batches` as grouped or packed, and why ("" where there was no choice).

    Args:
        settings: Of the run; what they say is kept where it is not auto.
        rows: Of all tasks.
        model: The GPT that is trained.

    Raises:
        UserError: Packing is asked for, and these rows cannot share one.
    """
    asked, against = settings.adapt.batches, _against(settings, rows)
    if asked == "packed" and against:
        mend = "Leave adapt.batches at auto, or set it to grouped."
        raise UserError(f"rows cannot be packed: {against}", where="adapt.batches", mend=mend)
    if asked != "auto":
        return settings, ""
    chosen: Literal["grouped", "packed"] = "grouped"
    why = against
    if not against:
        share = _work(rows, settings, model)
        chosen = "packed" if share < _WORTH else "grouped"
        why = f"packing would take {share:.2f} times the work of grouping by length"
    return replace(settings, adapt=replace(settings.adapt, batches=chosen)), f"{chosen}: {why}"


def batches_of(settings: RunSettings, rows: Rows, materials: Sequence[Material]) -> BatchStream:
    """Batches of all tasks, to each its share, as the settings say."""
    n_rows, seed = settings.training.batch_size, settings.training.seed
    weights = [material.weight for material in materials]
    if settings.adapt.batches == "packed":
        return packed(_single(rows), weights, n_rows, settings.row_length, seed)
    return mixed([grouped(part, n_rows * settings.row_length, seed) for part in rows.train], weights, seed)


def _against(settings: RunSettings, rows: Rows) -> str:
    """Why records cannot share a row; '' where they can."""
    if any(isinstance(part, PairRows) for part in rows.train):
        return "a loss of preferences compares whole rows"
    if settings.adapt.label_head:
        return "a head of labels has one answer for each row"
    scaling = settings.model.rope_scaling
    if scaling.kind == "longrope" and scaling.original_context < settings.row_length:
        return "the frequencies of longrope depend on the length of a row's longest text"
    return ""


def _single(rows: Rows) -> list[TokenRows]:
    return [part for part in rows.train if isinstance(part, TokenRows)]


def _work(rows: Rows, settings: RunSettings, model: Any) -> float:
    """Operations to train on all rows once when packed, divided by those when grouped."""
    length = settings.row_length
    tokens = settings.training.batch_size * length
    apart = in_rows = 0.0
    for part in _single(rows):
        sizes = grouped_sizes(part.lengths, tokens)
        apart += sum(n * width * model.flops_per_token(width + 2 * _TILE) for n, width in sizes)
        # A kernel with a mask computes both halves of the scores, one that is causal a half.
        in_rows += packed_size(part.lengths, length) * length * model.flops_per_token(2 * length)
    return in_rows / apart
