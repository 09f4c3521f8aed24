"""A saved model opens in transformers as it lies and computes the same; a damaged one is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bimo import LM, ModelSpec, Tokenizer, UserError, load, new
from bimo.interop.families import canonical

transformers = pytest.importorskip("transformers", reason="the reference is an extra")


@pytest.mark.parametrize(
    "choices",
    [{}, {"tied_embeddings": False}, {"qk_norm": False}, {"qk_norm": False, "biases": "qkv"}, {"n_kv_heads": 4}],
    ids=["qwen3", "untied", "llama", "qwen2", "all heads"],
)
def test_logits_equal_transformers(choices: dict[str, object], spec: ModelSpec, tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    lm = new(replace(spec, **choices), tokenizer, seed=4)  # type: ignore[arg-type]
    for parameter in lm.model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    lm.save(tmp_path / "model")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ids = torch.randint(tokenizer.vocab_size, (2, 50), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        difference = (lm.model(ids) - reference(ids).logits).abs().max()
    assert difference < 1e-4, f"largest difference of a logit: {difference}"


def test_tokenizer_opens_in_transformers_with_the_same_ids(lm: LM, texts: list[str], tmp_path: Path) -> None:
    lm.save(tmp_path / "model")
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in [*texts[:20], "Déjà vu 🇩🇪 12345\n\n  x"]:
        assert reference(text)["input_ids"] == lm.tokenizer.encode(text), text
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the cat 猫"}]
    theirs = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert theirs == lm.tokenizer.encode_chat(messages), "the same chat format"


def test_greedy_text_equals_transformers(lm: LM, tmp_path: Path) -> None:
    lm.save(tmp_path / "model")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    prompt = torch.tensor([[lm.tokenizer.begin_id, *lm.tokenizer.encode("the cat")]])
    theirs = reference.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert theirs.tolist() == lm.model.generate(prompt, 20).tolist(), "greedy tokens"


def test_saved_and_loaded_model_is_the_same(lm: LM, tmp_path: Path) -> None:
    lm.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.model.spec == lm.model.spec, "same shape"
    for (name, a), b in zip(lm.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert again.tokenizer.fingerprint == lm.tokenizer.fingerprint, "same tokenizer"


def test_gpt2_choices_are_saved_for_bimo_and_named_as_such(spec: ModelSpec, tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    choices = replace(spec, norm="layernorm", feedforward="gelu", positions="learned", biases="all", qk_norm=False)
    lm = new(choices, tokenizer)
    lm.save(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "bimo", "no family claims it"
    ids = torch.arange(20)[None]
    assert torch.equal(load(tmp_path / "model").model(ids), lm.model(ids)), "bimo reads it"


def test_a_config_of_transformers_alone_is_enough(lm: LM, tmp_path: Path) -> None:
    lm.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    del config["bimo"]
    path.write_text(json.dumps(config))
    found = canonical(load(tmp_path / "model").model.spec)
    assert found == canonical(lm.model.spec), "the family's fields say it all"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "cannot be read as JSON"),
        ("config.json", b'{"model_type": "bert"}', "not supported"),
        ("config.json", b"[]", "not a JSON object"),
        ("model.safetensors", b"\0" * 100, "damaged weights"),
        ("model.safetensors", b"", "damaged weights"),
        ("tokenizer.json", b"nonsense", "cannot be read as JSON"),
    ],
)
def test_damaged_files_are_refused_with_their_name(
    lm: LM, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    lm.save(tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        load(tmp_path / "model")
    assert name in str(refused.value), "the file is named"


def test_a_missing_tensor_is_named(lm: LM, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    lm.save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"'model\.norm\.weight' is missing"):
        load(tmp_path / "model")


def edited(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def test_fields_that_another_tool_changed_count_more_than_what_bimo_wrote_beside_them(lm: LM, tmp_path: Path) -> None:
    spec = load(edited(lm.save(tmp_path / "model"), rms_norm_eps=0.5)).model.spec
    assert spec.norm_eps == 0.5, "as transformers reads it"


def test_what_sees_the_future_is_refused(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unusual attention"):
        load(edited(lm.save(tmp_path / "model"), is_causal=False))


def test_a_head_that_is_not_the_embeddings_counts_though_the_file_says_that_they_are_tied(
    spec: ModelSpec, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    untied = new(replace(spec, tied_embeddings=False), tokenizer, seed=1)
    folder = edited(untied.save(tmp_path / "model"), tie_word_embeddings=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(load(folder).model(ids), theirs(ids).logits, atol=1e-4), "as transformers has it"


def test_a_base_of_its_own_in_windows_that_hide_nothing_is_not_lost(
    spec: ModelSpec, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    odd = replace(spec, window=spec.context_length, window_rope_theta=50.0)
    folder = new(odd, tokenizer, seed=1).save(tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["model_type"] != "qwen3", "which has one base"
    assert load(folder).model.spec.window_rope_theta == 50.0, "it comes back"
