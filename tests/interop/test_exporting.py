"""Exports open where they are meant for, and say why when they cannot be."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bimo
from bimo import GPT, LM, ModelSpec, Tokenizer, UserError, load, new
from bimo.core.artifacts import write_folder
from bimo.core.spec import RopeScaling
from bimo.evaluation.exports import LIMITS, compare_export
from bimo.interop.architectures import architecture_of
from bimo.interop.gguf_file import read_gguf
from bimo.interop.gguf_writing import EXPORTS
from bimo.model.formats import FORMATS

GEMMA = {
    **{"norm": "rmsnorm_1p", "norm_placement": "sandwich", "feedforward": "geglu", "qk_norm": False},
    **{"embedding_scale": 48**0.5, "head_dim": 16, "window": 8, "attention_softcap": 50.0, "logit_softcap": 30.0},
}
GPT2 = {
    **{"norm": "layernorm", "positions": "learned", "feedforward": "gelu", "biases": "all", "qk_norm": False},
    "n_kv_heads": 4,
}
WIDE = {"d_model": 256, "d_ff": 512, "n_layers": 1}


@pytest.fixture(scope="module")
def wide(tokenizer: Tokenizer) -> LM:
    """A model whose rows fit the largest blocks."""
    spec = ModelSpec(vocab_size=tokenizer.vocab_size, context_length=32, n_heads=4, n_kv_heads=2, **WIDE)
    return new(spec, tokenizer, seed=3)


def test_a_folder_opens_in_transformers_with_no_further_step(lm: LM, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference is an extra")
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
        ({"rotary_dim": 8}, "rotary_dim"),  # of which llama.cpp would die
        (
            {**GEMMA, "n_layers": 46, "full_layers": tuple(range(1, 46, 2))},
            "attention_scale",
        ),  # which it takes for the 27B
        ({**GPT2, "head_dim": 8}, "head_dim"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    changes: dict[str, object], word: str, spec: ModelSpec, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lm = new(replace(spec, **changes), tokenizer)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"llama\.cpp has no architecture .*{word}"):
        lm.export(tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(("attention_factor", "name"), [(1.0, "llama"), (1.2, "phi3")])
def test_factors_of_the_positions_go_where_all_of_them_can_be_said(
    attention_factor: float, name: str, spec: ModelSpec
) -> None:
    factors = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5)
    scaling = RopeScaling(
        "longrope",
        **{"original_context": 16, "attention_factor": attention_factor},
        **{"short_factors": factors, "long_factors": factors},
    )
    assert architecture_of(replace(spec, qk_norm=False, rope_scaling=scaling)).name == name


@pytest.mark.parametrize(("n_layers", "width"), [(4, 16), (46, 12)])
def test_the_scale_of_gemmas_scores_is_that_of_llama_cpp(n_layers: int, width: int, spec: ModelSpec) -> None:
    changes = {**GEMMA, "n_layers": n_layers, "full_layers": tuple(range(1, n_layers, 2))}
    scaled = replace(spec, **changes, attention_scale=width**-0.5)  # 48 numbers for 4 heads, or the head's own 16
    assert architecture_of(scaled).name == "gemma2", "it is the one that its number of layers means"


def test_an_unknown_format_names_the_nearest(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'Q4_K'"):
        lm.export(tmp_path / "a.gguf", "Q4_KM")


def test_a_model_without_a_tokenizer_is_no_gguf_file(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a tokenizer"):
        LM(lm.model, None).export(tmp_path / "a.gguf")


def test_a_file_does_not_take_the_place_of_a_folder(lm: LM, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(UserError, match="this is a folder"):
        lm.export(tmp_path / "x.gguf", "F16")


@pytest.mark.parametrize(("name", "format"), [("x.gguf", "hf"), ("x.bin", "Q8_0"), ("x.gguf", "onnx"), ("x", "F16")])
def test_a_name_of_another_kind_is_refused(lm: LM, name: str, format: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another kind"):
        lm.export(tmp_path / name, format)


@pytest.mark.parametrize("format", ["hf", "F16"])
def test_what_the_model_was_read_from_is_not_written_over(lm: LM, format: str, tmp_path: Path) -> None:
    path = lm.export(tmp_path / ("x" if format == "hf" else "x.gguf"), format)
    with pytest.raises(UserError, match="read from"):
        load(path).export(path, format)
    lm.export(path, format)  # the control: another model may take its place


def test_a_file_that_is_no_model_is_not_written_over(lm: LM, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("my notes")
    with pytest.raises(UserError, match="something else"):
        lm.export(tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_text() == "my notes", "untouched"


def test_a_run_and_a_checkpoint_are_not_written_over(lm: LM, tmp_path: Path) -> None:
    run = lm.save(tmp_path / "run")
    (run / "run.yaml").write_text("name: run")
    with write_folder(tmp_path / "step") as checkpoint:
        (checkpoint / "trainer.json").write_text("{}")
    for folder in (run, tmp_path / "step"):
        with pytest.raises(UserError, match=r"would be lost|other things"):
            lm.save(folder)
    (run / "run.yaml").unlink()
    lm.save(run)  # the control: a model's folder may be


@pytest.mark.parametrize(("format", "size"), [("F16", 1e5), ("Q8_0", 1e7), ("Q4_0", 1e6), ("Q4_K", 1e7), ("hf", 1e5)])
def test_a_number_that_would_become_infinite_is_refused(wide: LM, format: str, size: float, tmp_path: Path) -> None:
    lm = LM(copy.deepcopy(wide.model), wide.tokenizer)
    lm.model.layers[0].mlp.up_proj.weight.data[0, 0] = size
    with pytest.raises(UserError, match="does not fit"):
        lm.export(
            tmp_path / ("x" if format == "hf" else "x.gguf"), format, dtype="float16" if format == "hf" else "float32"
        )
    lm.export(tmp_path / "y.gguf", "BF16")  # the control


@pytest.mark.parametrize("name", ["\udcff.gguf", "a\0b.gguf", "f/x.gguf", "x" * 300 + ".gguf"])
def test_a_place_that_cannot_be_is_one_sentence(lm: LM, name: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("a file")
    with pytest.raises(UserError):
        lm.export(tmp_path / name)


def test_a_number_that_is_none_is_not_quantised(wide: LM, tmp_path: Path) -> None:
    broken = GPT(wide.model.spec)
    broken.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinity"):
        LM(broken, wide.tokenizer).export(tmp_path / "a.gguf", "Q8_0")
    assert not list(tmp_path.iterdir()), "no half of a file is left"


def test_a_graph_runs_in_onnxruntime_at_any_length(spec: ModelSpec, tokenizer: Tokenizer, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="an extra brings it")
    lm = new(replace(spec, window=6, qk_norm=False, norm="layernorm", biases="all"), tokenizer, seed=2)
    session = onnxruntime.InferenceSession(str(lm.export(tmp_path / "model.onnx")))
    for rows, length in ((1, 2), (3, 5), (2, 64)):
        ids = torch.randint(tokenizer.vocab_size, (rows, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            expected = lm.model(ids)
        [logits] = session.run(None, {"ids": ids.numpy()})
        assert torch.allclose(torch.from_numpy(logits), expected, atol=1e-4), f"{rows} rows of {length} tokens"


def test_a_graph_that_cannot_be_is_refused_in_words(spec: ModelSpec, tokenizer: Tokenizer, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="an extra brings it")
    lm = new(replace(spec, n_experts=3, d_expert=32), tokenizer)
    with pytest.raises(UserError, match="a mixture of experts cannot be written as a graph"):
        lm.export(tmp_path / "model.onnx")


def test_a_missing_package_names_the_extra(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"bimo\[onnx\]"):
        lm.export(tmp_path / "model.onnx")
