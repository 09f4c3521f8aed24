"""The chunked loss equals the plain one, in value and in gradient."""

from __future__ import annotations

import pytest
import torch

from bimo.training import losses


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("vocab", [5, 257])
def test_chunked_cross_entropy_equals_torch(rows: int, vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(losses._CHUNK_LOGITS, "cpu", 20 * vocab)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, rows, 12, generator=generator, requires_grad=True)
    head = torch.randn(vocab, 12, generator=generator, requires_grad=True)
    targets = torch.randint(vocab, (2, rows), generator=generator)
    weights = torch.rand(2, rows, generator=generator)
    chunked = losses.chunked_cross_entropy(hidden, head, targets, weights) / weights.sum()
    plain = losses.cross_entropy(hidden @ head.T, targets, weights)
    assert torch.isclose(chunked, plain, rtol=1e-5), "same value"
    ours = torch.autograd.grad(3 * chunked, (hidden, head))
    reference = torch.autograd.grad(3 * plain, (hidden, head))
    for a, b in zip(ours, reference, strict=True):
        assert torch.allclose(a, b, atol=1e-6), "same gradients, also when scaled from above"


def test_loss_of_one_token_by_hand() -> None:
    head = torch.eye(3)
    hidden = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]])
    loss = losses.chunked_cross_entropy(hidden, head, torch.tensor([[2, 1]]), torch.tensor([[1.0, 0.0]]))
    by_hand = torch.log(torch.exp(torch.tensor(1.0)) + torch.exp(torch.tensor(2.0)) + torch.exp(torch.tensor(3.0))) - 3
    assert torch.isclose(loss, by_hand), "only the weighted position counts"


def test_bf16_gradients_are_close_to_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 64, 32, generator=generator, requires_grad=True)
    head = torch.randn(100, 32, generator=generator, requires_grad=True)
    targets, weights = torch.randint(100, (1, 64), generator=generator), torch.ones(1, 64)
    exact = torch.autograd.grad(losses.chunked_cross_entropy(hidden, head, targets, weights), (hidden, head))
    with torch.autocast("cpu", torch.bfloat16):
        loss = losses.chunked_cross_entropy(hidden, head, targets, weights)
    rough = torch.autograd.grad(loss, (hidden, head))
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == torch.float32, "gradients come back in the dtype of the weights"
        assert (a - b).norm() / a.norm() < 0.02, "bf16 keeps three digits"
