"""Low-rank adapters: merged, and chosen row by row."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from bimo import GPT, ModelSpec, UserError
from bimo.model.lora import Adapter, AdapterSet, LowRank, merge

SPEC = ModelSpec(vocab_size=61, context_length=32, n_layers=2, d_model=24, n_heads=4, n_kv_heads=2, head_dim=8)


def adapter_of(model: GPT, name: str, rank: int, seed: int, only: str = "") -> Adapter:
    """Random additions to every linear layer whose path has `only` in it."""
    generator = torch.Generator().manual_seed(seed)

    def part(linear: nn.Linear) -> LowRank:
        down = torch.randn(rank, linear.in_features, generator=generator)
        up = torch.randn(linear.out_features, rank, generator=generator)
        return LowRank(0.3 * down, 0.3 * up, 0.5)

    linears = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear) and only in path}
    linears = {p: m for p, m in linears.items() if p != "lm_head" or not model.spec.tied_embeddings}
    return Adapter(name, {path: part(linear) for path, linear in linears.items()})


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, n_experts=4, d_expert=16), replace(SPEC, tied_embeddings=False)])
def test_rows_with_adapters_equal_merged_models(spec: ModelSpec) -> None:
    torch.manual_seed(0)
    model = GPT(spec).eval()
    adapters = [adapter_of(model, "a", 3, seed=1), adapter_of(model, "b", 5, seed=2, only="q_proj")]
    merged = [model, *(merge(copy.deepcopy(model), adapter) for adapter in adapters)]
    ids = torch.randint(spec.vocab_size, (5, 9), generator=torch.Generator().manual_seed(3))
    numbers = [2, 0, 1, 1, 2]
    before = model(ids)
    with AdapterSet(model, adapters).chosen(numbers), torch.no_grad():
        mixed = model(ids)
    for row, number in enumerate(numbers):
        expected = merged[number](ids[row : row + 1])[0]
        assert torch.allclose(mixed[row], expected, atol=1e-5), f"row {row} has adapter {number}"
    assert not torch.allclose(mixed[0], before[0], atol=1e-3), "the control: the adapter changes the row"
    assert torch.equal(model(ids), before), "the model is as it was"


@pytest.mark.parametrize(
    ("path", "part", "message"),
    [
        ("layers.0.self_attn.q_prj", LowRank(torch.zeros(2, 24), torch.zeros(32, 2), 1.0), "did you mean"),
        ("layers.0.self_attn.q_proj", LowRank(torch.zeros(2, 20), torch.zeros(32, 2), 1.0), r"wants \(2, 24\)"),
        ("layers.0.self_attn.q_proj", LowRank(torch.zeros(2, 24), torch.zeros(32, 3), 1.0), r"\(32, 3\)"),
        ("lm_head", LowRank(torch.zeros(2, 24), torch.zeros(61, 2), 1.0), "same matrix as the embeddings"),
        ("layers.0.mlp.up_proj", LowRank(torch.full((2, 24), torch.inf), torch.zeros(64, 2), 1.0), "infinite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(path: str, part: LowRank, message: str) -> None:
    for use in (merge, lambda model, adapter: AdapterSet(model, [adapter])):
        with pytest.raises(UserError, match=message):
            use(GPT(SPEC), Adapter("mine", {path: part}))


def test_two_adapters_of_one_name_are_refused() -> None:
    model = GPT(SPEC)
    with pytest.raises(UserError, match="two adapters are called 'a'"):
        AdapterSet(model, [adapter_of(model, "a", 2, seed=1), adapter_of(model, "a", 2, seed=2)])
