"""Every ready loss equals its formula, in value and in gradient, whole or in chunks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bimo.core.batch import Batch
from bimo.core.config import ModelSpec
from bimo.core.errors import UserError
from bimo.model.gpt import GPT
from bimo.testing import check_loss
from bimo.training import losses
from bimo.training.losses import ChunkedLoss, chunks, unlikelihood

V, C = 37, 12
READY: dict[str, ChunkedLoss] = {
    "cross_entropy": losses.CrossEntropy(),
    "label_smoothing": losses.LabelSmoothing(epsilon=0.2),
    "z_loss": losses.ZLoss(coefficient=1e-2),
    "smoothed and bounded": losses.CrossEntropy(epsilon=0.1, coefficient=1e-3),
    "focal": losses.Focal(),
    "focal, gamma 0.5": losses.Focal(0.5),
    "unlikelihood": losses.Unlikelihood(0.7),
}
each_loss = pytest.mark.parametrize("loss", READY.values(), ids=READY)


@dataclasses.dataclass
class Subject:
    """Hidden states (B, T, C), a head (V, C) and a batch, whose ids repeat."""

    hidden: Tensor
    head: Tensor
    batch: Batch

    def logits(self, softcap: float = 0.0) -> Tensor:
        logits = self.hidden @ self.head.T
        return softcap * torch.tanh(logits / softcap) if softcap else logits

    def plain(self, loss: losses.Loss, softcap: float = 0.0) -> Tensor:
        """The sum, from the mean of the plain form."""
        mean = loss(self.logits(softcap), self.batch.targets, self.batch.weights)
        return mean * self.batch.weights.sum()

    def gradients(self, total: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(total, (self.hidden, self.head))


def subject(rows: int = 3, length: int = 11, *, dtype: torch.dtype = torch.float32, **others: Tensor) -> Subject:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, length, C, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(V, C, generator=generator).to(dtype).requires_grad_()
    ids = torch.randint(V // 3, (rows, length + 1), generator=generator)
    weights = torch.rand(rows, length, generator=generator) * (torch.rand(rows, length, generator=generator) > 0.3)
    return Subject(hidden, head, Batch(ids[:, :-1], ids[:, 1:], weights, **others))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five positions at a time: chunks that end within rows."""
    monkeypatch.setitem(chunks.CHUNK_LOGITS, "cpu", 5 * V)


@each_loss
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_chunks_equal_the_plain_form(loss: ChunkedLoss, softcap: float) -> None:
    case = subject()
    whole, parts = case.plain(loss, softcap), loss.sum(case.hidden, case.head, case.batch, softcap)
    assert torch.isclose(parts, whole, rtol=1e-5), "same value"
    for ours, reference in zip(case.gradients(3 * parts), case.gradients(3 * whole), strict=True):
        assert torch.allclose(ours, reference, rtol=1e-4, atol=1e-5), "same gradients, also when scaled from above"


def slope_is_right(loss: ChunkedLoss, softcap: float = 0.0) -> bool:
    """Whether the gradient along a random direction is the central difference in float64, to six digits."""
    case, step = subject(2, 4, dtype=torch.float64), 1e-5
    inputs = (case.hidden, case.head)
    total = loss.sum(*inputs, case.batch, softcap)
    directions = [torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1)) for x in inputs]
    slope = sum(float((g * d).sum()) for g, d in zip(case.gradients(total), directions, strict=True))
    with torch.no_grad():
        above, below = (
            loss.sum(*(x + sign * step * d for x, d in zip(inputs, directions, strict=True)), case.batch, softcap)
            for sign in (1, -1)
        )
    return abs(slope - float(above - below) / (2 * step)) < 1e-6 * abs(slope)


@each_loss
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_the_gradient_of_chunks_is_the_slope_in_float64(loss: ChunkedLoss, softcap: float) -> None:
    assert slope_is_right(loss, softcap)


