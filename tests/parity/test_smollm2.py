"""A real model on real text: SmolLM2-135M-Instruct answers, computes what transformers computes, and goes out again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity.smollm2 import SMOLLM2, needs_smollm2

import bimo
from bimo import LM
from bimo.evaluation.probes import greedy

pytestmark = needs_smollm2
PROMPT = "The history of the printing press began when people carved letters into blocks of wood, and"
# Its first words are no near tie: activations of 8 bits leave them as they are.
GERMANY = [{"role": "user", "content": "What is the capital of Germany?"}]


@pytest.fixture(scope="module")
def lm() -> LM:
    assert SMOLLM2 is not None, "skipped otherwise"
    return bimo.load(SMOLLM2)


def test_it_answers_a_question(lm: LM) -> None:
    assert "Berlin" in lm.chat(GERMANY, max_tokens=30, temperature=0)


def test_the_command_chat_answers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bimo.cli", "chat", str(SMOLLM2), "--temperature", "0", "--max_tokens", "30"]
    done = subprocess.run(command, input=GERMANY[0]["content"] + "\n\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Berlin" in done.stdout, done.stdout


def test_the_command_generate_continues(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bimo.cli", "generate", str(SMOLLM2), "The capital of France is"]
    options = ["--temperature", "0", "--max_tokens", "5"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(" Paris"), done.stdout


def test_packed_weights_compute_what_unpacked_ones_do(lm: LM) -> None:
    assert SMOLLM2 is not None, "skipped otherwise"
    ids = torch.tensor([lm.tokenizer.encode(PROMPT)])
    with torch.no_grad():
        packed = bimo.load(SMOLLM2).model(ids)
        assert torch.equal(bimo.unpack(lm.model)(ids), packed), "the same bits"


def test_the_weights_are_those_that_the_gguf_package_reads(lm: LM) -> None:
    gguf = pytest.importorskip("gguf", reason="the extra bimo[hf] is not installed")
    assert SMOLLM2 is not None, "skipped otherwise"
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(SMOLLM2).tensors}
    tensor = tensors["blk.7.ffn_down.weight"]
    expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
    ours = bimo.unpack(lm.model).get_parameter("layers.7.mlp.down_proj.weight")
    assert torch.equal(ours, expected), "bit for bit"


@pytest.mark.slow  # transformers needs half a minute to open the file
def test_greedy_text_is_that_of_transformers_on_the_same_file(lm: LM) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra bimo[hf] is not installed")
    assert SMOLLM2 is not None, "skipped otherwise"
    where = {"pretrained_model_name_or_path": str(SMOLLM2.parent), "gguf_file": SMOLLM2.name, "local_files_only": True}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    for text in (PROMPT, "def fibonacci(n):\n", "春天来了，"):
        ids = lm.tokenizer.encode(text)
        options = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
        expected = theirs.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
        assert greedy(bimo.unpack(lm.model), torch.tensor(ids), 64) == expected, text


@pytest.mark.slow
def test_the_whole_certificate_holds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bimo.cli", "verify", str(SMOLLM2), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    certificate = json.loads((tmp_path / "certificate.json").read_text(encoding="utf-8"))
    assert len(certificate["weights"]) == 272, "a hash for each tensor"


def test_opening_takes_less_memory_than_twice_the_file() -> None:
    benchmark = Path(__file__).parents[2] / "benchmarks" / "load_gguf.py"
    assert SMOLLM2 is not None, "skipped otherwise"

    def peak(name: str) -> float:
        command = [sys.executable, str(benchmark), str(SMOLLM2), "--one", name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return json.loads(output.splitlines()[-1])["bytes"] / SMOLLM2.stat().st_size

    assert peak("bimo") < 2, "the blocks stay in the mapped file"
    assert peak("bimo, unpacked") > 2, "the control: as float32 they do not"
