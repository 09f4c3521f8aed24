"""DPO and SimPO equal their formulas, in value and gradient, and are trained on whole pairs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bimo.core.batch import Batch
from bimo.core.config import TrainingSettings
from bimo.core.errors import UserError
from bimo.model.adapting import attach, unadapted
from bimo.model.gpt import GPT
from bimo.testing.subjects import SMALL
from bimo.training import ShortRows, Trainer
from bimo.training.losses import CrossEntropy, DirectPreference, Preference, SimplePreference, chunks
from bimo.training.team import Team


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunks.CHUNK_LOGITS, "cpu", 5 * 61)


def batch(seed: int = 0, pairs: int = 3, length: int = 9) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(61, (2 * pairs, length + 1), generator=generator)
    marks = (torch.rand(2 * pairs, length, generator=generator) > 0.5).float()
    marks[:, -1] = 1
    counts = marks.view(pairs, -1).sum(dim=1)
    return Batch(ids[:, :-1], ids[:, 1:], marks / counts.repeat_interleave(2)[:, None])


def by_hand(logits: Tensor, reference: Tensor, given: Batch, loss: Preference) -> Tensor:
    """Sum over pairs, term by term."""
    total = torch.zeros(())
    for pair in range(given.n_rows // 2):
        gains = []
        for row in (2 * pair, 2 * pair + 1):
            own = there = torch.zeros(())
            count = 0
            for place in range(given.ids.shape[1]):
                if given.weights[row, place] > 0:
                    target = given.targets[row, place]
                    own = own + logits[row, place].log_softmax(-1)[target]
                    there = there + reference[row, place].log_softmax(-1)[target]
                    count += 1
            gains.append((own, there, count))
        (a, a0, n), (b, b0, m) = gains
        if isinstance(loss, DirectPreference):
            total = total - F.logsigmoid(loss.beta * (a - a0 - b + b0))
        else:
            assert isinstance(loss, SimplePreference)
            total = total - F.logsigmoid(loss.beta * (a / n - b / m) - loss.gamma)
    return total


@pytest.fixture
def models() -> tuple[GPT, GPT]:
    torch.manual_seed(0)
    return GPT(SMALL).eval(), GPT(SMALL).eval()


@pytest.mark.parametrize("kind", ["dpo", "simpo"])
def test_value_and_gradient_are_those_of_the_formula(kind: str, models: tuple[GPT, GPT]) -> None:
    model, other = models
    given = batch()
    loss: Preference = SimplePreference(beta=1.5, gamma=0.3)
    if kind == "dpo":
        loss = DirectPreference(0.7, lambda b: (other.hidden(b.ids), other.lm_head.weight))
    names = [name for name, _ in model.named_parameters()]
    found = loss.sum(model.hidden(given.ids), model.lm_head.weight, given)
    gradients = torch.autograd.grad(found, list(model.parameters()))
    expected = by_hand(model(given.ids), other(given.ids).detach(), given, loss)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(found, expected)
    for name, one, two in zip(names, gradients, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6, msg=name)


def test_the_plain_form_is_the_same(models: tuple[GPT, GPT]) -> None:
    model, given, loss = models[0], batch(), SimplePreference()
    total = loss.sum(model.hidden(given.ids), model.lm_head.weight, given)
    torch.testing.assert_close(loss(model(given.ids), given.targets, given.weights) * given.weights.sum(), total)


def test_pairs_add_up_to_the_batch_and_are_never_parted(models: tuple[GPT, GPT]) -> None:
    given, loss = batch(pairs=5), SimplePreference()
    settings = TrainingSettings(
        steps=1, micro_batch_size=3, optimizer="adamw", precision="fp32", device="cpu", threads=1, watchdog=False
    )
    trainer = Trainer(models[0], settings, loss=loss)
    assert trainer.micro_rows(given) == 2, "three rows would part a pair"
    whole = loss.sum(models[0].hidden(given.ids), models[0].lm_head.weight, given) / 5
    assert trainer.loss_of(given) == pytest.approx(whole.item(), rel=1e-5), "the mean over pairs"


def test_training_makes_the_better_answer_likelier_and_stays_near_the_reference(models: tuple[GPT, GPT]) -> None:
    model, given = attach(models[0], rank=4, generator=torch.Generator().manual_seed(1)), batch()

    def reference(b: Batch) -> tuple[Tensor, Tensor]:
        with unadapted(model):
            return model.hidden(b.ids), model.lm_head.weight

    loss = DirectPreference(0.5, reference)
    before = loss.margins(model.hidden(given.ids), model.lm_head.weight, given)
    assert before.abs().max() < 1e-5, "at first it is its own reference"
    settings = TrainingSettings(
        steps=20, optimizer="adamw", learning_rate=1e-2, precision="fp32", device="cpu", threads=1, evaluate_every=0
    )
    Trainer(model, settings, loss=loss).fit([given])
    assert loss.margins(model.hidden(given.ids), model.lm_head.weight, given).min() > 0.5


def test_dpo_without_a_reference_is_refused(models: tuple[GPT, GPT]) -> None:
    with pytest.raises(UserError, match="needs a reference"):
        DirectPreference().sum(models[0].hidden(batch().ids), models[0].lm_head.weight, batch())


def test_positions_that_are_not_trained_cost_no_logits(
    models: tuple[GPT, GPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = models[0], batch()
    rows: list[int] = []
    plain = CrossEntropy.chunk_function

    def counting(self: CrossEntropy, part: Batch) -> chunks.ChunkFunction:
        rows.append(part.n_tokens)
        return plain(self, part)

    hidden = model.hidden(given.ids)
    expected = F.cross_entropy(model.logits(hidden).flatten(0, 1), given.targets.flatten(), reduction="none")
    monkeypatch.setattr(CrossEntropy, "chunk_function", counting)
    found = CrossEntropy().sum(hidden, model.lm_head.weight, given)
    torch.testing.assert_close(found, (expected * given.weights.flatten()).sum())
    assert rows == [int((given.weights > 0).sum())]
    monkeypatch.setattr(CrossEntropy, "position_by_position", False)
    torch.testing.assert_close(CrossEntropy().sum(hidden, model.lm_head.weight, given), found)
    assert rows[1] == given.n_tokens, "the control: all of them"


def test_a_frozen_head_gets_no_gradient(models: tuple[GPT, GPT]) -> None:
    model, given = models[0].requires_grad_(False), replace(batch(), weights=torch.ones(6, 9))
    hidden = model.hidden(given.ids).requires_grad_()
    CrossEntropy().sum(hidden, model.lm_head.weight, given).backward()
    assert hidden.grad is not None
    assert model.lm_head.weight.grad is None


@pytest.mark.parametrize("n_pairs", [1, 3])
def test_processes_share_out_whole_pairs(n_pairs: int) -> None:
    rows = torch.arange(2 * n_pairs)[:, None].expand(-1, 3)
    batch = Batch(rows, rows, torch.ones(2 * n_pairs, 3))
    parts = [Team(rank=rank, size=2, data=2).share(batch, Preference.rows_together) for rank in (0, 1)]
    for part in parts:
        firsts = part.ids[:, 0].view(-1, 2)
        assert (firsts[:, 1] - firsts[:, 0] == 1).all(), "better and worse stay together"
        assert (firsts[:, 0] % 2 == 0).all(), "the better one first"
    trained = torch.cat([part.ids[part.weights > 0] for part in parts])
    assert sorted(trained.tolist()) == sorted(rows.flatten().tolist()), "each is trained once"


def test_rows_of_pairs_are_not_cut() -> None:
    ids = torch.zeros(2, 16, dtype=torch.int64)
    trainer = Trainer(GPT(SMALL), TrainingSettings(steps=1), loss="simpo", callbacks=[ShortRows(1.0, 4, least=1)])
    with pytest.raises(UserError, match="no pairs"):
        trainer.fit([Batch(ids, ids, torch.ones(2, 16))])
