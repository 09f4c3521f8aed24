"""What stands without torch says what the torch modules say: names, shapes, rotary angles, weights as they lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine.test_torch_runner import SMALL, SPECS, make

from bimo import GPT, ModelSpec
from bimo.core.spec import RopeScaling
from bimo.model.blocks import quantize
from bimo.model.formats import FORMATS
from bimo.model.frequencies import rotation
from bimo.model.positions import Rotary
from bimo.model.shapes import parameter_shapes
from bimo.model.stored import StoredModel, StoredTensor

SCALED = {
    "linear": RopeScaling("linear", factor=4.0),
    "llama3": RopeScaling("llama3", factor=8.0, original_context=64, low_freq_factor=1.0, high_freq_factor=4.0),
    "yarn": RopeScaling("yarn", factor=4.0, original_context=64, attention_factor=1.14),
    "yarn, not rounded": RopeScaling("yarn", factor=4.0, original_context=64, truncate=False),
}
ROTARY = {name: spec for name, spec in SPECS.items() if "longrope" not in name and spec.positions == "rotary"}
ROTARY |= {name: replace(SMALL, rope_scaling=scaling, rope_theta=5e5, head_dim=32) for name, scaling in SCALED.items()}
BIASES = {f"biases {kind}": replace(SMALL, biases=kind) for kind in ("qkv", "attention", "feedforward", "all")}
PLAIN = {f"{norm}, {part}": replace(SMALL, norm=norm, feedforward=part, biases="feedforward", tied_embeddings=False)
         for norm in ("layernorm", "rmsnorm_1p") for part in ("relu", "reglu")}  # fmt: skip


@pytest.mark.parametrize("spec", (cases := SPECS | BIASES | PLAIN).values(), ids=list(cases))
def test_names_and_shapes_are_those_of_the_modules(spec: ModelSpec) -> None:
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in GPT(spec).named_parameters()}
    assert list(parameter_shapes(spec).items()) == list(expected.items()), "in their order, too"


@pytest.mark.parametrize("spec", ROTARY.values(), ids=list(ROTARY))
@pytest.mark.parametrize("windowed", [False, True])
def test_angles_are_those_of_the_modules(spec: ModelSpec, windowed: bool) -> None:
    ours = rotation(spec, 96, windowed=windowed)
    theirs = Rotary(spec).rotation(torch.arange(96)[None], windowed=windowed)
    assert theirs is not None, "rotary positions turn"
    for mine, other in zip(ours, theirs, strict=True):
        # A float32 power may be rounded otherwise, which far positions multiply.
        assert np.abs(mine - other[0, :, 0].numpy()).max() < 96 * 2e-7, "but for the last bit of a frequency"


@pytest.mark.parametrize("name", SPECS)
def test_a_model_that_is_built_of_stored_weights_is_the_same(name: str) -> None:
    model = make(SPECS[name])
    again = StoredModel.of(model).build()
    assert again.state_dict().keys() == model.state_dict().keys(), "all of it"
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    assert (again.lm_head.weight is again.embed_tokens.weight) == SPECS[name].tied_embeddings, "tied as before"


@pytest.mark.parametrize("format", ["F32", "F16", "BF16", "Q8_0", "Q4_K"])
def test_rows_with_pairs_side_by_side_come_out_in_halves(format: str) -> None:
    numbers = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    rows = quantize(numbers, FORMATS[format]).numpy()
    plain = StoredTensor(rows, FORMATS[format])
    turned = StoredTensor(rows, FORMATS[format], pairs=4)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    assert np.array_equal(turned.floats(), plain.floats()[order + [8 + i for i in order]]), "within each head of 8"
    assert turned.shape == plain.shape == (16, 256), "of the numbers"