def test_a_gradient_that_is_wrong_by_a_thousandth_is_seen() -> None:
    class Wrong(losses.Focal):
        def chunk_function(self, batch: Batch) -> chunks.ChunkFunction:
            right = super().chunk_function(batch)

            def wrong(logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
                value, gradient = right(logits, part, wanted)
                return value, None if gradient is None else gradient * 1.001

            return wrong

    assert not slope_is_right(Wrong()), "the control"


@each_loss
def test_the_loss_keeps_its_contract(loss: ChunkedLoss) -> None:
    assert len(check_loss(loss)) == 9, "every promise"


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def by_hand(cost: Callable[[NDArray[np.float64], NDArray[np.float64], list[int], int], float], case: Subject) -> float:
    """Weighted mean of a cost of (logits, probabilities, trained targets so far, target), token after token."""
    logits = case.logits().detach().double().numpy()
    targets, weights = case.batch.targets.tolist(), case.batch.weights.tolist()
    total = 0.0
    for row, row_targets in enumerate(targets):
        for t, target in enumerate(row_targets):
            said = [c for c, w in zip(row_targets[:t], weights[row], strict=False) if w > 0]
            total += weights[row][t] * cost(logits[row, t], softmax(logits[row, t]), said, target)
    return total / sum(map(sum, weights))


BY_HAND: dict[str, Callable[..., float]] = {
    "cross_entropy": lambda z, p, said, y: -np.log(p[y]),
    "label_smoothing": lambda z, p, said, y: -0.8 * np.log(p[y]) - 0.2 * np.log(p).mean(),
    "z_loss": lambda z, p, said, y: -np.log(p[y]) + 1e-2 * np.log(np.exp(z).sum()) ** 2,
    "focal": lambda z, p, said, y: -((1 - p[y]) ** 2) * np.log(p[y]),
    "focal, gamma 0.5": lambda z, p, said, y: -((1 - p[y]) ** 0.5) * np.log(p[y]),
    "unlikelihood": lambda z, p, said, y: -np.log(p[y]) - 0.7 * sum(np.log(1 - p[c]) for c in set(said) - {y}),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_plain_form_is_the_formula_of_the_paper(name: str) -> None:
    case = subject()
    ours = READY[name](case.logits(), case.batch.targets, case.batch.weights).item()
    assert ours == pytest.approx(by_hand(BY_HAND[name], case), rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_label_smoothing_is_that_of_torch(epsilon: float) -> None:
    case = subject()
    logits, targets, weights = case.logits(), case.batch.targets, case.batch.weights
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=epsilon)
    ours = losses.LabelSmoothing(epsilon=epsilon)(logits, targets, weights)
    assert torch.isclose(ours, (nats * weights.flatten()).sum() / weights.sum(), rtol=1e-5)


def test_the_default_is_the_plain_cross_entropy() -> None:
    case = subject()
    chunked = losses.chunked_cross_entropy(case.hidden, case.head, case.batch.targets, case.batch.weights)
    assert torch.isclose(chunked, case.plain(losses.cross_entropy), rtol=1e-6)


def test_loss_of_one_token_by_hand() -> None:
    head = torch.eye(3)
    hidden = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]])
    loss = losses.chunked_cross_entropy(hidden, head, torch.tensor([[2, 1]]), torch.tensor([[1.0, 0.0]]))
    assert float(loss) == pytest.approx(math.log(math.e + math.e**2 + math.e**3) - 3), "only the weighted one counts"


@each_loss
def test_rows_add_up_to_the_batch(loss: ChunkedLoss) -> None:
    case = subject(4)
    total = loss.sum(case.hidden, case.head, case.batch)
    rows = [loss.sum(case.hidden[i : i + 1], case.head, part) for i, part in enumerate(case.batch.split(1))]
    assert torch.isclose(torch.stack(rows).sum(), total, rtol=1e-6), "accumulation is exact"
    for parts, whole in zip(case.gradients(torch.stack(rows).sum()), case.gradients(total), strict=True):
        assert torch.allclose(parts, whole, rtol=1e-4, atol=1e-5)


@each_loss
def test_a_token_of_weight_two_counts_like_two_tokens(loss: ChunkedLoss) -> None:
    case = subject()
    doubled = dataclasses.replace(case.batch, weights=2 * case.batch.weights)
    once, twice = (loss.sum(case.hidden, case.head, batch) for batch in (case.batch, doubled))
    assert torch.isclose(twice, 2 * once)
    assert torch.allclose(case.gradients(twice)[0], 2 * case.gradients(once)[0], atol=1e-5)


@each_loss
def test_weights_may_be_large_small_and_zero(loss: ChunkedLoss) -> None:
    case = subject(1, 4)
    weights = torch.tensor([[1e6, 1e-6, 0.0, 1.0]])
    case.batch = dataclasses.replace(case.batch, weights=weights)
    chunked = loss.sum(case.hidden, case.head, case.batch)
    assert torch.isclose(chunked, case.plain(loss), rtol=1e-5)
    gradient = case.gradients(chunked)[0]
    assert gradient[0, [0, 1, 3]].any(dim=-1).all(), "each trained token has a gradient"
    assert not gradient[0, 2].any(), "one of weight 0 has none"


