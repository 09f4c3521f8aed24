"""Whatever a person has opens: a run, a folder with one or many files of any dtype, a hub name, a GGUF file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bimo import LM, ModelSpec, Tokenizer, UserError, load, new


@pytest.fixture
def folder(lm: LM, tmp_path: Path) -> Path:
    return lm.save(tmp_path / "model")


def same(a: LM, b: LM) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_weights_in_many_files_open(lm: LM, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    names, places = sorted(tensors), {}
    for i in range(3):
        part = f"model-0000{i + 1}-of-00003.safetensors"
        places |= dict.fromkeys(names[i::3], part)
        save_file({name: tensors[name] for name in names[i::3]}, folder / part)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert same(load(folder), lm), "the same model"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_dtype_become_float32(lm: LM, folder: Path, dtype: torch.dtype) -> None:
    tensors = {name: t.to(dtype) for name, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    model = load(folder).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}, "one dtype to compute in"
    assert torch.equal(model.norm.weight, lm.model.norm.weight.to(dtype).float()), "the numbers of the file"


def test_a_checkpoint_without_the_head_around_it_opens(lm: LM, folder: Path) -> None:
    tensors = {n.removeprefix("model."): t for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    assert same(load(folder), lm), "the same model"


def test_a_tied_head_that_is_stored_all_the_same_is_no_obstacle(lm: LM, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert same(load(folder), lm), "the same model"


def test_a_folder_without_a_tokenizer_opens_for_ids(lm: LM, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    model = load(folder)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model.model(ids), lm.model(ids)), "ids work"
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        model.generate("text")


def test_a_family_that_is_not_known_is_named_with_those_that_are(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bloom"}))
    with pytest.raises(UserError, match=r"'bloom' is not supported.*Known families: qwen3, llama"):
        load(folder)


def test_pickled_weights_are_not_touched(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    trap = folder / "trap"
    code = f"cos\nsystem\n(S'touch {trap}'\ntR."
    (folder / "pytorch_model.bin").write_bytes(code.encode())
    with pytest.raises(UserError, match="safetensors"):
        load(folder)
    assert not trap.exists(), "nothing out of the file has run"


def test_code_in_the_folder_is_not_run(lm: LM, folder: Path) -> None:
    trap = folder / "trap"
    (folder / "modeling.py").write_text(f"open({str(trap)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    assert same(load(folder), lm), "the plain weights"
    assert not trap.exists(), "nothing out of the folder has run"


def test_a_hub_name_opens_from_the_local_cache_without_a_network(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="an extra brings it")
    cache = tmp_path / "hub" / "models--someone--small"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    code = "import bimo; print(bimo.load('someone/small').generate('the', max_tokens=3, temperature=0))"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "it writes"


def test_a_hub_name_that_is_nowhere_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="an extra brings it")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "bimo.cli", "generate", "someone/nothing", "x"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout
    assert "someone/nothing" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("name", "words"), [("nothing.gguf", "no such file"), ("nothing", "no run and no model folder"), ("", "no run")]
)
def test_what_is_not_there_is_one_sentence(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        load(tmp_path / name)


def test_a_mixture_of_experts_opens_from_a_gguf_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = ModelSpec(context_length=16, n_layers=2, d_model=32, n_heads=3, head_dim=16, n_experts=5, d_expert=32)
    lm = new(spec, tokenizer, seed=5)
    again = load(lm.export(tmp_path / "a.gguf", "F32"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(again.model(ids), lm.model(ids)), "the same logits"
