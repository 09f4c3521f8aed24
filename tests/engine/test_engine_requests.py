"""The engine with a real model: batches, streams, threads, scores, vectors, labels; each request as if alone."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model.test_lora import adapter_of

from bimo import LM, Engine, ModelSpec, SamplingParams, Tokenizer, TrainingSettings, UserError, load, new
from bimo.core.spec import RopeScaling
from bimo.engine import EngineSettings, new_tokens
from bimo.engine.steps import StepLoop
from bimo.model.lora import merge

TEXTS = ["the cat", "一只猫", "der Hund schlief", "a", "the cat sat on a mat and saw", "by", "", "while water"]
DRAWN = SamplingParams(max_tokens=25, temperature=1.0, seed=11)


def assert_idle(engine: StepLoop) -> None:
    assert engine.pool.n_free == engine.pool.n_blocks, "all blocks are free"
    assert not engine.jobs, "nothing is under way"


@pytest.fixture
def engine(lm: LM) -> Engine:
    return Engine(lm, settings=EngineSettings(max_running=16))


def oracle(engine: Engine, prompt: str, params: SamplingParams) -> list[int]:
    intake = engine.intake
    ids = engine.prompt_ids(prompt)
    return list(new_tokens(engine.model, ids, params, forbidden=intake.forbidden, ends=intake.ends))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_equals_the_naive_loop_on_each(engine: Engine, temperature: float) -> None:
    each = [replace(DRAWN, temperature=temperature, seed=seed) for seed in range(len(TEXTS))]
    found = engine.generate(TEXTS, each)
    assert [list(c.tokens) for c in found] == [oracle(engine, t, p) for t, p in zip(TEXTS, each, strict=True)]
    assert_idle(engine)


@pytest.mark.parametrize(
    "how",
    [EngineSettings(cache_tokens=80), EngineSettings(guess_tokens=4), EngineSettings(max_running=2, step_tokens=16)],
    ids=["a small cache", "guesses", "in turns"],
)
def test_the_text_of_a_seed_is_the_same_in_any_engine(lm: LM, engine: Engine, how: EngineSettings) -> None:
    other = Engine(lm, settings=how)
    prompts = [*TEXTS * 2, "the cat the cat the cat"]
    assert [c.text for c in other.generate(prompts, DRAWN)] == [engine.complete(t, DRAWN).text for t in prompts]
    if how.cache_tokens:
        assert other.stats.n_preempted > 0, "the cache was too small"
    if how.guess_tokens:
        assert other.complete("the cat the cat the", replace(DRAWN, temperature=0)).n_tokens, "it repeats itself"
        assert other.stats.n_guessed > 0, "there was something to guess"
    assert_idle(other)


def test_a_draft_model_changes_nothing_but_the_steps(lm: LM, engine: Engine) -> None:
    guessed = Engine(lm, settings=EngineSettings(guess_tokens=4), draft=lm)
    assert [c.text for c in guessed.generate(TEXTS, DRAWN)] == [c.text for c in engine.generate(TEXTS, DRAWN)]
    stats = guessed.stats
    assert stats.n_accepted == stats.n_guessed > 0, "a draft that is the model itself is always right"
    assert_idle(guessed)


def test_a_draft_of_other_ids_is_refused(lm: LM, spec: ModelSpec) -> None:
    from bimo import GPT

    with pytest.raises(UserError, match="the draft model has 99 ids"):
        Engine(lm, draft=GPT(replace(spec, vocab_size=99)))


def test_several_answers_differ_and_the_first_is_that_of_one(engine: Engine) -> None:
    several = engine.complete("the cat", replace(DRAWN, n=4))
    assert len({choice.text for choice in several.choices}) > 1, "each has its own draws"
    assert several.text == engine.complete("the cat", DRAWN).text, "n changes nothing for the first"


def test_stop_ids_and_min_tokens(engine: Engine) -> None:
    greedy = replace(DRAWN, temperature=0)
    tokens = engine.complete("the cat", greedy).tokens
    stop = tokens[3]
    stopped = engine.complete("the cat", replace(greedy, stop_ids=(stop,)))
    assert (stopped.tokens, stopped.finish_reason) == (tokens[: tokens.index(stop) + 1], "stop")
    longer = engine.complete("the cat", replace(greedy, stop_ids=(stop,), min_tokens=20))
    assert longer.n_tokens >= 20, "not before"


def test_logprobs_add_up_to_the_score(engine: Engine) -> None:
    found = engine.complete("the cat", replace(DRAWN, temperature=0, logprobs=3, max_tokens=8))
    assert len(found.logprobs) == found.n_tokens
    assert all(entry.top[0] == (entry.token, entry.logprob) for entry in found.logprobs), "greedy is the likeliest"
    ids = torch.tensor([engine.prompt_ids("the cat") + list(found.tokens)])
    with torch.no_grad():
        expected = (
            engine.model(ids).log_softmax(-1)[0, -found.n_tokens - 1 : -1].gather(1, ids[0, -found.n_tokens :, None])
        )
    assert [entry.logprob for entry in found.logprobs] == pytest.approx(expected[:, 0].tolist(), abs=1e-4)


@pytest.mark.parametrize("step_tokens", [16, 512])
def test_scores_are_the_models_log_probabilities(lm: LM, step_tokens: int) -> None:
    engine = Engine(lm, settings=EngineSettings(step_tokens=step_tokens))
    contexts = ["", "der Hund", "the cat sat on a mat " * 2, "the cat sat on a mat " * 2]
    texts = ["the cat sat on a mat", "schlief", "and saw", "by water"]
    for text, context, score in zip(texts, contexts, engine.score(texts, contexts), strict=True):
        before, own = engine.prompt_ids(context), lm.tokenizer.encode(text)
        ids = torch.tensor([before + own])
        with torch.no_grad():
            expected = lm.model(ids).log_softmax(-1)[0, len(before) - 1 : -1].gather(1, ids[0, len(before) :, None])
        assert score.tokens == tuple(own)
        assert score.logprobs == pytest.approx(expected[:, 0].tolist(), abs=1e-4)
    assert_idle(engine)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_pooled_hidden_states(lm: LM, pooling: Any) -> None:
    engine = Engine(lm, settings=EngineSettings(step_tokens=16))
    texts = [*TEXTS, "the cat sat on a mat " * 3]
    found = engine.embed(texts, pooling=pooling, normalize=False)
    with torch.no_grad():
        states = [lm.model.hidden(torch.tensor([engine.prompt_ids(text)]))[0] for text in texts]
    expected = torch.stack([s.mean(0) if pooling == "mean" else s[-1] for s in states]).numpy()
    assert np.allclose(found, expected, atol=1e-4)
    assert np.allclose(np.linalg.norm(engine.embed(texts, pooling=pooling), axis=1), 1), "of length 1"
    assert engine.embed([]).shape == (0, lm.model.spec.d_model), "no texts, no vectors"


def test_labels_are_chosen_by_likelihood(engine: Engine) -> None:
    labels = [" sat", " water", "猫"]
    for text, found in zip(TEXTS, engine.classify(TEXTS, labels), strict=True):
        totals = [score.total for score in engine.score(labels, [text] * 3)]
        assert found.label == labels[int(np.argmax(totals))]
        assert sum(found.probabilities.values()) == pytest.approx(1)


def test_an_answer_has_the_form_that_was_asked_for(engine: Engine) -> None:
    pytest.importorskip("llguidance", reason="the extra bimo[grammar] is not installed")
    forms = [{"choices": ("yes", "no", "maybe")}, {"regex": "[a-c]{3}-[0-9]+!"}, {}]
    each = [replace(DRAWN, seed=seed, max_tokens=40, **forms[seed % 3]) for seed in range(12)]
    found = engine.generate(["the cat"] * 12, each)
    assert {c.text for c in found[::3]} <= {"yes", "no", "maybe"}
    assert all(c.finish_reason == "end" for c in found[::3]), "it ends when nothing can follow"
    import re

    for c in found[1::3]:
        assert re.fullmatch("[a-c]{3}-[0-9]+!", c.text) or c.finish_reason != "end", c.text
    assert [c.text for c in found[2::3]] == [engine.complete("the cat", p).text for p in each[2::3]], "others are free"
    guessed = Engine(engine.model, engine.tokenizer, EngineSettings(guess_tokens=4))
    assert [c.text for c in guessed.generate(["the cat"] * 12, each)] == [c.text for c in found], "guesses keep to it"


def test_errors_come_after_the_others_are_done_or_in_their_place(engine: Engine) -> None:
    prompts = ["the cat", "the cat sat on a mat " * 40, "a"]
    with pytest.raises(UserError, match=r"prompt 1: the prompt has \d+ tokens"):
        engine.generate(prompts, DRAWN)
    found = engine.generate(prompts, DRAWN, keep_errors=True)
    assert (found[1].finish_reason, found[1].text, found[1].n_tokens) == ("error", "", 0)
    assert [found[0].text, found[2].text] == [engine.complete(p, DRAWN).text for p in ("the cat", "a")]
    assert_idle(engine)


def test_broken_weights_fail_the_request_and_not_the_engine(lm: LM, spec: ModelSpec) -> None:
    broken = new(spec, lm.tokenizer)
    engine = Engine(broken, settings=EngineSettings(backend="torch"))  # it computes with the weights where they are
    with torch.no_grad():
        saved = broken.model.norm.weight.clone()
        broken.model.norm.weight.fill_(float("nan"))
        with pytest.raises(UserError, match="NaN"):
            engine.complete("a", DRAWN)
        broken.model.norm.weight.copy_(saved)
    assert engine.complete("a", DRAWN).n_tokens, "it goes on"
    assert_idle(engine)


def test_ids_alone_need_no_tokenizer(lm: LM) -> None:
    engine = Engine(lm.model)
    assert engine.generate([1, 2, 3], DRAWN)[0].tokens == engine.generate([[1, 2, 3]], DRAWN)[0].tokens
    for ask in (lambda: engine.complete("a"), lambda: engine.score(["a"])):
        with pytest.raises(UserError, match="no tokenizer"):
            ask()


def test_a_closed_stream_frees_its_blocks(engine: Engine) -> None:
    stream = engine.stream("the cat", DRAWN)
    next(stream)
    assert engine.stats.running == 1, "under way"
    stream.close()
    assert_idle(engine)


def test_a_stream_returns_the_completion(engine: Engine) -> None:
    stream, pieces, completion = engine.stream("the cat", DRAWN), [], None
    while completion is None:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            completion = end.value
    assert completion.text == "".join(pieces), "all of it was shown"


def test_a_stream_has_one_answer(engine: Engine) -> None:
    for params in (SamplingParams(n=2), SamplingParams(beams=2)):
        with pytest.raises(UserError, match="one answer"):
            next(engine.stream("a", params))


def test_async_streams_run_together_and_give_the_same_texts(engine: Engine) -> None:
    async def collect(text: str) -> str:
        return "".join([piece async for piece in engine.astream(text, DRAWN)])

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*map(collect, TEXTS))

    assert asyncio.run(all_of_them()) == [engine.complete(text, DRAWN).text for text in TEXTS]
    assert_idle(engine)


def wait_until_idle(engine: Engine) -> None:
    end = time.monotonic() + 10
    while (engine.jobs or engine._driver) and time.monotonic() < end:
        time.sleep(0.01)
    assert_idle(engine)
    assert engine._driver is None, "its thread has ended"


def test_a_closed_async_stream_frees_its_blocks_and_ends_the_thread(engine: Engine) -> None:
    async def first_piece() -> str:
        stream = engine.astream("the cat", replace(DRAWN, max_tokens=60))
        piece = await anext(stream)
        await stream.aclose()
        return piece

    assert asyncio.run(first_piece()), "something came"
    wait_until_idle(engine)


def test_an_error_reaches_the_async_stream(engine: Engine) -> None:
    async def read(prompt: str) -> list[str]:
        return [piece async for piece in engine.astream(prompt, DRAWN)]

    async def both() -> list[Any]:
        return await asyncio.gather(read("the cat " * 99), read("a"), return_exceptions=True)

    error, text = asyncio.run(both())
    assert isinstance(error, UserError), "too long"
    assert "".join(text) == engine.complete("a", DRAWN).text, "the other one goes on"
    wait_until_idle(engine)


def test_a_loop_that_goes_away_takes_its_request_along(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run, before = engine.runner.logits, engine.stats.n_tokens

    def slow(chunks: Any) -> Any:
        time.sleep(0.01)  # a second for all of it: time to see who has gone
        return run(chunks)

    monkeypatch.setattr(engine.runner, "logits", slow)
    loop = asyncio.new_event_loop()
    stream = engine.astream("the cat", replace(DRAWN, max_tokens=60, min_tokens=60))
    loop.run_until_complete(anext(stream))
    loop.close()
    wait_until_idle(engine)
    assert engine.stats.n_tokens - before < 60, "it was given up, and did not come to its own end"


def test_many_threads_use_one_engine(engine: Engine) -> None:
    expected = {text: engine.complete(text, DRAWN).text for text in TEXTS}
    found: list[bool] = []

    def work(offset: int) -> None:
        for i in range(6):
            text = TEXTS[(offset + i) % len(TEXTS)]
            if i % 3 == 2:
                next(engine.stream(text, DRAWN), None)  # and is thrown away
            else:
                found.append(engine.complete(text, DRAWN).text == expected[text])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 24
    wait_until_idle(engine)


def test_lm_sees_weights_that_changed_and_keeps_its_engine_otherwise(lm: LM, spec: ModelSpec, texts: list[str]) -> None:
    fresh = new(spec, lm.tokenizer, seed=5)
    before = fresh.generate("the cat", temperature=0, max_tokens=20)
    made = fresh._engine()
    fresh.generate("a", temperature=0, max_tokens=2)
    assert fresh._engine() is made, "one engine while nothing changes"
    fresh.fit(texts[:40], settings=TrainingSettings(batch_size=8, precision="fp32", device="cpu", threads=1))
    assert fresh._engine() is not made, "trained"
    after = fresh.generate("the cat", temperature=0, max_tokens=20)
    assert after == Engine(fresh).complete("the cat", SamplingParams(temperature=0, max_tokens=20)).text != before


def test_lm_of_packed_weights_keeps_its_engine(lm: LM, tmp_path: Path) -> None:
    lm.export(tmp_path / "model.gguf", "Q8_0")
    packed = load(tmp_path / "model.gguf")
    assert packed.generate("the cat", temperature=0, max_tokens=5), "something"
    assert packed._engine() is packed._engine(), "although the engine may unpack them"


def test_lm_is_copied_without_its_engine(lm: LM) -> None:
    lm.generate("a", max_tokens=1)
    assert copy.deepcopy(lm).generate("a", temperature=0, max_tokens=3) == lm.generate("a", temperature=0, max_tokens=3)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_longrope_is_read_again_where_its_frequencies_change(tokenizer: Tokenizer, backend: Any) -> None:
    factors = {"short_factors": (1.0, 1.1, 1.2, 1.3), "long_factors": (1.0, 2.0, 4.0, 9.0)}
    scaling = RopeScaling("longrope", original_context=40, attention_factor=1.2, **factors)
    spec = ModelSpec(context_length=96, n_layers=2, d_model=24, n_heads=4, head_dim=8, d_ff=40, rope_scaling=scaling)
    model = new(spec, tokenizer, seed=3)
    engine = Engine(model, settings=EngineSettings(backend=backend, step_tokens=16, guess_tokens=3))
    prompts = ["the cat sat", "the cat sat on a mat and saw an old tree by water while", "一只猫坐在垫子上"]
    for params in (replace(DRAWN, max_tokens=60), replace(DRAWN, max_tokens=60, temperature=0)):
        found = engine.generate(prompts, params)
        assert [list(c.tokens) for c in found] == [oracle(engine, prompt, params) for prompt in prompts]
    assert_idle(engine)


def test_each_request_chooses_its_adapter(lm: LM) -> None:
    adapters = [adapter_of(lm.model, "a", 3, seed=1), adapter_of(lm.model, "b", 2, seed=2)]
    engine = Engine(lm, adapters=adapters)
    names = ["a", "", "b", "a", "b"]
    found = engine.generate(["the cat"] * 5, DRAWN, adapter=names)
    merged = {adapter.name: merge(copy.deepcopy(lm.model), adapter) for adapter in adapters} | {"": lm.model}
    alone = {name: Engine(model, lm.tokenizer) for name, model in merged.items()}
    assert [c.text for c in found] == [alone[name].complete("the cat", DRAWN).text for name in names]
    assert len({c.text for c in found}) == 3, "the control: each model says something else"
    assert np.allclose(engine.embed(["a"], adapter="b"), alone["b"].embed(["a"]), atol=1e-4)
    with pytest.raises(UserError, match="there is no adapter 'c'"):
        engine.generate(["a"], DRAWN, adapter="c")
    with pytest.raises(UserError, match="1 prompts and 2 adapters"):
        engine.generate(["a"], DRAWN, adapter=["a", "b"])
    assert_idle(engine)


def test_stats_count(engine: Engine) -> None:
    assert engine.stats.n_tokens == 0
    total = sum(c.n_tokens for c in engine.generate(TEXTS, DRAWN))
    stats = engine.stats
    assert (stats.n_tokens, stats.running, stats.waiting) == (total, 0, 0)
    assert stats.tokens_per_s > 0


def test_contexts_may_be_ids_and_progress_is_told(engine: Engine) -> None:
    texts, labels = ["the cat sat", "der Hund"], ["on", "schlief"]
    ids = [engine.prompt_ids(text) for text in texts]
    shares: list[float] = []
    assert engine.score(labels, ids, on_progress=shares.append) == engine.score(labels, texts)
    assert engine.classify(ids, labels) == engine.classify(texts, labels)
    engine.generate(texts, SamplingParams(max_tokens=3), on_progress=shares.append)
    assert shares.count(1.0) == 2, "each ends with all"
    assert min(shares) < 1
