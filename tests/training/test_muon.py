"""Muon: what its steps are, held against singular value decompositions and a loop that is written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bimo import GPT, ModelSpec
from bimo.core.config import TrainingSettings
from bimo.testing import check_optimizer
from bimo.training.muon import POLAR_EXPRESS, Muon, muon, orthogonalized
from bimo.training.optimizers import make_optimizer, set_rates

SPEC = ModelSpec(n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, vocab_size=64, context_length=16)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_singular_values_become_about_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = random(*shape)
    found = orthogonalized(matrix[None], 5)[0]
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.diagonal(u.T @ found @ v.T)
    assert values.min() > 0.7
    assert values.max() < 1.3
    assert torch.dist(u @ values.diag() @ v, found) < 1e-9, "it has the singular vectors of the matrix"
    assert torch.dist(found, matrix / matrix.norm()) > 1, "the control: the matrix itself is far from that"


def test_small_singular_values_grow_up_within_four_iterations() -> None:
    values = torch.tensor([1.0, 0.3, 0.1, 0.03], dtype=torch.float64)
    u, v = (torch.linalg.qr(random(4, 4, seed=seed))[0] for seed in (1, 2))
    grown = torch.linalg.svdvals(orthogonalized((u @ values.diag() @ v)[None])[0])
    assert grown.min() > 0.5
    assert grown.max() < 1.6


def test_nothing_is_made_of_a_zero_matrix() -> None:
    assert orthogonalized(torch.zeros(2, 3, 5)).abs().max() == 0


def by_hand(matrix: Tensor) -> Tensor:
    """One matrix, one iteration after the other, from the formula."""
    x = matrix / (matrix.norm() * 1.02 + 1e-7)
    for a, b, c in POLAR_EXPRESS[:4]:
        x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
    return x


def test_steps_are_those_of_the_formula_head_by_head() -> None:
    weights, heads = random(12, 6, seed=3), 3
    p = torch.nn.Parameter(weights.clone())
    optimizer = Muon([{"params": [p], "blocks": heads, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}])
    kept, expected = torch.zeros_like(weights), weights.clone()
    for seed in (4, 5, 6):
        p.grad = random(12, 6, seed=seed)
        kept = 0.9 * kept + 0.1 * p.grad
        ahead = 0.1 * p.grad + 0.9 * kept
        step = torch.cat([by_hand(head) for head in ahead.chunk(heads)])
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * math.sqrt(12 / 6) * step
        optimizer.step()
    assert torch.allclose(p.detach(), expected, atol=1e-9)


def test_heads_of_the_output_projection_lie_along_its_columns() -> None:
    gradient = random(6, 12)
    p = torch.nn.Parameter(torch.zeros(6, 12, dtype=torch.float64))
    p.grad = gradient.clone()
    Muon([{"params": [p], "blocks": 3, "along": 1, "lr": 1.0, "momentum": 0.0}]).step()
    assert torch.allclose(-p.detach(), torch.cat([by_hand(head) for head in gradient.chunk(3, dim=1)], dim=1))


def test_matrices_of_blocks_get_muon_and_the_rest_adamw() -> None:
    model = GPT(SPEC)
    kinds = {
        id(p): bool(group["blocks"]) for group in muon(model, TrainingSettings()).param_groups for p in group["params"]
    }
    names = {name for name, p in model.named_parameters() if kinds[id(p)]}
    assert len(kinds) == len(list(model.parameters())), "every weight is in one group"
    assert names == {name for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("layers.")}


def test_a_router_is_left_to_adamw_and_experts_are_not() -> None:
    model = GPT(ModelSpec.from_dict({**SPEC.to_dict(), "n_experts": 4, "n_experts_per_token": 2}))
    optimizer = muon(model, TrainingSettings())
    kinds = {id(p): bool(group["blocks"]) for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: kinds[id(p)] for name, p in model.named_parameters()}
    assert not by_name["layers.0.mlp.gate.weight"]
    assert by_name["layers.0.mlp.experts.up_proj"]
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_adamw_part_is_torchs() -> None:
    ours, theirs = (torch.nn.Parameter(random(5, 3).clone()) for _ in range(2))
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-10, "weight_decay": 0.1}
    mine, reference = Muon([{"params": [ours], **settings}]), torch.optim.AdamW([theirs], **settings)
    for seed in range(3):
        ours.grad, theirs.grad = random(5, 3, seed=seed), random(5, 3, seed=seed)
        mine.step()
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_rates_follow_the_schedule_and_keep_their_shares() -> None:
    optimizer, own = make_optimizer("muon", GPT(SPEC), TrainingSettings())
    set_rates(optimizer, 0.01, 0.5, own)
    rates = {
        kind: sorted({g["lr"] for g in optimizer.param_groups if bool(g["blocks"]) == kind}) for kind in (True, False)
    }
    assert rates == {True: [0.01], False: [0.0025, 0.005]}


def test_keeps_the_contract_of_an_optimizer() -> None:
    check_optimizer("muon")


def test_a_tied_embedding_learns_more_carefully_than_one_of_its_own() -> None:
    rates = {}
    for tied in (True, False):
        model = GPT(ModelSpec.from_dict({**SPEC.to_dict(), "tied_embeddings": tied}))
        groups = muon(model, TrainingSettings(learning_rate=0.02)).param_groups
        rates[tied] = next(g["lr"] for g in groups for p in g["params"] if p is model.embed_tokens.weight)
    assert rates == {True: 0.005, False: 0.05}
