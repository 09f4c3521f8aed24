"""Beam search finds what exhaustive search finds, says what transformers says, and leaks nothing."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from engine.text_runner import TextRunner, V, ask, assert_nothing_leaks, loop

from bimo import Engine, SamplingParams
from bimo.engine.sampling import log_total
from bimo.engine.settings import EngineSettings
from bimo.engine.steps import StepLoop

PROMPT = [1, 2, 3]
BARRED = {str(i): -1000.0 for i in range(5, V)}  # five tokens are left, so that all texts can be listed


def searched(steps: StepLoop, **params: Any) -> list[tuple[float, list[int]]]:
    job = steps.submit(ask("search", PROMPT, **params))
    while steps.step():
        pass
    assert job.error is None, job.error
    assert_nothing_leaks(steps)
    return [(choice.score, list(choice.tokens)) for choice in job.result.choices]


def log_probabilities(text: list[int]) -> Any:
    row = TextRunner(1).row(text).copy()
    row[5:] -= 1000
    return row - log_total(row)


def listed(n_tokens: int, end: int | None, length_penalty: float) -> list[tuple[float, list[int]]]:
    """All texts with their scores, best first."""
    found = {}
    for text in itertools.product(range(5), repeat=n_tokens):
        tokens = text[: text.index(end) + 1] if end in text else text
        if tokens not in found:
            steps = [log_probabilities([*PROMPT, *tokens[:i]])[token] for i, token in enumerate(tokens)]
            found[tokens] = float(sum(steps)) / len(tokens) ** length_penalty
    return sorted(((score, list(tokens)) for tokens, score in found.items()), reverse=True)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("end", [None, 0])
def test_wide_beams_find_the_best_of_all_texts(end: int | None, length_penalty: float) -> None:
    ends = frozenset() if end is None else frozenset({end})
    steps = loop(TextRunner(2000), EngineSettings(max_running=1000), ends)
    found = searched(steps, beams=125, n=3, max_tokens=4, length_penalty=length_penalty, logit_bias=BARRED)
    best = listed(4, end, length_penalty)[:3]
    assert [tokens for _, tokens in found] == [tokens for _, tokens in best]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in best], abs=1e-5)


def test_beams_beat_greedy_text() -> None:
    def total(tokens: list[int]) -> float:
        rows = [TextRunner(1).row([*PROMPT, *tokens[:i]]) for i in range(len(tokens))]
        return sum(float(row[token]) - log_total(row) for row, token in zip(rows, tokens, strict=True))

    steps = loop(TextRunner(300))
    job = steps.submit(ask("greedy", PROMPT, temperature=0, max_tokens=12))
    while steps.step():
        pass
    ((score, best),) = searched(steps, beams=6, max_tokens=12)
    assert score == pytest.approx(total(best) / 12), "its score is what it says"
    assert total(best) > total(list(job.result.tokens)), "and better than the greedy text's"


def test_a_cache_that_holds_one_beam_at_a_time_gives_the_same() -> None:
    wide, tight = loop(TextRunner(400)), loop(TextRunner(9))
    params = {"beams": 5, "n": 5, "max_tokens": 30}
    assert searched(wide, **params) == searched(tight, **params), "beams that were preempted are read again"
    assert tight.scheduler.n_preempted > 20, "they took turns"


def test_beams_share_what_they_have_in_common() -> None:
    steps = loop(TextRunner(400))
    steps.submit(ask("search", list(range(20)), beams=4, max_tokens=20))
    for _ in range(8):
        steps.step()
    assert len(steps.scheduler.running) == 4, "four beams"
    assert steps.pool.n_blocks - steps.pool.n_free < 5 + 4 * 3, "the prompt's five blocks are held once"


@pytest.mark.parametrize("length_penalty", [1.0, 0.5, 2.0])
def test_beams_equal_those_of_transformers(length_penalty: float, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra bimo[hf] is not installed")
    import bimo

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, bos_token_id=1, eos_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    model = bimo.load(tmp_path).model
    end = 7
    for prompt in ([1, 5, 9], [4], [30, 2, 2, 8, 11]):
        expected = theirs.generate(
            torch.tensor([prompt]), num_beams=4, max_new_tokens=12, do_sample=False, early_stopping="never",
            length_penalty=length_penalty, eos_token_id=end, pad_token_id=0, num_return_sequences=3,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        engine = Engine(model)
        engine.intake.ends = frozenset({end})
        params = SamplingParams(beams=4, n=3, max_tokens=12, length_penalty=length_penalty)
        ours = engine.generate([prompt], params)[0]
        rows = [row[len(prompt) :].tolist() for row in expected.sequences]
        rows = [row[: row.index(end) + 1] if end in row else row for row in rows]
        assert [list(choice.tokens) for choice in ours.choices] == rows, "the same texts, best first"
        scores = np.array([choice.score for choice in ours.choices])
        assert np.allclose(scores, expected.sequences_scores.numpy(), atol=1e-4), "with the same scores"
        assert math.isfinite(scores.sum()), "numbers"
