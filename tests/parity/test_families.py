"""Every family against transformers, on random weights of odd shapes: logits, gradients, greedy text, and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from parity.cases import CASES, case, plain, random_case
from torch import Tensor

from bimo import LM, load
from bimo.evaluation.probes import gradients, greedy, loss_of
from bimo.interop.families import FAMILIES
from bimo.interop.huggingface import Weights
from bimo.interop.tensors import TensorNames

transformers = pytest.importorskip("transformers", reason="the extra bimo[hf] is not installed")

N_TOKENS = 40


def ids_for(vocab_size: int, rows: int = 2, length: int = N_TOKENS) -> Tensor:
    """Random ids, all of the special ones among them."""
    ids = torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(5))
    ids[:, 10:13] = torch.arange(3)
    return ids


def opened(theirs: object, folder: Path) -> LM:
    theirs.save_pretrained(folder)  # type: ignore[attr-defined]
    return load(folder)


def their_gradients(theirs: object, lm: LM, ids: Tensor, folder: Path) -> dict[str, Tensor]:
    """transformers' gradients under our names: saved as if they were weights, and read back."""
    model: torch.nn.Module = theirs  # type: ignore[assignment]
    loss_of(model(ids).logits, ids).backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    model.save_pretrained(folder)  # type: ignore[operator]
    family = next(f for f in FAMILIES if f.model_type == json.loads((folder / "config.json").read_text())["model_type"])
    weights = Weights(folder, family.prefix)
    names = TensorNames(family, lm.model.spec, {name: p.shape for name, p in lm.model.named_parameters()})
    return {name: names.read(name, weights.get).clone() for name in names.shapes}


def check_parity(theirs: object, folder: Path) -> None:
    """What the project promises for every family."""
    lm = opened(theirs, folder / "theirs")
    ids = ids_for(lm.model.spec.vocab_size)
    with torch.no_grad():
        expected = theirs(ids).logits  # type: ignore[operator]
        logits = lm.model(ids)
    assert torch.allclose(logits, expected, atol=1e-4, rtol=1e-4), float((logits - expected).abs().max())
    prompt, n_tokens = ids[0, :9], 64
    options = {"max_new_tokens": n_tokens, "min_new_tokens": n_tokens, "do_sample": False, "pad_token_id": 0}
    options |= {"eos_token_id": None, "attention_mask": torch.ones(1, 9)}  # else it hides what it takes for padding
    text = theirs.generate(prompt[None], **options)[0, 9:].tolist()  # type: ignore[attr-defined]
    assert greedy(lm.model, prompt, n_tokens) == text, "64 greedy tokens"
    again = lm.save(folder / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(again, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        difference = (plain(back.eval())(ids).logits - expected).abs().max()
    assert difference < 1e-4, f"opened by transformers again: {float(difference)}"
    _, ours = gradients(lm.model, ids)
    expected_gradients = their_gradients(theirs, lm, ids, folder / "gradients")
    largest = max(float(g.abs().max()) for g in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert float((ours[name] - gradient).abs().max()) < 1e-3 * scale, name


@pytest.mark.parametrize("name", CASES)
def test_logits_gradients_and_greedy_text_equal_transformers(name: str, tmp_path: Path) -> None:
    check_parity(case(name), tmp_path)


@pytest.mark.parametrize("family", sorted({family for family, _ in CASES.values()}))
def test_a_shape_that_nobody_chose_equals_transformers(family: str, tmp_path: Path) -> None:
    check_parity(random_case(family, seed=len(family)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("family", sorted({family for family, _ in CASES.values()}))
def test_many_shapes_that_nobody_chose_equal_transformers(family: str, seed: int, tmp_path: Path) -> None:
    check_parity(random_case(family, seed), tmp_path)
