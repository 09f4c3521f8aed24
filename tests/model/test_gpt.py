"""The GPT keeps its promises in every variant, and equals independent implementations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bimo import GPT, ModelSpec
from bimo.evaluation import health
from bimo.model import KVCache
from bimo.model.recompute import recompute

SMALL = ModelSpec(vocab_size=301, context_length=48, n_layers=2, d_model=48, n_heads=4, head_dim=16)
VARIANTS = {
    "qwen3": SMALL,
    "grouped queries": replace(SMALL, n_kv_heads=2),
    "one key head, odd head count": replace(SMALL, n_heads=3, n_kv_heads=1, d_model=40),
    "untied": replace(SMALL, tied_embeddings=False),
    "llama": replace(SMALL, qk_norm=False),
    "qwen2": replace(SMALL, qk_norm=False, biases="qkv"),
    "gpt2": replace(SMALL, norm="layernorm", feedforward="gelu", positions="learned", biases="all", qk_norm=False),
}
variants = pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)


def make(spec: ModelSpec, backend: str = "sdpa") -> GPT:
    model = GPT(spec, backend)
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model.eval()


def ids_of(spec: ModelSpec, rows: int = 3, length: int = 40) -> torch.Tensor:
    return torch.randint(spec.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


@variants
def test_every_health_check_passes(spec: ModelSpec) -> None:
    failed = [check for check in health.model_checks(make(spec)) if not check.ok]
    assert not failed, f"a fresh model must be healthy: {failed}"


@variants
def test_fused_attention_equals_the_formula(spec: ModelSpec) -> None:
    ids = ids_of(spec)
    fused, formula = make(spec)(ids), make(spec, "math")(ids)
    assert torch.allclose(fused, formula, atol=1e-5), "sdpa and math must compute the same logits"


@variants
def test_gradients_of_our_layers_equal_those_of_plain_autograd(spec: ModelSpec) -> None:
    """RMSNorm, rotation and gate have backward passes of their own; float64 finite differences are the reference."""
    model = make(spec).double()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)).double()
    ids = ids_of(spec, rows=1, length=7)

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    loss().backward()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        direction = torch.randn(parameter.shape, generator=generator).double()
        expected = (parameter.grad * direction).sum()
        with torch.no_grad():
            step = 1e-5
            parameter += step * direction
            up = loss()
            parameter -= 2 * step * direction
            down = loss()
            parameter += step * direction
        assert torch.isclose((up - down) / (2 * step), expected, rtol=1e-3, atol=1e-6), f"gradient of {name}"


@variants
def test_recomputing_cheap_activations_changes_no_gradient(spec: ModelSpec) -> None:
    model, ids = make(spec), ids_of(spec)

    def gradients(context: object) -> list[torch.Tensor]:
        model.zero_grad()
        with context:  # type: ignore[attr-defined]
            loss = model(ids).logsumexp(-1).mean()
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    kept, recomputed = gradients(torch.enable_grad()), gradients(recompute())
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True)), "recompute must be exact"


def test_recomputing_keeps_fewer_bytes() -> None:
    model, ids = make(SMALL), ids_of(SMALL)

    def kept_bytes(*, again: bool) -> int:
        kept: dict[int, int] = {}
        hooks = torch.autograd.graph.saved_tensors_hooks
        real = hooks.__init__

        def counting(self: object, pack: object, unpack: object) -> None:
            def pack_and_count(tensor: torch.Tensor) -> object:
                packed = pack(tensor)  # type: ignore[operator]
                if isinstance(packed, torch.Tensor):
                    kept[packed.untyped_storage().data_ptr()] = packed.untyped_storage().nbytes()
                return packed

            real(self, pack_and_count, unpack)

        hooks.__init__ = counting  # type: ignore[method-assign]
        try:
            with recompute() if again else hooks(lambda t: t, lambda t: t):
                loss = model(ids).sum()
        finally:
            hooks.__init__ = real  # type: ignore[method-assign]
        del loss
        return sum(kept.values())

    assert kept_bytes(again=True) < 0.75 * kept_bytes(again=False), "at least a quarter must be saved"


def test_documents_in_a_row_do_not_see_each_other() -> None:
    model, ids = make(SMALL), ids_of(SMALL)
    documents = torch.zeros_like(ids, dtype=torch.int32)
    documents[:, 25:] = 1
    positions = torch.arange(40).expand_as(ids).clone()
    positions[:, 25:] -= 25
    alone = model(ids[:, 25:])
    packed = model(ids, documents=documents, positions=positions)[:, 25:]
    assert torch.allclose(packed, alone, atol=1e-5), "a packed document must give the logits it gives alone"
    neighbour = ids.clone()
    neighbour[:, :25] = (neighbour[:, :25] + 7) % SMALL.vocab_size
    changed = model(neighbour, documents=documents, positions=positions)[:, 25:]
    assert torch.equal(packed, changed), "changing the neighbour must not change one bit"
    leaking = model(neighbour, positions=positions)[:, 25:]
    assert not torch.equal(packed, leaking), "the control: without document numbers the neighbour is seen"


def test_causality_check_sees_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(SMALL)
    for layer in model.layers:
        attend = layer.self_attn.attend
        monkeypatch.setattr(
            layer.self_attn, "attend", lambda q, k, v, ctx, a=attend: a(q, k, v, replace(ctx, causal=False))
        )
    assert not health.causality(model).ok, "a model without a mask must be caught"


def test_cache_check_sees_wrong_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCache, "advance", lambda self, n: setattr(self, "length", self.length + n - (n == 1)))
    assert not health.cached_step(make(SMALL)).ok, "a cache that forgets to advance must be caught"


def test_too_long_a_text_is_refused() -> None:
    with pytest.raises(AssertionError, match="49 tokens, the model sees at most 48"):
        make(SMALL)(torch.zeros(1, 49, dtype=torch.long))


@pytest.mark.parametrize("d_model", [32, 256, 1024])
def test_first_loss_is_ln_v_at_every_width(d_model: int) -> None:
    check = health.initial_loss(ModelSpec(vocab_size=5000, context_length=32, n_layers=2, d_model=d_model, n_heads=4))
    assert check.ok, check.finding


def test_flops_count_matrix_products_and_causal_attention() -> None:
    spec = replace(SMALL, tied_embeddings=False)
    by_hand = 2 * (4 * 48 * 64 + 3 * 48 * spec.d_ff) + 301 * 48 + 2 * 64 * 48
    assert GPT(spec).flops_per_token() == 6 * by_hand, "6 per weight of a product, 6 L H D T for attention"


def test_naive_generation_is_deterministic_and_leaves_the_mode_alone() -> None:
    model = make(replace(SMALL, dropout=0.5)).train()
    ids = ids_of(SMALL, rows=2, length=4)
    first = model.generate(ids, 6)
    assert torch.equal(first, model.generate(ids, 6)), "greedy generation must not use dropout"
    assert model.training, "generate must give the mode back"


def test_embedding_std_keeps_the_first_loss_for_tied_and_wide_models() -> None:
    loss = math.log(5000)
    wide = ModelSpec(vocab_size=5000, context_length=16, n_layers=1, d_model=2048, n_heads=16)
    assert abs(float(health.initial_loss(wide).finding.split(",")[0]) / loss - 1) < 0.05, "within 5 % at width 2048"