@each_loss
def test_bf16_gradients_are_close_to_fp32(loss: ChunkedLoss) -> None:
    case = subject()
    exact = case.gradients(loss.sum(case.hidden, case.head, case.batch))
    with torch.autocast("cpu", torch.bfloat16):
        total = loss.sum(case.hidden, case.head, case.batch)
    assert total.dtype == torch.float32, "losses add up in float32"
    for a, b in zip(exact, case.gradients(total), strict=True):
        assert b.dtype == torch.float32, "gradients come back in the dtype of the weights"
        assert (a - b).norm() / a.norm() < 0.02, "bf16 keeps three digits"


class MostLogits(TorchDispatchMode):
    """Remembers how many logits the largest tensor has that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [r for r in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(r, Tensor)]
        self.numbers = max([self.numbers, *(t.numel() for t in tensors if t.dim() and t.shape[-1] == V)])
        return result


def most_logits(total: Callable[[], Tensor]) -> int:
    with MostLogits() as seen:
        total().backward()
    return seen.numbers


@pytest.fixture
def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(ModelSpec(n_layers=1, n_heads=2, d_model=16, vocab_size=V, context_length=64, logit_softcap=4.0))


@each_loss
def test_never_more_than_a_chunk_of_logits_is_held(loss: ChunkedLoss) -> None:
    case = subject(4, 40)
    all_logits = case.batch.n_tokens * V
    assert most_logits(lambda: loss.sum(case.hidden, case.head, case.batch)) < all_logits / 8
    assert most_logits(lambda: case.plain(loss)) >= all_logits, "the control: the plain form holds all of them"


def test_a_gpt_as_teacher_never_makes_more_than_a_chunk_of_logits(gpt: GPT) -> None:
    case = subject(4, 40)
    all_logits = case.batch.n_tokens * V

    def most(teacher: nn.Module) -> int:
        loss = losses.Distillation(teacher)
        return most_logits(lambda: loss.sum(case.hidden, case.head, case.batch))

    assert most(gpt) < all_logits / 8
    assert most(Ids(gpt)) >= all_logits, "the control: any other module gives all of them"


def test_without_a_gradient_none_is_computed() -> None:
    case = subject()
    with torch.no_grad():
        total = losses.Focal().sum(case.hidden, case.head, case.batch)
    assert not total.requires_grad
    assert torch.isclose(total, case.plain(losses.Focal()).detach(), rtol=1e-5)


def test_focal_with_gamma_zero_is_cross_entropy() -> None:
    case = subject()
    assert torch.isclose(case.plain(losses.Focal(0.0)), case.plain(losses.cross_entropy), rtol=1e-6)


def test_focal_counts_an_easy_token_less_than_a_hard_one() -> None:
    logits, one = torch.tensor([[[4.0, 0.0, 0.0]]]), torch.ones(1, 1)
    share = [
        float(losses.Focal()(logits, t, one) / losses.cross_entropy(logits, t, one))
        for t in torch.tensor([[[0]], [[1]]])
    ]
    assert share[0] < 0.01 < 0.9 < share[1]


def test_unlikelihood_is_exact_where_one_candidate_has_nearly_all_probability() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0], [40.0, 0.0, 0.0]]], requires_grad=True)
    targets, weights = torch.tensor([[0, 1]]), torch.ones(1, 2)
    loss = losses.Unlikelihood()(logits, targets, weights)
    # -log p(1) = 40 and -log(1 - p(0)) = 40 - log 2; in float32 p(0) itself is 1.
    assert loss.item() == pytest.approx((math.log(3) + 40 + 40 - math.log(2)) / 2)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[0, 1].tolist() == pytest.approx([1.0, -0.75, -0.25], rel=1e-5), "half of (1 + 1, -1 - 1/2, -1/2)"


def test_unlikelihood_does_not_look_into_other_documents() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]], dtype=torch.int32)
    case = subject(1, documents=documents)
    together = losses.Unlikelihood().sum(case.hidden, case.head, case.batch)
    parts = [slice(0, 3), slice(3, 7), slice(7, 11)]
    alone = [
        losses.Unlikelihood().sum(
            case.hidden[:, p],
            case.head,
            Batch(case.batch.ids[:, p], case.batch.targets[:, p], case.batch.weights[:, p]),
        )
        for p in parts
    ]
    assert torch.isclose(together, torch.stack(alone).sum(), rtol=1e-6)
    one = dataclasses.replace(case.batch, documents=None)
    assert not torch.isclose(together, losses.Unlikelihood().sum(case.hidden, case.head, one)), "the control"


def test_unlikelihood_of_a_long_context_is_the_same_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    case = subject()
    whole = losses.Unlikelihood().sum(case.hidden, case.head, case.batch)
    monkeypatch.setattr(unlikelihood, "_HELD_AT_ONCE", 1)
    assert torch.equal(losses.Unlikelihood().sum(case.hidden, case.head, case.batch), whole)


def test_a_teacher_who_thinks_the_same_leaves_no_gradient(gpt: GPT) -> None:
    batch = subject(2).batch
    loss = losses.Distillation(gpt, alpha=1.0)
    total = loss.sum(gpt.hidden(batch.ids), gpt.lm_head.weight, batch, gpt.spec.logit_softcap)
    total.backward()
    largest = max(float(p.grad.abs().max()) for p in gpt.parameters() if p.grad is not None)
    assert largest < 1e-6
    losses.CrossEntropy().sum(gpt.hidden(batch.ids), gpt.lm_head.weight, batch).backward()
    assert max(float(p.grad.abs().max()) for p in gpt.parameters() if p.grad is not None) > 0.1, "the control"


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_distillation_is_the_formula_of_the_paper(gpt: GPT, temperature: float, alpha: float) -> None:
    case = subject()
    theirs = gpt.eval()(case.batch.ids).detach().double().numpy()
    ours, targets = case.logits().detach().double().numpy(), case.batch.targets.numpy()
    p, q = softmax(theirs / temperature), softmax(ours / temperature)
    soft = temperature**2 * (p * np.log(p / q)).sum(axis=-1)
    hard = -np.log(np.take_along_axis(softmax(ours), targets[..., None], axis=-1))[..., 0]
    by_hand = ((alpha * soft + (1 - alpha) * hard) * case.batch.weights.numpy()).sum()
    total = losses.Distillation(gpt, temperature, alpha).sum(case.hidden, case.head, case.batch)
    assert total.item() == pytest.approx(by_hand, rel=1e-5)


class Ids(nn.Module):
    """A teacher that is no GPT."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, ids: Tensor) -> Tensor:
        return self.gpt(ids)


