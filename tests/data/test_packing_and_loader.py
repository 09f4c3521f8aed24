"""Rows and batches: every token a target once, borders by hand, and an order that is a function of its number."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bimo import UserError
from bimo.data.loader import Loader, evaluation_batches, permute
from bimo.data.packing import PackedRows
from bimo.data.shards import ShardWriter, TokenShards

TOKENIZER = "ab" * 32


def shards(folder: Path, lengths: list[int], first: int = 1) -> TokenShards:
    """Documents of these lengths whose ids count up from `first`, so that each id names its place."""
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder / "a.tokens", 2**20, TOKENIZER)
    for length in lengths:
        writer.add(np.arange(first, first + length), 3 * length)
        first += length
    writer.close()
    return TokenShards(folder, TOKENIZER)


def test_a_row_by_hand(tmp_path: Path) -> None:
    rows = PackedRows(shards(tmp_path, [3, 2, 4]), context_length=4)
    first, second = rows.row(0), rows.row(1)
    assert len(rows) == 2, "nine ids make eight predictions"
    assert first.ids.tolist() == [1, 2, 3, 4]
    assert first.targets.tolist() == [2, 3, 4, 5]
    assert first.weights.tolist() == [1, 1, 0, 1], "nothing announces the first token of document two"
    assert first.positions.tolist() == [0, 1, 2, 0]
    assert first.documents.tolist() == [0, 0, 0, 1]
    assert second.ids.tolist() == [5, 6, 7, 8]
    assert second.weights.tolist() == [0, 1, 1, 1]
    assert second.positions.tolist() == [0, 0, 1, 2], "a document that goes on in the next row starts at 0 there"
    assert second.documents.tolist() == [0, 1, 1, 1]


def test_a_short_last_row_is_filled_with_weight_0(tmp_path: Path) -> None:
    row = PackedRows(shards(tmp_path, [3]), context_length=4).row(0)
    assert row.weights.tolist() == [1, 1, 0, 0]
    assert row.documents.tolist() == [0, 0, 1, 1], "the filling is a document of its own"


@given(st.lists(st.integers(2, 20), min_size=1, max_size=12), st.integers(2, 9))
def test_every_token_but_document_starts_is_a_target_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], context: int
) -> None:
    rows = PackedRows(shards(tmp_path_factory.mktemp("s"), lengths), context)
    counted: Counter[int] = Counter()
    for batch in evaluation_batches(rows, batch_size=3):
        counted.update(batch.targets[batch.weights > 0].tolist())
    starts = {1 + sum(lengths[:i]) for i in range(len(lengths))}
    assert counted == Counter(set(range(1, sum(lengths) + 1)) - starts), "exactly once each"


@settings(deadline=None)  # a busy machine is no fault
@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_the_permutation_is_one(size: int, key: int) -> None:
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_an_epoch_draws_every_row_once_and_the_next_in_another_order(tmp_path: Path) -> None:
    rows = PackedRows(shards(tmp_path, [401]), 4)
    loader = Loader([rows], batch_size=10, seed=3)
    epochs = [[int(row[0]) for n in range(10 * e, 10 * e + 10) for row in loader.batch(n).ids] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(1, 400, 4)), "all hundred rows"
    assert epochs[0] != epochs[1] != sorted(epochs[1]), "shuffled anew"


def test_a_resumed_loader_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rows = PackedRows(shards(tmp_path, [300, 100]), 7)
    whole = iter(Loader([rows], batch_size=5, seed=1))
    expected = [next(whole) for _ in range(9)]
    first = Loader([rows], batch_size=5, seed=1)
    stream = iter(first)
    for _ in range(4):
        next(stream)
    second = Loader([rows], batch_size=5, seed=1)
    second.load_state_dict(first.state_dict())
    for want, got in zip(expected[4:], second, strict=False):
        assert torch.equal(want.ids, got.ids), "the same batches follow"


def test_a_loader_refuses_the_state_of_another_order(tmp_path: Path) -> None:
    rows = PackedRows(shards(tmp_path, [300]), 7)
    with pytest.raises(UserError, match="seed 1, this run has 2"):
        Loader([rows], batch_size=5, seed=2).load_state_dict(Loader([rows], batch_size=5, seed=1).state_dict())


def test_sources_mix_by_weight_exactly(tmp_path: Path) -> None:
    sources = [PackedRows(shards(tmp_path / str(i), [2000], first=10_000 * i + 1), 4) for i in range(3)]
    loader = Loader(sources, batch_size=1, seed=0, weights=[5, 3, 2])
    drawn = Counter(loader.place(n)[0] for n in range(10 * 1024))
    assert drawn == {0: 10 * 512, 1: 10 * 307, 2: 10 * 205}, "largest remainders of 1024 x 0.5, 0.3, 0.2"


def test_within_a_source_rows_come_without_gaps_or_repeats(tmp_path: Path) -> None:
    sources = [PackedRows(shards(tmp_path / str(i), [2000]), 4) for i in range(2)]
    loader = Loader(sources, batch_size=1, seed=0, weights=[3, 1])
    for source in (0, 1):
        drawn = sorted(k for s, k in (loader.place(n) for n in range(4096)) if s == source)
        assert drawn == list(range(len(drawn))), "each drawing number once"


def test_ranks_share_a_batch_without_overlap(tmp_path: Path) -> None:
    rows = PackedRows(shards(tmp_path, [801]), 4)
    whole = Loader([rows], batch_size=8, seed=0).batch(5).ids
    parts = [Loader([rows], batch_size=8, seed=0, rank=r, world_size=4).batch(5).ids for r in range(4)]
    assert torch.equal(torch.cat(parts).sort(0).values, whole.sort(0).values), "together they are the batch"


def test_fewer_rows_than_a_batch_are_repeated(tmp_path: Path) -> None:
    batch = Loader([PackedRows(shards(tmp_path, [9]), 4)], batch_size=6, seed=0).batch(0)
    assert Counter(batch.ids[:, 0].tolist()) == {1: 3, 5: 3}, "two rows, three times each"


def test_rows_of_one_document_take_the_plain_causal_path(tmp_path: Path) -> None:
    plain = Loader([PackedRows(shards(tmp_path / "a", [65]), 4)], batch_size=4, seed=0).batch(0)
    assert plain.documents is None and plain.positions is None, "no border, no mask"  # noqa: PT018 - one idea
    mixed = Loader([PackedRows(shards(tmp_path / "b", [6] * 20), 4)], batch_size=4, seed=0).batch(0)
    assert mixed.documents is not None, "borders need the mask"


def test_evaluation_can_take_rows_spread_evenly(tmp_path: Path) -> None:
    rows = PackedRows(shards(tmp_path, [401]), 4)
    batches = list(evaluation_batches(rows, batch_size=3, max_rows=10))
    assert [int(row[0]) for batch in batches for row in batch.ids] == list(range(1, 401, 40)), "every tenth row"


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokens to train on"):
        Loader([PackedRows(shards(tmp_path, [1]), 4)], batch_size=1, seed=0)
