"""GGUF files in llama.cpp itself: it loads them, tokenises alike, and computes the same within the format's rounding.

Needs `pip install "bimo[llama]"`, which compiles llama.cpp for some 20 minutes: `make slow` does so.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from parity.cases import CASES, case, random_case
from parity.smollm2 import SMOLLM2, needs_smollm2

import bimo
from bimo import LM, Tokenizer, UserError
from bimo.demo import demo
from bimo.evaluation.llama_cpp_reference import LlamaCpp, compare_with_llama_cpp
from bimo.evaluation.probes import greedy
from bimo.evaluation.texts import SCRIPTS, random_texts, vocabulary_texts
from bimo.interop.gguf_writing import EXPORTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason='pip install "bimo[llama]"'),
]
DATA = Path(__file__).parents[3] / "shared" / "data"
EXPORTABLE = [
    *("gpt2", "gpt2, odd heads, untied, wide", "neox, one after the other, all turned", "llama"),
    *("llama, one key head, odd heads", "llama 3.2", "llama, linear", "llama, yarn", "llama, biases"),
    *("mistral, no window", "qwen2", "qwen3", "smollm3, as published", "olmo2", "gemma2, as published"),
    *("gemma3, as published", "phi3, no window", "phi3, half a head", "phi3, longrope, long text", "mixtral"),
    "qwen3 moe",
]


@pytest.fixture(scope="module")
def small_tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat 12 345 abba cab " * 30], 280)


def check_file(path: Path, format: str) -> None:
    lm = bimo.load(path)
    bimo.unpack(lm.model)
    findings = list(compare_with_llama_cpp(path, lm.model, lm.tokenizer, format))
    assert len(findings) == 2, "texts and logits"
    assert all(found.ok for found in findings), list(map(str, findings))


@pytest.mark.parametrize("name", EXPORTABLE)
def test_a_family_computes_the_same(name: str, small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    case(name, vocab_size=290).save_pretrained(tmp_path / "theirs")
    lm = LM(bimo.load(tmp_path / "theirs").model, small_tokenizer)
    check_file(lm.export(tmp_path / "model.gguf", "F32"), "F32")


@pytest.mark.parametrize("family", sorted({family for family, _ in CASES.values()}))
def test_a_shape_that_nobody_chose_computes_the_same_or_is_refused(
    family: str, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    refusals = []
    for seed in range(4):
        random_case(family, seed).save_pretrained(tmp_path / f"theirs-{seed}")
        lm = LM(bimo.load(tmp_path / f"theirs-{seed}").model, small_tokenizer)
        try:
            path = lm.export(tmp_path / f"{seed}.gguf", "F32")
        except UserError as error:
            refusals.append(str(error))
        else:
            check_file(path, "F32")
    assert all("llama.cpp has no architecture" in refusal for refusal in refusals), refusals


@pytest.fixture(scope="module", params=["en", "zh"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LM, list[str]]:
    """A model of `bimo demo` in English or Chinese, and 10,000 strings."""
    import gzip

    from rich.console import Console

    folder = tmp_path_factory.mktemp(request.param)
    text = folder / "text.txt"
    source = DATA / f"pretrain_{request.param}" / "train.txt.gz"
    if not source.exists():
        pytest.skip(f"there is no {source}")
    with gzip.open(source, "rt", encoding="utf-8") as file:
        text.write_text(file.read(3_000_000), encoding="utf-8")
    lm = demo([str(text)], Console(quiet=True), seconds=20, folder=str(folder)).lm
    words = text.read_text(encoding="utf-8")
    own = [words[i * 600 : i * 600 + 40] for i in range(4000)]
    strings = [t for t in (*SCRIPTS, *own, *random_texts(3000), *vocabulary_texts(lm.tokenizer, 3100)) if t]
    return lm, strings[:10_000]


def test_a_demo_model_tokenises_alike(trained: tuple[LM, list[str]], tmp_path: Path) -> None:
    lm, strings = trained
    theirs = LlamaCpp(lm.export(tmp_path / "model.gguf", "F16"), only_vocabulary=True)
    assert len(strings) == 10_000, len(strings)
    assert not [text for text in strings if theirs.encode(text) != lm.tokenizer.encode(text)], "other ids"


@pytest.mark.parametrize("format", EXPORTS)
def test_a_demo_model_computes_the_same(trained: tuple[LM, list[str]], format: str, tmp_path: Path) -> None:
    check_file(trained[0].export(tmp_path / "model.gguf", format), format)


@needs_smollm2
@pytest.mark.parametrize("format", ["F32", "F16", "BF16"])
def test_smollm2_exported_again_says_the_same(format: str, tmp_path: Path) -> None:
    assert SMOLLM2 is not None, "skipped otherwise"
    path = bimo.load(SMOLLM2).export(tmp_path / "again.gguf", format)
    lm = bimo.load(path)
    prompt = lm.tokenizer.encode("The history of the printing press began when people carved letters into wood, and")
    theirs = LlamaCpp(path, len(prompt) + 64).greedy(prompt, 64)
    assert greedy(bimo.unpack(lm.model), torch.tensor(prompt), 64) == theirs, "64 greedy tokens"


@needs_smollm2
@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q4_K"])
def test_smollm2_quantised_again_stays_within_the_rounding(format: str, tmp_path: Path) -> None:
    assert SMOLLM2 is not None, "skipped otherwise"
    check_file(bimo.load(SMOLLM2).export(tmp_path / "again.gguf", format), format)
