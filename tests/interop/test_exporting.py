"""Exports open where they are meant for, and say why when they cannot be."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bimo
from bimo import GPT, LM, ModelSpec, Tokenizer, UserError, load, new
from bimo.evaluation.exports import LIMITS, compare_export
from bimo.interop.gguf import EXPORTS
from bimo.interop.gguf_file import read_gguf
from bimo.model.blocks import FORMATS

WIDE = {"d_model": 256, "d_ff": 512, "n_layers": 1}


@pytest.fixture(scope="module")
def wide(tokenizer: Tokenizer) -> LM:
    """A model whose rows fit the largest blocks."""
    spec = ModelSpec(vocab_size=tokenizer.vocab_size, context_length=32, n_heads=4, n_kv_heads=2, **WIDE)
    return new(spec, tokenizer, seed=3)


def test_a_folder_opens_in_transformers_with_no_further_step(lm: LM, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = lm.export(tmp_path / "model")
    model, tokenizer = (
        auto.from_pretrained(folder) for auto in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    )
    text = "the cat sat on 12 mats. 一只猫"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == lm.tokenizer.encode(text), "the same ids"
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, lm.model(ids), atol=1e-5), "the same logits"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_folder_holds_the_dtype_that_was_asked_for(lm: LM, dtype: str, tmp_path: Path) -> None:
    folder = lm.export(tmp_path / "model", dtype=dtype)
    findings = list(compare_export(lm.model, lm.tokenizer, folder, "hf", dtype))
    assert all(found.ok for found in findings), list(map(str, findings))
    from safetensors.torch import load_file

    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {getattr(torch, dtype)}, "its dtype"


@pytest.mark.parametrize("format", EXPORTS)
def test_a_gguf_file_comes_back_within_its_rounding(wide: LM, format: str, tmp_path: Path) -> None:
    path = wide.export(tmp_path / "model.gguf", format)
    findings = list(compare_export(wide.model, wide.tokenizer, path, format))
    assert [found.check for found in findings] == [f"export, {format}", f"tokens, {format}"], "weights and tokens"
    assert all(found.ok for found in findings), list(map(str, findings))


@pytest.mark.parametrize("format", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K"])
def test_the_limit_of_a_format_sees_a_wrong_scale(wide: LM, format: str, tmp_path: Path) -> None:
    """The control of the test above."""
    path = wide.export(tmp_path / "model.gguf", format)
    spoiled = GPT(wide.model.spec)
    spoiled.load_state_dict(wide.model.state_dict())
    spoiled.layers[0].mlp.up_proj.weight.data *= 1 + 4 * LIMITS[format]
    assert not all(found.ok for found in compare_export(spoiled, wide.tokenizer, path, format)), "it was not seen"


@pytest.mark.parametrize("format", EXPORTS)
def test_matrices_have_the_format_that_was_asked_for(wide: LM, format: str, tmp_path: Path) -> None:
    tensors = read_gguf(wide.export(tmp_path / "model.gguf", format)).tensors
    assert tensors["blk.0.ffn_down.weight"].type == FORMATS[format].number, "a matrix"
    assert tensors["blk.0.attn_norm.weight"].type == FORMATS["F32"].number, "vectors stay exact"
    fine = "Q8_0" if format.startswith("Q4") else format
    assert tensors["token_embd.weight"].type == FORMATS[fine].number, "embeddings keep a byte per number"


def test_rows_that_fit_no_block_are_written_finer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    odd = new(ModelSpec(context_length=16, n_layers=1, d_model=36, n_heads=3, head_dim=12, d_ff=64), tokenizer)
    tensors = read_gguf(odd.export(tmp_path / "model.gguf", "Q4_0")).tensors
    assert tensors["blk.0.attn_q.weight"].type == FORMATS["F16"].number, "36 numbers are no whole blocks"
    assert tensors["blk.0.ffn_down.weight"].type == FORMATS["Q4_0"].number, "64 are"


def test_the_name_settles_the_format(lm: LM, tmp_path: Path) -> None:
    assert lm.export(tmp_path / "a.gguf").is_file(), "one file"
    assert lm.export(tmp_path / "folder").is_dir(), "a Hugging Face folder"
    assert read_gguf(tmp_path / "a.gguf").metadata["general.file_type"] == EXPORTS["F16"], "two bytes a number"


def test_a_packed_model_goes_out_in_every_direction(wide: LM, tmp_path: Path) -> None:
    packed = load(wide.export(tmp_path / "a.gguf", "Q8_0"))
    again = load(packed.export(tmp_path / "folder"))
    once_more = load(packed.export(tmp_path / "b.gguf", "F32"))
    for other in (again, once_more):
        bimo.unpack(other.model)
        for name, p in bimo.unpack(load(tmp_path / "a.gguf").model).named_parameters():
            assert torch.equal(p, other.model.get_parameter(name)), name


def test_a_chat_template_travels_in_the_file(lm: LM, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "the cat <|end_of_turn|> sat"}]
    again = load(lm.export(tmp_path / "a.gguf"))
    assert again.tokenizer.encode_chat(messages) == lm.tokenizer.encode_chat(messages), "the same conversation"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"window": 4}, "window"),
        ({"feedforward": "reglu"}, "feedforward"),
        ({"positions": "none"}, "positions"),
        ({"attention_softcap": 3.0}, "attention_softcap"),
        ({"unrotated_layers": (0,)}, "unrotated_layers"),
        ({"norm": "layernorm"}, "norm"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, object], word: str, spec: ModelSpec, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lm = new(replace(spec, **changes), tokenizer)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"llama\.cpp has no architecture .*{word}"):
        lm.export(tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_an_unknown_format_names_the_nearest(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'Q4_K'"):
        lm.export(tmp_path / "a.gguf", "Q4_KM")


def test_a_model_without_a_tokenizer_is_no_gguf_file(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a tokenizer"):
        LM(lm.model, None).export(tmp_path / "a.gguf")


def test_a_file_does_not_take_the_place_of_a_folder(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is a folder"):
        lm.export(tmp_path, "F16")


def test_a_number_that_is_none_is_not_quantised(wide: LM, tmp_path: Path) -> None:
    broken = GPT(wide.model.spec)
    broken.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinity"):
        LM(broken, wide.tokenizer).export(tmp_path / "a.gguf", "Q8_0")
    assert not list(tmp_path.iterdir()), "no half of a file is left"


def test_a_graph_runs_in_onnxruntime_at_any_length(spec: ModelSpec, tokenizer: Tokenizer, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    lm = new(replace(spec, window=6, qk_norm=False, norm="layernorm", biases="all"), tokenizer, seed=2)
    session = onnxruntime.InferenceSession(str(lm.export(tmp_path / "model.onnx")))
    for rows, length in ((1, 2), (3, 5), (2, 64)):
        ids = torch.randint(tokenizer.vocab_size, (rows, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            expected = lm.model(ids)
        [logits] = session.run(None, {"ids": ids.numpy()})
        assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-4), f"{rows} rows of {length} tokens"


def test_a_graph_that_cannot_be_is_refused_in_words(spec: ModelSpec, tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    lm = new(replace(spec, n_experts=3, d_expert=32), tokenizer)
    with pytest.raises(UserError, match="a mixture of experts cannot be written as a graph"):
        lm.export(tmp_path / "model.onnx")


def test_a_missing_package_names_the_extra(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"bimo\[onnx\]"):
        lm.export(tmp_path / "model.onnx")
