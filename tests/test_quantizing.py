"""Quantising: better than the nearest level, measured, saved and opened as it is, refused where it costs too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bimo
from bimo import GPT, LM, ModelSpec, Tokenizer, TrainingSettings, UserError, load, new
from bimo.cli import main
from bimo.evaluation.cost import measure_cost
from bimo.interop.gguf_file import read_gguf
from bimo.model.blocks import quantize
from bimo.model.formats import FORMATS
from bimo.model.packed import PackedTensor, twin
from bimo.model.quant import quantize_model
from bimo.quantizing import Quantized

SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_model": 96, "d_ff": 128}
EXPERTS: dict[str, Any] = {"n_experts": 4, "n_experts_per_token": 2, "d_expert": 64}
GPT2: dict[str, Any] = {
    **{"norm": "layernorm", "positions": "learned", "feedforward": "gelu", "biases": "all", "qk_norm": False},
    **{"n_kv_heads": 4, "head_dim": 24},
}


@pytest.fixture(scope="module")
def wide(tokenizer: Tokenizer, texts: list[str], settings: TrainingSettings) -> LM:
    """A tiny model, trained, whose rows are whole blocks."""
    spec = ModelSpec(vocab_size=tokenizer.vocab_size, context_length=64, **SIZES)
    return new(spec, tokenizer, seed=1).fit(texts, epochs=2, settings=settings)


def fresh(tokenizer: Tokenizer, **choices: Any) -> LM:
    """With weights as drawn, but not as small: what is rounded shows."""
    spec = ModelSpec(vocab_size=tokenizer.vocab_size, context_length=64, **(SIZES | choices))
    lm = new(spec, tokenizer, seed=1)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)
    return lm


@pytest.fixture(scope="module")
def book(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def int4(wide: LM, book: Path) -> Quantized:
    return bimo.quantize(wide, "int4", text=book)


@pytest.fixture
def folder(int4: Quantized, tmp_path: Path) -> Path:
    return int4.save(tmp_path / "small")


def packed(model: GPT) -> dict[str, PackedTensor]:
    return {name: p for name, p in model.named_parameters() if isinstance(p, PackedTensor)}


def to_nearest(model: GPT, name: str = "Q4_0") -> GPT:
    """Every matrix rounded to the nearest level."""
    result = twin(model)
    for module in result.modules():
        if isinstance(module, torch.nn.Linear):
            rows = quantize(module.weight.detach(), FORMATS[name])
            module.weight = torch.nn.Parameter(PackedTensor(rows, FORMATS[name], module.in_features))
    result.embed_tokens.weight = result.lm_head.weight
    return result


def kl(full: GPT, other: GPT, ids: torch.Tensor) -> float:
    return measure_cost(full, other, ids, None, lambda share: None).weights.kl


def rows_of(lm: LM, texts: list[str]) -> torch.Tensor:
    ids = [token for text in texts for token in lm.tokenizer.encode(text)]
    return torch.tensor(ids[: len(ids) // 64 * 64]).view(-1, 64)


def test_int4_lies_much_nearer_to_the_model_than_the_nearest_level(wide: LM, texts: list[str]) -> None:
    rows = rows_of(wide, texts)
    ids, held_out = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    ours = kl(wide.model, quantize_model(wide.model, "int4", ids), held_out)
    plain = kl(wide.model, to_nearest(wide.model), held_out)
    assert ours < 0.5 * plain, f"{ours:.2e} against {plain:.2e} nats per token"


def test_the_figures_are_those_of_a_count_by_hand(wide: LM, texts: list[str]) -> None:
    ids = rows_of(wide, texts)[:3]
    small, token_bytes = to_nearest(wide.model), torch.from_numpy(wide.tokenizer.token_bytes())
    cost = measure_cost(wide.model, small, ids, token_bytes, lambda share: None)
    with torch.no_grad():
        p, q = (m(ids)[:, :-1].double().log_softmax(dim=-1) for m in (wide.model, small))
    n_bytes = int(token_bytes[ids[:, 1:]].sum())
    bits = [-float(x.gather(-1, ids[:, 1:, None]).sum()) / n_bytes / torch.tensor(2.0).log().item() for x in (p, q)]
    assert cost.weights.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3)
    assert cost.weights.top1_changes == float((p.argmax(-1) != q.argmax(-1)).double().mean())
    assert [cost.bits_per_byte_before, cost.weights.bits_per_byte] == pytest.approx(bits, rel=1e-5)
    assert cost.bytes_after < 0.16 * cost.bytes_before, "4.5 bits of 32"


def test_rounded_activations_cost_more_and_int8_less_than_int4(wide: LM, int4: Quantized, book: Path) -> None:
    int8 = bimo.quantize(wide, "int8", text=book)
    assert 0 < int8.cost.weights.kl < int8.cost.engine.kl < 0.1 * int4.cost.engine.kl, "each step costs something"
    assert all(p.format.name == "Q8_0" for p in packed(int8.lm.model).values())


def test_the_model_that_is_given_stays_as_it_is(wide: LM, int4: Quantized) -> None:
    assert not packed(wide.model), "still float"
    assert set(packed(int4.lm.model)) == {n for n, p in wide.model.named_parameters() if p.dim() > 1}, "all are packed"
    assert int4.lm.model.lm_head.weight is int4.lm.model.embed_tokens.weight, "still tied"


def test_a_folder_is_opened_as_it_was_written(int4: Quantized, folder: Path) -> None:
    again, cost = load(folder), json.loads((folder / "quantization.json").read_text(encoding="utf-8"))
    ours, theirs = packed(int4.lm.model), packed(again.model)
    assert ours.keys() == theirs.keys(), "the same weights are packed"
    assert all(torch.equal(ours[name].rows, theirs[name].rows) for name in ours), "bit for bit"
    assert {p.format.name for p in theirs.values()} == {"Q4_0"}
    options = {"max_tokens": 12, "temperature": 0}
    assert again.generate("the cat 一只", **options) == int4.lm.generate("the cat 一只", **options)
    assert cost["engine"]["kl"] == int4.cost.engine.kl, "what it costs lies beside it"


def test_opening_a_folder_copies_no_rows(folder: Path) -> None:
    rows = packed(load(folder).model)["layers.1.mlp.up_proj.weight"].rows
    with safe_open(folder / "model.safetensors", "pt") as file:  # type: ignore[no-untyped-call]
        mapped = file.get_tensor("model.layers.1.mlp.up_proj.weight")
    assert torch.equal(rows, mapped), "the bytes of the file"
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    homes = [line for line in maps if "model.safetensors" in line]
    places = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in homes]
    assert any(low <= rows.data_ptr() < high for low, high in places), "they lie in the mapped file"


def test_gguf_holds_the_same_blocks(int4: Quantized, tmp_path: Path) -> None:
    path = int4.lm.export(tmp_path / "small.gguf", "Q4_0")
    again, ours = packed(load(path).model), packed(int4.lm.model)
    assert all(torch.equal(again[name].rows, ours[name].rows) for name in ours), "bit for bit"
    other = packed(load(int4.lm.export(tmp_path / "other.gguf", "Q8_0")).model)
    assert {p.format.name for p in other.values()} == {"Q8_0"}, "another format is another format"


@pytest.mark.parametrize("choices", [{"qk_norm": False}, GPT2 | {"tied_embeddings": False}], ids=["llama", "gpt2"])
def test_gguf_puts_rows_into_the_order_of_llama_cpp(
    choices: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lm = LM(to_nearest(fresh(tokenizer, **choices).model), tokenizer)
    if not lm.model.spec.tied_embeddings:
        lm.model.embed_tokens.weight = lm.model.lm_head.weight
    path = lm.export(tmp_path / "x.gguf", "Q4_0")
    again, ours = load(path).model, packed(lm.model)
    theirs = packed(again)
    assert all(torch.equal(theirs[name].rows, ours[name].rows) for name in ours), "bit for bit"
    if choices.get("norm") is None:
        turned = (
            read_gguf(path).data("blk.0.attn_q.weight").reshape(ours["layers.0.self_attn.q_proj.weight"].rows.shape)
        )
        assert not (turned == ours["layers.0.self_attn.q_proj.weight"].rows.numpy()).all(), "the control: it was turned"


def test_an_export_for_others_is_float_again(int4: Quantized, tmp_path: Path) -> None:
    again = load(int4.lm.save(tmp_path / "float"))
    assert not packed(again.model)
    for name, parameter in packed(int4.lm.model).items():
        assert torch.equal(again.model.get_parameter(name), parameter.unpacked()), name


def test_transformers_refuses_what_it_does_not_know(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the reader that must stop")
    for auto in (transformers.AutoModelForCausalLM, transformers.Qwen3ForCausalLM):
        with pytest.raises((ValueError, OSError, KeyError, RuntimeError)):
            auto.from_pretrained(folder)


def test_llama_cpp_reads_the_blocks(int4: Quantized, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="the reader")
    from bimo.evaluation.llama_cpp_reference import compare_with_llama_cpp

    path = int4.lm.export(tmp_path / "small.gguf", "Q4_0")
    findings = list(compare_with_llama_cpp(path, bimo.unpack(load(path).model), int4.lm.tokenizer, "Q4_0"))
    assert all(found.ok for found in findings), list(map(str, findings))


def test_beyond_the_limit_nothing_is_written_unless_told(int4: Quantized, tmp_path: Path) -> None:
    strict = replace(int4, limit=int4.cost.engine.kl / 2)
    with pytest.raises(UserError, match="nats per token"):
        strict.save(tmp_path / "x")
    assert not (tmp_path / "x").exists(), "nothing is there"
    strict.save(tmp_path / "x", force=True)
    assert load(tmp_path / "x").model.spec == int4.lm.model.spec, "the control: told, it is written"


def test_a_divergence_that_is_no_number_is_beyond_every_limit(int4: Quantized, tmp_path: Path) -> None:
    broken = replace(int4, cost=replace(int4.cost, engine=replace(int4.cost.engine, kl=float("nan"))))
    with pytest.raises(UserError, match="nats per token"):
        broken.save(tmp_path / "x")


def test_the_model_writes_its_own_text_where_none_is_given(wide: LM) -> None:
    found = bimo.quantize(wide, "int4")
    assert "the model wrote" in found.text
    assert found.cost.n_tokens == 18 * 63, "a third of the rows"
    assert found.cost.weights.kl < 0.01, "near"


def test_widths_that_are_no_blocks_stay_float_and_are_named(lm: LM, book: Path, tmp_path: Path) -> None:
    found = bimo.quantize(lm, "int4", text=book)  # 48 wide: only the feed-forward part's way back has whole blocks
    assert "layers.0.self_attn.q_proj.weight" in found.left
    assert f"{len(found.left) - 3} more" in str(found)
    assert set(packed(found.lm.model)) == {f"layers.{i}.self_attn.o_proj.weight" for i in range(2)} | {
        f"layers.{i}.mlp.down_proj.weight" for i in range(2) if lm.model.spec.d_ff % 32 == 0
    }
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        again = load(found.save(tmp_path / "x")).model(ids)
        assert torch.equal(again, found.lm.model(ids)), "the folder is the same function"


@pytest.mark.parametrize("choices", [EXPERTS, GPT2], ids=["experts", "gpt2"])
@pytest.mark.parametrize("to", ["int8", "int4"])
def test_other_families_go_there_and_back(
    choices: dict[str, Any], to: str, tokenizer: Tokenizer, texts: list[str], book: Path, tmp_path: Path
) -> None:
    lm = fresh(tokenizer, **choices)
    found = bimo.quantize(lm, to, text=book)
    assert found.cost.engine.kl < 0.02, "near"
    again = load(found.save(tmp_path / "x")).model
    ids = rows_of(lm, texts)[:2]
    with torch.no_grad():
        assert torch.equal(again(ids), found.lm.model(ids)), "the same function"
    if choices is EXPERTS:
        assert isinstance(again.get_parameter("layers.0.mlp.experts.up_proj"), PackedTensor), "experts are packed"
        assert not isinstance(again.get_parameter("layers.0.mlp.gate.weight"), PackedTensor), "routers are not"


def test_packed_weights_can_be_quantised_again(wide: LM, book: Path, tmp_path: Path) -> None:
    path = wide.export(tmp_path / "x.gguf", "Q8_0")
    found = bimo.quantize(path, "int4", text=str(book))
    assert found.cost.bytes_before < 0.3 * 4 * wide.model.n_parameters(), "as it was stored"
    assert {p.format.name for p in packed(found.lm.model).values()} == {"Q4_0"}


def rename_format(config: dict[str, Any]) -> None:
    formats = config["quantization_config"]["formats"]
    formats["Q9_9"] = formats.pop("Q4_0")


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another method": (lambda c: c["quantization_config"].update(quant_method="gptq"), "does not read"),
    "no table": (lambda c: c["quantization_config"].pop("formats"), "names no formats"),
    "a table of numbers": (lambda c: c["quantization_config"].update(formats={"Q4_0": 3}), "names no formats"),
    "an unknown format": (rename_format, "unknown format"),
    "a name twice": (lambda c: c["quantization_config"]["formats"]["Q4_0"].append("embed_tokens.weight"), "twice"),
    "a strange name": (lambda c: c["quantization_config"]["formats"]["Q4_0"].append("lost.weight"), "lost.weight"),
    "no name": (lambda c: c["quantization_config"]["formats"]["Q4_0"].append(7), "no name"),
    "wider blocks": (
        lambda c: c["quantization_config"].update(formats={"Q8_0": c["quantization_config"]["formats"]["Q4_0"]}),
        "Q8_0 needs bytes",
    ),
    "blocks that do not fit": (
        lambda c: c["quantization_config"].update(formats={"Q4_K": c["quantization_config"]["formats"]["Q4_0"]}),
        "Q4_K needs bytes",
    ),
    "another family": (lambda c: c.update(model_type="qwen3"), "quantization_config"),
    "nothing said": (lambda c: c.pop("quantization_config"), "uint8"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_configuration_is_refused_in_a_sentence(damage: str, folder: Path) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    change, said = DAMAGE[damage]
    change(config)
    file.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load(folder)


@pytest.mark.parametrize("damage", ["missing", "float", "short"])
def test_damaged_rows_are_refused_in_a_sentence(damage: str, folder: Path) -> None:
    tensors, name = load_file(folder / "model.safetensors"), "model.layers.0.mlp.up_proj.weight"
    rows = tensors.pop(name)
    if damage != "missing":
        tensors[name] = rows.float() if damage == "float" else rows[:, :-18].contiguous()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="up_proj"):
        load(folder)


def test_the_command_says_what_it_costs_and_writes_the_folder(
    wide: LM, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    wide.save("mine")
    assert main(["quantize", "mine", "--to", "int4", "--text", str(book)]) == 0
    out = capsys.readouterr().out
    assert "top-1 changes" in out, out
    assert "wrote mine-int4" in out, out
    assert main(["generate", "mine-int4", "the cat", "--max_tokens", "3"]) == 0
    assert main(["quantize", "mine", "--to", "int4", "--text", str(book), "--limit", "1e-9", "--output", "no"]) == 2
    assert "the limit is 1e-09" in capsys.readouterr().err
    assert not Path("no").exists(), "refused"
    force = ["--limit", "1e-9", "--force", "--output", "yes"]
    assert main(["quantize", "mine", "--to", "int4", "--text", str(book), *force]) == 0, "told"
    assert main(["quantize", "mine", "--to", "int4", "--text", str(book), "--output", "mine"]) == 2, "not over itself"


@pytest.mark.parametrize(
    ("options", "said"),
    [({"to": "int5"}, "int4"), ({"to": "int4", "limit": 0.0}, "limit"), ({"to": "int4", "text": "SHORT"}, "too few")],
)
def test_what_cannot_be_is_said(wide: LM, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the cat", encoding="utf-8")
    if "text" in options:
        options = options | {"text": str(tmp_path / "short.txt")}
    with pytest.raises(UserError, match=said):
        bimo.quantize(wide, **options)


def test_a_model_without_tokenizer_is_measured_on_ids(spec: ModelSpec) -> None:
    found = bimo.quantize(LM(GPT(replace(spec, d_model=64)), None), "int8")
    assert found.cost.to_dict()["bits_per_byte_before"] is None, "there are no bytes"
    assert found.cost.engine.kl < 1e-3
