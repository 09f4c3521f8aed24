"""The engine says what the naive loop says, keeps every sampling rule, and streams whole characters."""

from __future__ import annotations

import pytest
import torch

from bimo import LM, Engine, SamplingParams, UserError

GREEDY = SamplingParams(max_tokens=40, temperature=0)


def test_greedy_tokens_equal_naive_generation(lm: LM) -> None:
    engine = Engine(lm.model, lm.tokenizer)
    prompt = engine.prompt_ids("the cat")
    ours = list(engine.tokens(prompt, GREEDY))
    naive = lm.model.generate(torch.tensor([prompt]), len(ours))[0, len(prompt) :].tolist()
    assert ours == naive, "the cache must not change what is said"


def test_same_seed_same_text_and_another_seed_another(lm: LM) -> None:
    texts = [lm.generate("the", max_tokens=30, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2], "the seed settles the text"


def test_stream_gives_the_same_text_in_pieces(lm: LM) -> None:
    pieces = list(lm.stream("一只", max_tokens=40, temperature=1.5, seed=3))
    assert "".join(pieces) == lm.generate("一只", max_tokens=40, temperature=1.5, seed=3), "same text"
    assert len(pieces) > 3, "in pieces"


def test_control_tokens_are_never_part_of_an_answer(lm: LM) -> None:
    engine = Engine(lm.model, lm.tokenizer)
    ends = {lm.tokenizer.end_id, lm.tokenizer.control_tokens["<|end_of_turn|>"]}
    forbidden = set(lm.tokenizer.control_tokens.values()) - ends
    for seed in range(5):
        tokens = list(engine.tokens(engine.prompt_ids(""), SamplingParams(max_tokens=60, temperature=50.0, seed=seed)))
        assert not forbidden & set(tokens), "even when every token is equally likely"


def test_stop_string_ends_the_text_and_is_not_in_it(lm: LM) -> None:
    text = lm.generate("the cat", max_tokens=40, temperature=0)
    stop = text[5:9]
    assert lm.generate("the cat", max_tokens=40, temperature=0, stop=stop) == text[: text.index(stop)], "cut before it"


def test_prompt_longer_than_the_context_says_both_lengths(lm: LM) -> None:
    with pytest.raises(UserError, match=r"\d+ tokens, the model sees at most 64"):
        lm.generate("the cat sat on a mat " * 40)


def test_generation_ends_at_the_context_and_says_so(lm: LM) -> None:
    engine = Engine(lm.model, lm.tokenizer)
    prompt = engine.prompt_ids("the cat")
    lm.tokenizer.control_tokens.items()
    completion = engine.complete(prompt, SamplingParams(max_tokens=500, temperature=0.9, seed=5))
    assert completion.finish_reason in ("context", "end"), "never an error in the middle"
    assert completion.n_tokens <= 64 - len(prompt) + 1, "no further than the model sees"


def test_full_prompt_still_gets_one_token(lm: LM) -> None:
    engine = Engine(lm.model, lm.tokenizer)
    assert len(list(engine.tokens([lm.tokenizer.begin_id] * 64, GREEDY))) == 1, "the last position has logits too"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("min_p", 2.0),
        ("max_tokens", 0),
        ("stop", [""]),
    ],
)
def test_bad_options_are_refused_by_name(lm: LM, option: str, value: object) -> None:
    with pytest.raises(UserError, match=option):
        lm.generate("a", **{option: value})


def test_unknown_option_names_the_nearest(lm: LM) -> None:
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        lm.generate("a", temprature=1.0)
