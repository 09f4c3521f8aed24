"""Rows of like length come together, every row once in an epoch, and every source its share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bimo.training.grouping import grouped, mixed
from bimo.training.rows import RowWriter, TokenRows
from bimo.training.streams import BatchStream


def rows_of(lengths: list[int], first: int = 0) -> TokenRows:
    writer = RowWriter(0, 64)
    for number, length in enumerate(lengths, start=first):
        writer.add(np.full(length, number + 1, np.int32), b"\1" * length, str(number))
    return writer.rows()


LENGTHS = np.random.default_rng(0).integers(3, 60, 200).tolist()


def seen(stream: BatchStream, epoch: int = 0) -> list[int]:
    batches = [stream.make(epoch * len(stream) + n) for n in range(len(stream))]
    return [int(row[0]) for batch in batches for row in batch.ids]


def test_every_row_comes_once_in_an_epoch_and_in_another_order_in_the_next() -> None:
    stream = grouped(rows_of(LENGTHS), 256, seed=1)
    assert sorted(seen(stream)) == list(range(1, 201))
    assert sorted(seen(stream, 1)) == list(range(1, 201))
    assert seen(stream) != seen(stream, 1)


def test_batches_hold_their_tokens_and_little_padding() -> None:
    stream = grouped(rows_of(LENGTHS), 256, seed=1)
    sizes = [batch.n_tokens for batch in stream]
    assert max(sizes) <= 256
    trained = sum(batch.weight_sum() for batch in stream)
    assert trained / sum(sizes) > 0.85, "rows of like length are together"
    shuffled = sum(batch.n_tokens for batch in rows_of(LENGTHS).stream(6, 1))
    assert trained / shuffled < 0.75, "the control: without grouping most of it is padding"


def test_a_row_longer_than_a_batch_is_a_batch_of_its_own() -> None:
    assert sorted(seen(grouped(rows_of([50, 60, 9]), 16, seed=0))) == [1, 2, 3]


def test_batch_n_is_a_function_of_n_and_goes_on_after_a_resume() -> None:
    stream = grouped(rows_of(LENGTHS), 256, seed=1)
    read = [next(iter(stream)) for _ in range(5)]
    again = grouped(rows_of(LENGTHS), 256, seed=1)
    again.load_state_dict({**stream.state_dict(), "next_batch": 3})
    assert torch.equal(next(iter(again)).ids, read[3].ids)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0], [1.0, 0.0001]])
def test_sources_have_their_share_of_the_batches(weights: list[float]) -> None:
    parts = [rows_of(LENGTHS), rows_of([20] * 40, first=1000)]
    stream = mixed([grouped(part, 256, 0) for part in parts], weights, seed=0)
    own = [int(stream.make(n).ids[0, 0]) < 1000 for n in range(1000)]
    assert sum(own) / 1000 == pytest.approx(weights[0] / sum(weights), abs=0.002)
    assert not all(own), "every source comes at least once"


def test_a_source_goes_through_its_rows_before_any_comes_again() -> None:
    parts = [rows_of(LENGTHS), rows_of([20] * 40, first=1000)]
    stream = mixed([grouped(part, 256, 0) for part in parts], [1, 1], seed=0)
    rows = [int(row[0]) for n in range(2 * len(stream)) for row in stream.make(n).ids]
    first = [row for row in rows if row > 1000][:40]
    assert sorted(first) == list(range(1001, 1041))
