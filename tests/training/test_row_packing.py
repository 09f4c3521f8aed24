"""Records that share a row train as they do alone: nothing is seen across them, and each comes once in an epoch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bimo.core.batch import Batch
from bimo.core.spec import ModelSpec
from bimo.model.adapting import attach
from bimo.model.gpt import GPT
from bimo.training.losses import CrossEntropy, Unlikelihood
from bimo.training.row_packing import packed, packed_batch, packed_size
from bimo.training.rows import RowWriter, TokenRows

T = 64
SPEC = ModelSpec(vocab_size=50, context_length=T, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_model=32)
LENGTHS = np.random.default_rng(0).integers(3, T + 2, 150).tolist()


def rows_of(lengths: list[int], first: int = 0, vocab: int = 0) -> TokenRows:
    """Records whose first id is their number, or, with a vocabulary, drawn; the later half is trained."""
    writer, rng = RowWriter(0, T), np.random.default_rng(1)
    for number, length in enumerate(lengths, start=first):
        ids = rng.integers(1, vocab, length) if vocab else np.full(length, number + 1)
        writer.add(ids.astype(np.int32), b"\0" * (length // 2) + b"\1" * (length - length // 2), str(number))
    return writer.rows()


def model_of(spec: ModelSpec = SPEC, *, lora: bool = False) -> GPT:
    torch.manual_seed(0)
    model = GPT(spec).double()
    if lora:
        attach(model, 2, 4.0, [], 0.0, torch.Generator().manual_seed(0))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:  # half of an adapter begins at zero, and would give the other no gradient
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model.double()


def loss_and_gradient(model: GPT, batches: list[Batch], loss: CrossEntropy | Unlikelihood) -> tuple[float, Tensor]:
    model.zero_grad()
    trained = sum(batch.weight_sum() for batch in batches)
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        hidden = model.hidden(batch.ids, positions=batch.positions, documents=batch.documents)
        part = loss.sum(hidden, model.lm_head.weight, batch) / trained
        part.backward()
        total += part.detach()
    gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
    return float(total), torch.cat(gradients)


RECORDS = rows_of([9, 20, 4, 30, 13, 7], vocab=50)
ROWS = [(RECORDS, np.array([0, 1, 3])), (RECORDS, np.array([2, 4, 5]))]
ALONE = [RECORDS.batch([number]) for number in range(6)]
SPECS = {
    "rotary": SPEC,
    "learned positions": replace(SPEC, positions="learned"),
    "a window": replace(SPEC, window=8),
}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("loss", [CrossEntropy(), Unlikelihood()])
def test_a_packed_batch_has_the_loss_and_gradient_of_its_records_alone(lora: bool, loss: CrossEntropy) -> None:
    model = model_of(lora=lora)
    alone, gradient = loss_and_gradient(model, ALONE, loss)
    together, packed_gradient = loss_and_gradient(model, [packed_batch(ROWS, T)], loss)
    assert together == pytest.approx(alone, rel=1e-9)
    torch.testing.assert_close(packed_gradient, gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", SPECS)
def test_it_is_so_for_other_positions_and_with_a_window(kind: str) -> None:
    model = model_of(SPECS[kind])
    alone, gradient = loss_and_gradient(model, ALONE, CrossEntropy())
    together, packed_gradient = loss_and_gradient(model, [packed_batch(ROWS, T)], CrossEntropy())
    assert together == pytest.approx(alone, rel=1e-9)
    torch.testing.assert_close(packed_gradient, gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("without", ["documents", "positions"])
def test_without_documents_or_positions_the_gradient_is_another_one(without: str) -> None:
    spec = SPEC if without == "documents" else SPECS["learned positions"]
    model = model_of(spec)
    gradient = loss_and_gradient(model, ALONE, CrossEntropy())[1]
    leaking = replace(packed_batch(ROWS, T), **{without: None})
    assert (loss_and_gradient(model, [leaking], CrossEntropy())[1] - gradient).abs().max() > 1e-4, "the control"


def test_micro_batches_of_packed_rows_add_up() -> None:
    model, batch = model_of(), packed_batch(ROWS, T)
    whole, parts = (loss_and_gradient(model, part, CrossEntropy())[1] for part in ([batch], list(batch.split(1))))
    torch.testing.assert_close(parts, whole)


def records_in(batches: list[Batch]) -> list[int]:
    """The numbers of the records, which their ids are, in the order in which they are read."""
    found = []
    for batch in batches:
        assert batch.positions is not None, "records begin anew"
        found += batch.ids[(batch.positions == 0) & (batch.ids > 0)].tolist()
    return found


def test_every_record_comes_once_in_an_epoch_and_in_another_order_in_the_next() -> None:
    stream = packed([rows_of(LENGTHS)], [1.0], 4, T, seed=1)
    epochs = [records_in([stream.make(epoch * len(stream) + n) for n in range(len(stream))]) for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(1, 151))
    assert epochs[0] != epochs[1]


def test_rows_are_full_and_batches_of_one_size() -> None:
    records = rows_of(LENGTHS)
    stream = packed([records], [1.0], 4, T, seed=1)
    batches = [stream[n] for n in range(len(stream))]
    filled = sum(records.lengths) / sum(batch.n_tokens for batch in batches)
    assert filled > 0.93
    assert {batch.n_rows for batch in batches} <= {3, 4}
    assert packed_size(records.lengths, T) == sum(batch.n_rows for batch in batches)


def test_batch_n_is_a_function_of_n_and_goes_on_after_a_resume() -> None:
    parts = [rows_of(LENGTHS), rows_of([20] * 40, first=1000)]
    stream = packed(parts, [2.0, 1.0], 3, T, seed=1)
    read = [next(iter(stream)) for _ in range(6)]
    again = packed(parts, [2.0, 1.0], 3, T, seed=1)
    again.load_state_dict({**stream.state_dict(), "next_batch": 4})
    assert torch.equal(next(iter(again)).ids, read[4].ids)
    other = packed(parts, [2.0, 1.0], 3, T, seed=2)
    assert not torch.equal(next(iter(other)).ids, read[0].ids)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0]])
def test_tasks_stand_side_by_side_in_a_batch_each_with_its_share_of_the_rows(weights: list[float]) -> None:
    parts = [rows_of(LENGTHS), rows_of([20] * 40, first=1000)]
    stream = packed(parts, weights, 4, T, seed=0)
    batches = [stream.make(n) for n in range(300)]
    of_first = [batch.ids[:, 0] < 1000 for batch in batches]
    share = sum(int(rows.sum()) for rows in of_first) / sum(len(rows) for rows in of_first)
    assert share == pytest.approx(weights[0] / sum(weights), abs=0.05)
    assert any(0 < int(rows.sum()) < len(rows) for rows in of_first), "not one task a batch"
    second = [number for number in records_in(batches) if number > 1000]
    assert sorted(second[:40]) == list(range(1001, 1041)), "all of them come before any comes again"


def test_a_few_short_records_are_not_filled_up_to_the_whole_context() -> None:
    [batch] = list(packed([rows_of([5, 4])], [1.0], 4, T, seed=0))
    assert batch.ids.shape == (1, 8)
