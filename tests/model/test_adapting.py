"""An adapter is trained beside frozen weights, and the model is what it was when it is taken out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bimo import GPT, ModelSpec, TrainingSettings, UserError
from bimo.core.batch import Batch
from bimo.model.adapting import AdaptedLinear, adapter_in, attach, detach, unadapted
from bimo.model.lora import merge
from bimo.training import Trainer

SPEC = ModelSpec(vocab_size=61, context_length=32, n_layers=2, d_model=24, n_heads=4, n_kv_heads=2, head_dim=8)
IDS = torch.randint(61, (4, 13), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(SPEC).eval()


def trained(model: GPT) -> GPT:
    settings = TrainingSettings(
        steps=6, optimizer="adamw", learning_rate=1e-2, warmup_steps=1, precision="fp32", device="cpu", threads=1
    )
    batch = Batch(IDS[:, :-1], IDS[:, 1:], torch.ones(4, 12))
    return Trainer(model, settings).fit([batch]).model  # type: ignore[no-any-return]


def test_an_addition_begins_at_nothing(model: GPT) -> None:
    before = model(IDS)
    assert torch.equal(attach(model, rank=3)(IDS), before)


@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj")])
def test_only_the_additions_are_trained(model: GPT, targets: tuple[str, ...]) -> None:
    frozen = {name: p.clone() for name, p in model.named_parameters()}
    trained(attach(model, rank=3, targets=targets))
    for name, parameter in model.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), f"{name} is frozen"
            assert parameter.grad is None
    layers = [n for n, m in model.named_modules() if isinstance(m, AdaptedLinear)]
    assert len(layers) == 2 * (len(targets) or 7)
    assert all(m.lora_up.abs().max() > 0 for m in model.modules() if isinstance(m, AdaptedLinear)), "each has learned"


def test_taken_out_the_model_is_what_it_was_and_merged_what_it_became(model: GPT) -> None:
    before = model(IDS)
    trained(attach(model, rank=3, alpha=5.0)).eval()
    beside = model(IDS)
    with unadapted(model):
        assert torch.equal(model(IDS), before), "for a while"
    copied = adapter_in(model, "kept")
    adapter = detach(model, "mine")
    assert torch.equal(model(IDS), before)
    assert all(parameter.requires_grad for parameter in model.parameters()), "it can be trained again"
    assert all(type(m) is nn.Linear for m in model.modules() if isinstance(m, nn.Linear))
    torch.testing.assert_close(merge(copy.deepcopy(model), adapter)(IDS), beside, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merge(model, copied)(IDS), beside, rtol=1e-5, atol=1e-5)
    assert (beside - before).abs().max() > 0.05, "the control: it had learned something"


@pytest.mark.parametrize("targets", [("qproj",), ("lm_head",)])
def test_a_layer_that_is_not_there_is_named(model: GPT, targets: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=targets[0]):
        attach(model, rank=3, targets=targets)
