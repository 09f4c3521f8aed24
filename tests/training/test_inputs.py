"""What `fit` takes without a tokenizer: ids in every form, what is measured on, and mistakes in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bimo import GPT, ModelSpec, Trainer, TrainingSettings, UserError
from bimo.core.batch import Batch
from bimo.training import cross_entropy
from bimo.training.inputs import as_stream, held_out, open_data
from bimo.training.rows import RowWriter, TokenRows

SPEC = ModelSpec(vocab_size=50, context_length=8, n_layers=1, d_model=16, n_heads=2)
ROWS = [[1, 2, 3, 4], [5, 6, 7], [8, 9]]


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return GPT(SPEC)


def trained(batches: Any) -> list[list[int]]:
    """For each row what the model reads first, and then the targets that count, sorted."""
    rows = [row for n in range(len(batches)) for row in zip(*_parts(batches[n]), strict=True)]
    return sorted([int(ids[0]), *targets[weights > 0].tolist()] for ids, targets, weights in rows)


def _parts(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return batch.ids, batch.targets, batch.weights


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        [np.array(row) for row in ROWS],
        [torch.tensor(row) for row in ROWS],
        np.array([np.array(row) for row in ROWS], dtype=object),
        (row for row in ROWS),
        [[1.0, 2.0, 3.0, 4.0], *ROWS[1:]],
    ],
)
def test_rows_of_ids_are_taken_in_every_form(gpt: GPT, settings: TrainingSettings, data: Any) -> None:
    assert trained(as_stream(gpt, data, None, settings)) == ROWS, "all but the first id of each row are learned"


@pytest.mark.parametrize("make", [np.array, torch.tensor, lambda table: torch.tensor(table).float()])
def test_a_table_gives_its_rows(gpt: GPT, settings: TrainingSettings, make: Any) -> None:
    table = [[1, 2, 3], [4, 5, 6]]
    assert trained(as_stream(gpt, make(table), None, settings)) == table


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_a_long_stream_is_cut_and_every_id_but_the_first_is_learned_once(
    gpt: GPT, settings: TrainingSettings, make: Any
) -> None:
    rows = trained(as_stream(gpt, make(list(range(30))), None, settings))
    assert [i for row in rows for i in row[1:]] == list(range(1, 30)), "no id is lost at a cut, none is learned twice"


@pytest.mark.parametrize("targets", [[[3, 4], [6], [9]], [np.array([3, 4]), [6], torch.tensor([9])]])
def test_only_the_targets_of_pairs_are_trained(gpt: GPT, settings: TrainingSettings, targets: Any) -> None:
    found = trained(as_stream(gpt, [[1, 2], [5], [7, 8]], targets, settings))
    assert found == [[1, 3, 4], [5, 6], [7, 9]]


def test_pairs_may_stand_together(gpt: GPT, settings: TrainingSettings) -> None:
    assert trained(as_stream(gpt, [([1, 2], [3]), ([5], [6])], None, settings)) == [[1, 3], [5, 6]]


def test_one_target_for_each_row_may_be_a_plain_array(gpt: GPT, settings: TrainingSettings) -> None:
    table = np.array([[1, 2], [4, 5]])
    assert trained(as_stream(gpt, table, np.array([3, 6]), settings)) == [[1, 3], [4, 6]]


MISTAKES = {
    "empty": ([], None, "holds|nothing|no text"),
    "an empty table": (np.empty((0, 4), int), None, "no text to train on"),
    "three dimensions": (np.zeros((2, 2, 2), int), None, "3 dimensions"),
    "truth values": (np.zeros((2, 4), bool), None, r"inputs: it holds bool"),
    "truth values in a row": ([[1, 2], [True, False]], None, r"inputs\[1\]: it holds bool"),
    "None": ([[1, 2], None], None, r"inputs\[1\]: None"),
    "None inside": ([[1, 2], [1, None]], None, r"inputs\[1\]"),
    "text among ids": ([[1, 2], "text"], None, r"inputs\[1\]: str"),
    "uneven": ([[1, [2, 3]]], None, r"inputs\[0\]"),
    "outside": ([[1, 2], [3, 50]], None, r"inputs\[1\]: id 50 lies outside 0 … 49"),
    "outside in a table": (np.array([[1, 2], [3, -1]]), None, r"inputs\[1\]: id -1 lies outside"),
    "huge": ([[1, 2**70]], None, r"inputs\[0\]"),
    "broken": ([[1, 2], [1.5, 2]], None, r"inputs\[1\]: 1.5 is no whole number"),
    "nan": (np.array([[1, 2], [np.nan, 1]]), None, r"inputs\[1\]: nan is no whole number"),
    "lengths": ([[1], [2]], [[3]], "2 inputs and 1 targets"),
    "targets of a stream": ([1, 2, 3], [4, 5, 6], "one long stream"),
    "targets twice": ([([1], [2])], [[3]], "pairs already"),
    "moved by one": ([[1, 2, 3], [4, 5, 6]], [[2, 3, 9], [5, 6, 9]], "moved by one"),
    "moved by one, arrays": (np.arange(32).reshape(4, 8), np.arange(1, 33).reshape(4, 8), "moved by one"),
    "a cut answer": ([[1], [1] * 6], [[2], [3] * 6], r"inputs\[1\]: .* like 1 of 2 rows; the longest has 12"),
    "no targets at all": ([[1], [2]], None, "no row has a token to train on"),
    "nothing to say": ([[1, 2]], [[]], "no row has a token to train on"),
    "a number": (5, None, "int"),
    "none": (None, None, "NoneType"),
    "text": (["text"], None, "gives str and not Batch"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_with_its_place(gpt: GPT, settings: TrainingSettings, mistake: str) -> None:
    data, targets, sentence = MISTAKES[mistake]
    with pytest.raises(UserError, match=sentence):
        as_stream(gpt, data, targets, settings)


def test_a_row_without_a_target_is_told_and_the_others_are_trained(gpt: GPT, settings: TrainingSettings) -> None:
    told: list[tuple[str, Any]] = []
    stream, _ = open_data(gpt, [[1, 2], [3], [4, 5]], None, None, settings, lambda kind, **f: told.append((kind, f)))
    assert trained(stream) == [[1, 2], [4, 5]]
    assert [(kind, f["count"], f["rows"]) for kind, f in told] == [
        ("rows without a trained token", 1, ["inputs[1]"])
    ], "with its place"


def test_batches_are_taken_as_they_are(gpt: GPT, settings: TrainingSettings) -> None:
    ids = torch.tensor([[1, 2, 3]])
    batch = Batch(ids[:, :-1], ids[:, 1:], torch.ones(1, 2))
    assert as_stream(gpt, [batch], None, settings)[0] is batch
    assert next(iter(as_stream(gpt, iter([batch]), None, settings))) is batch, "also out of an iterator"
    with pytest.raises(UserError, match="batches hold their targets"):
        as_stream(gpt, [batch], [[1]], settings)


def test_the_held_out_loss_is_the_mean_over_all_trained_tokens(gpt: GPT, settings: TrainingSettings) -> None:
    found = held_out(gpt.eval(), ROWS, replace(settings, batch_size=2))(gpt)["loss"]
    nats, count = 0.0, 0
    for row in ROWS:
        ids = torch.tensor([row])
        ones = torch.ones(1, len(row) - 1)
        nats += float(cross_entropy(gpt(ids[:, :-1]), ids[:, 1:], ones).detach()) * (len(row) - 1)
        count += len(row) - 1
    assert found == pytest.approx(nats / count, rel=1e-5), "padding and the order of rows change nothing"


def test_a_share_is_held_out_and_never_trained_on(gpt: GPT, settings: TrainingSettings) -> None:
    table = np.array([[i % 50, i // 50, 7] for i in range(400)])
    rows = _rows(table)
    train, held = rows.split(0.25)
    left, right = ({tuple(part.beginning(n)) for n in range(len(part))} for part in (train, held))
    assert not left & right, "no row is on both sides"
    assert len(train) + len(held) == 400, "and none is lost"
    assert 60 < len(held) < 140, "about the share that was asked for"
    stream, measure = open_data(gpt, table, None, 0.25, settings)
    assert {tuple(row) for row in trained(stream)} == left, "the stream holds what is left"
    assert measure is not None, "and the rest is measured"


def test_what_is_held_out_stays_held_out_when_rows_are_added() -> None:
    table = np.array([[i % 50, i // 50, 7] for i in range(400)])
    few, many = (_rows(part).split(0.2)[1] for part in (table[:200], table))
    assert {tuple(few.beginning(n)) for n in range(len(few))} <= {tuple(many.beginning(n)) for n in range(len(many))}


def test_equal_rows_fall_on_one_side() -> None:
    train, held = _rows(np.array([[i % 20, 1, 2] for i in range(200)])).split(0.3)
    left, right = ({part.beginning(n)[0] for n in range(len(part))} for part in (train, held))
    assert left | right == set(range(20))
    assert not left & right, "a copy of a held-out row would be a leak"


def test_a_share_of_two_rows_leaves_one_on_each_side() -> None:
    for share in (0.001, 0.999):
        assert [len(part) for part in _rows(np.array([[1, 2], [3, 4]])).split(share)] == [1, 1]


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1, True, float("nan"), np.float64(2.0)])
def test_a_share_that_is_none_is_refused(gpt: GPT, settings: TrainingSettings, share: Any) -> None:
    with pytest.raises(UserError, match="a share to hold out lies between 0 and 1"):
        open_data(gpt, ROWS, None, share, settings)


def test_one_distinct_row_cannot_be_split(gpt: GPT, settings: TrainingSettings) -> None:
    with pytest.raises(UserError, match="only one row"):
        open_data(gpt, [[1, 2], [1, 2]], None, 0.5, settings)


@pytest.mark.parametrize("overlap", [True, False])
def test_rows_that_stand_in_the_validation_data_too_are_not_trained_on(
    gpt: GPT, settings: TrainingSettings, overlap: bool
) -> None:
    told: list[tuple[str, Any]] = []
    held = [ROWS[1] if overlap else [5, 6, 8]]  # the control: nearly the same row
    stream, _ = open_data(gpt, ROWS, None, held, settings, lambda kind, **facts: told.append((kind, facts)))
    assert trained(stream) == ([ROWS[0], ROWS[2]] if overlap else ROWS)
    assert [(kind, f["count"], f["examples"]) for kind, f in told] == ([("overlap", 1, ["5 6 7"])] if overlap else [])


def test_an_answer_that_is_usual_is_no_overlap(gpt: GPT, settings: TrainingSettings) -> None:
    stream, _ = open_data(gpt, [[1], [2]], [[9], [9]], ([[3]], [[9]]), settings)
    assert len(trained(stream)) == 2, "only the whole pair counts: many questions have the answer yes"


def test_training_on_the_validation_data_alone_is_refused(gpt: GPT, settings: TrainingSettings) -> None:
    with pytest.raises(UserError, match="every row to train on stands in the validation data too"):
        open_data(gpt, ROWS, None, ROWS, settings)


def test_a_stream_goes_on_where_it_stood(gpt: GPT, settings: TrainingSettings) -> None:
    data = np.arange(200) % 50
    one, two = (as_stream(gpt, data, None, settings) for _ in range(2))
    walked = [batch for _ in range(3) for batch in one]
    two.load_state_dict({**one.state_dict(), "next_batch": 4})
    rest = [next(iter(two)) for _ in range(len(walked) - 4)]
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(walked[4:], rest, strict=True)), "batch by batch the same"
    assert not torch.equal(walked[0].ids, walked[len(one)].ids), "each epoch has another order"
    with pytest.raises(UserError, match="the data differs"):
        as_stream(gpt, data[::-1].copy(), None, settings).load_state_dict(one.state_dict())


def test_ids_train_a_plain_model(settings: TrainingSettings) -> None:
    gpt = GPT(SPEC)
    settings = replace(settings, optimizer="adamw", learning_rate=2e-2, warmup_steps=1, threads=1)
    Trainer(gpt, settings).fit(np.tile(np.arange(10), 40), epochs=4, validation=np.arange(9))
    assert held_out(gpt, np.arange(9), settings)(gpt)["loss"] < 2.0, (
        "counting is learned; what knows nothing has ln 50 = 3.9"
    )


def _rows(table: np.ndarray) -> TokenRows:
    return RowWriter(0, 8).table(table.astype(np.int32))
