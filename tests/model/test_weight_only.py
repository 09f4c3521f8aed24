"""Packed matrices on any device hold the numbers of their blocks, to the bit, and multiply like them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bimo import GPT, ModelSpec
from bimo.model.blocks import dequantize, quantize
from bimo.model.formats import FORMATS
from bimo.model.packed import PackedTensor, assign, twin, unpack
from bimo.model.weight_only import PACKED, PackedEmbedding, PackedLinear, laid_out, split

CPU = torch.device("cpu")
SPEC = ModelSpec(
    vocab_size=64, context_length=32, n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=96
)


def rows_of(name: str, n: int, width: int) -> tuple[PackedTensor, Tensor]:
    rows = quantize(torch.randn(n, width, generator=torch.Generator().manual_seed(n)), FORMATS[name])
    return PackedTensor(rows, FORMATS[name], width), dequantize(rows, FORMATS[name])


@pytest.mark.parametrize("name", PACKED.values())
def test_the_numbers_are_those_of_the_blocks_to_the_bit(name: str) -> None:
    packed, expected = rows_of(name, 48, 96)
    levels, scales = split(packed)
    linear = PackedLinear(levels, scales)
    assert torch.equal(linear.dense(torch.float32), expected), "a level times its scale, in float32"
    assert linear.levels.nbytes + linear.scales.nbytes == packed.rows.nbytes, "and in no more memory"
    ids = torch.tensor([[3, 47, 0], [5, 5, 1]])
    assert torch.equal(PackedEmbedding(levels, scales, torch.float32)(ids), expected[ids]), "rows alone, too"


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", PACKED.values())
def test_the_sum_for_the_compiler_is_the_product(name: str, bias: bool) -> None:
    packed, dense = rows_of(name, 48, 96)
    addend = torch.randn(48) if bias else None
    linear = PackedLinear(*split(packed), addend)
    x = torch.randn(2, 1, 96)
    expected = nn.functional.linear(x.double(), dense.double(), None if addend is None else addend.double())
    assert (linear.summed(x) - expected).abs().max() < 1e-4
    assert (linear(x) - expected).abs().max() < 1e-4
    broken = PackedLinear(linear.levels.roll(1, dims=1), linear.scales, addend)
    assert (broken.summed(x) - expected).abs().max() > 0.1, "the control: levels in another place"


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKED.values())
def test_compiled_products_are_the_same(name: str) -> None:
    packed, dense = rows_of(name, 48, 96)
    linear = torch.compile(PackedLinear(*split(packed)), fullgraph=True, dynamic=False)
    for n in (1, 4, 7):
        x = torch.randn(n, 96)
        with torch.no_grad():
            assert (linear(x) - x @ dense.T).abs().max() < 1e-4, f"{n} rows"


def test_a_packed_model_keeps_its_blocks_and_shares_a_tied_matrix() -> None:
    model = GPT(replace(SPEC, tied_embeddings=True)).eval()
    for path in [name for name, p in model.named_parameters() if p.dim() == 2]:
        weight = model.get_parameter(path)
        assign(model, path, PackedTensor(quantize(weight.data, FORMATS["Q4_0"]), FORMATS["Q4_0"], weight.shape[-1]))
    model.lm_head.weight = model.embed_tokens.weight
    moved = laid_out(model, CPU, torch.float32)
    ids = torch.randint(64, (2, 9))
    assert moved.embed_tokens.levels.data_ptr() == moved.lm_head.levels.data_ptr(), "one matrix, once"
    plain = unpack(twin(model))
    with torch.no_grad():
        assert torch.allclose(moved(ids), plain(ids), atol=1e-5)
    assert isinstance(model.lm_head.weight, PackedTensor), "the model itself stays packed"


def test_matrices_that_have_no_whole_groups_stay_plain() -> None:
    model = GPT(replace(SPEC, d_ff=80)).eval()
    packed = laid_out(model, CPU, torch.float32, "Q4_0")
    assert isinstance(packed.layers[0].mlp.down_proj, nn.Linear), "80 is no multiple of 32"
    assert isinstance(packed.layers[0].mlp.up_proj, PackedLinear), "the control: 64 is one"
    assert isinstance(model.layers[0].mlp.up_proj, nn.Linear), "the model stays as it was"


def test_a_deep_copy_of_packed_weights_is_its_own_and_keeps_the_other_packed() -> None:
    packed, dense = rows_of("Q4_0", 48, 96)
    model = nn.Linear(96, 48, bias=False)
    assign(model, "weight", packed)
    again = copy.deepcopy(model)
    assert again.weight is not model.weight
    assert isinstance(again.weight, nn.Parameter), "it can be found among the parameters"
    unpack(again)
    assert torch.equal(again.weight, dense)
    assert isinstance(model.weight, PackedTensor), "the first one is as it was"