def test_any_module_that_gives_logits_can_teach(gpt: GPT) -> None:
    case = subject()
    of_gpt, of_module = (
        case.gradients(losses.Distillation(teacher).sum(case.hidden, case.head, case.batch))
        for teacher in (gpt, Ids(gpt))
    )
    for ours, theirs in zip(of_gpt, of_module, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_teacher_reads_documents_apart_and_without_dropout(gpt: GPT) -> None:
    documents = torch.tensor([[0] * 5 + [1] * 6], dtype=torch.int32)
    positions = torch.tensor([[*range(5), *range(6)]])
    case = subject(1, documents=documents, positions=positions)
    gpt.dropout.p = 0.5
    loss = losses.Distillation(gpt.train())
    together = loss.sum(case.hidden, case.head, case.batch)
    halves = [
        loss.sum(
            case.hidden[:, p],
            case.head,
            Batch(case.batch.ids[:, p], case.batch.targets[:, p], case.batch.weights[:, p]),
        )
        for p in (slice(0, 5), slice(5, 11))
    ]
    assert torch.isclose(together, torch.stack(halves).sum(), rtol=1e-5)


def test_divergence_keeps_the_contract_of_a_loss() -> None:
    usual = torch.linspace(-1, 1, 11)

    def towards_usual(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return (losses.divergence(logits.float(), usual, 2.0) * weights).sum() / weights.sum()

    assert len(check_loss(towards_usual)) == 9, "every promise"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("size", [3, V + 1])
def test_a_teacher_with_another_vocabulary_is_refused(size: int, wrapped: bool) -> None:
    case = subject()
    if wrapped:
        case.batch = dataclasses.replace(case.batch, ids=case.batch.ids % size)
    gpt = GPT(ModelSpec(n_layers=1, n_heads=2, d_model=16, vocab_size=size, context_length=64))
    with pytest.raises(UserError, match=f"knows {size} ids and the student {V}"):
        losses.Distillation(Ids(gpt) if wrapped else gpt).sum(case.hidden, case.head, case.batch)


def test_a_teacher_with_a_shorter_context_is_refused() -> None:
    case = subject()
    teacher = GPT(ModelSpec(n_layers=1, n_heads=2, d_model=16, vocab_size=V, context_length=8))
    with pytest.raises(UserError, match="knows 8 positions and the student 11"):
        losses.Distillation(teacher).sum(case.hidden, case.head, case.batch)


def test_a_teacher_that_gives_no_logits_is_refused() -> None:
    case = subject()
    with pytest.raises(UserError, match=r"the teacher gives Tensor and not logits \(B, T, V\)"):
        losses.Distillation(nn.Identity()).sum(case.hidden, case.head, case.batch)


def test_distillation_from_logits_alone_is_refused(gpt: GPT) -> None:
    case = subject()
    with pytest.raises(UserError, match="the ids that the teacher reads"):
        losses.Distillation(gpt)(case.logits(), case.batch.targets, case.batch.weights)
