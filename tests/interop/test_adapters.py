"""Adapters that peft wrote do in bimo what they do in peft, and what is not plain LoRA is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.cases import case
from safetensors.torch import load_file, save_file
from torch import Tensor

from bimo import GPT, LM, UserError, load
from bimo.interop.adapter_writing import names_of, save_adapter
from bimo.interop.adapters import load_adapter
from bimo.model.adapting import AdaptedLinear, attach, detach
from bimo.model.lora import merge

peft = pytest.importorskip("peft", reason="the extra bimo[test] is not installed")
IDS = torch.randint(3, 200, (2, 20), generator=torch.Generator().manual_seed(5))

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, all": ("llama", {"target_modules": "all-linear"}),
    "llama, head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "qwen3, some, rank-stabilised": (
        "qwen3",
        {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True},
    ),
    "qwen2, patterns": (
        "qwen2",
        {
            "target_modules": ATTENTION,
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.k_proj": 3, "v_proj": 40},
        },
    ),
    "gemma3": ("gemma3", {"target_modules": ["q_proj", "gate_proj"]}),
    "phi3, fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "down_proj"]}),
    "neox, fused by heads": ("neox", {"target_modules": ["query_key_value", "dense", "dense_4h_to_h"]}),
    "gpt2, turned": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "mixtral, attention": ("mixtral", {"target_modules": ATTENTION}),
}


def saved(name: str, options: dict[str, Any], folder: Path) -> tuple[GPT, Tensor]:
    """Our model, its adapter in a folder, and peft's logits."""
    theirs = case(name)
    theirs.save_pretrained(folder / "model")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    adapted = peft.get_peft_model(theirs, config).eval()
    adapted.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return load(folder / "model").model, adapted(IDS).logits


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "phi3", "neox", "gpt2"])
def test_peft_reads_an_adapter_that_was_trained_here(name: str, tmp_path: Path) -> None:
    theirs = case(name).eval()
    theirs.save_pretrained(tmp_path / "model")
    model = attach(load(tmp_path / "model").model, rank=3, alpha=5, generator=torch.Generator().manual_seed(2))
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            torch.nn.init.normal_(module.lora_up, std=0.3)
    with torch.no_grad():
        expected = model.eval()(IDS)
    save_adapter(tmp_path / "adapter", model, detach(model, "mine"), str(tmp_path / "model"))
    with torch.no_grad():
        found = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")(IDS).logits
        assert (model(IDS) - expected).abs().max() > 0.1, "without it, the model says something else"
        again = merge(model, load_adapter(tmp_path / "adapter", model))(IDS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_computes_what_peft_computes(kind: str, tmp_path: Path) -> None:
    model, expected = saved(*KINDS[kind], tmp_path)
    with torch.no_grad():
        before = model(IDS)
        merge(model, load_adapter(tmp_path / "adapter", model))
        after = model(IDS)
    assert torch.allclose(after, expected, atol=1e-4, rtol=1e-4), float((after - expected).abs().max())
    assert not torch.allclose(before, expected, atol=1e-2), "the control: without the adapter it is another model"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Path]:
    folder = tmp_path_factory.mktemp("adapter")
    return saved("llama", {"target_modules": ["q_proj"]}, folder)[0], folder / "adapter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"bias": "all"}, "bias is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the model too"),
        ({"lora_alpha": "much"}, "wrong value"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"alpha_pattern": {"(a+)+b": 3}}, "no name of modules"),
        ({"alpha_pattern": [3]}, "wrong value"),
    ],
)
def test_what_is_not_plain_lora_is_refused(
    adapter: tuple[GPT, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model, folder = adapter
    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    with pytest.raises(UserError, match=message):
        load_adapter(tmp_path, model)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q), "lacks one of two"),
        (lambda t: t.update({Q: torch.zeros(4, 7)}), "the model wants"),
        (lambda t: t.update({Q: torch.zeros(5, 48)}), "lacks one of two matrices that fit"),
        (lambda t: t.update({Q: torch.full((4, 48), float("nan"))}), "NaN"),
        (lambda t: t.update({Q: torch.zeros(4, 48, dtype=torch.int32)}), "no matrix of numbers"),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(211, 48)}),
            "weights of its own for 'lm_head",
        ),
        (lambda t: t.update({Q.replace("lora_A", "lora_magnitude_vector"): torch.zeros(4)}), "no matrix of plain LoRA"),
        (
            lambda t: t.update({k.replace("q_proj", "c_attn"): v.clone() for k, v in list(t.items())}),
            "no linear layer of this model",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    adapter: tuple[GPT, Path], tmp_path: Path, change: Any, message: str
) -> None:
    model, folder = adapter
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    with pytest.raises(UserError, match=message):
        load_adapter(tmp_path, model)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_adapter(tmp_path, GPT.__new__(GPT))


def test_names_of_a_base_that_is_no_folder_are_known_or_refused(tmp_path: Path) -> None:
    """Llama and Phi-3 compute the same, under other names."""
    case("llama").save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model").model
    path = "layers.0.self_attn.q_proj.weight"
    split, fused = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.qkv_proj.weight"
    assert names_of(model, str(tmp_path / "model")).theirs(path) == split
    (tmp_path / "run").mkdir()
    shutil.copytree(tmp_path / "model", tmp_path / "run" / "model")
    config = tmp_path / "run" / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "phi3"}))
    assert names_of(model, str(tmp_path / "run")).theirs(path) == fused, "a run's folder"
    with pytest.raises(UserError, match="the base does not say which"):
        names_of(model, "somewhere/unknown")
    assert names_of(model, "").theirs(path) == split, "without a base: as the model is exported"


def test_a_gguf_file_says_its_family(lm: LM, tmp_path: Path) -> None:
    lm.export(tmp_path / "model.gguf", "F32")
    opened = load(tmp_path / "model.gguf").model
    theirs = names_of(opened, str(tmp_path / "model.gguf"))
    assert theirs.theirs("layers.0.self_attn.q_proj.weight") == "model.layers.0.self_attn.q_proj.weight"
