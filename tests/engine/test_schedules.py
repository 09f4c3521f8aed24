"""Whatever comes and goes, each request is answered as if alone, and no block is lost; protections have controls."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from engine.text_runner import CONTEXT, TextRunner, V, alone, ask, assert_nothing_leaks, loop

from bimo import SamplingParams, UserError
from bimo.engine import blocks
from bimo.engine.beams import BeamSearch
from bimo.engine.jobs import Generation
from bimo.engine.request import Request
from bimo.engine.scheduler import Scheduler
from bimo.engine.settings import EngineSettings
from bimo.engine.speculation import DraftModel
from bimo.engine.steps import StepLoop

ENDS = frozenset({3})


def random_request(rng: random.Random, name: str) -> Request:
    """Some begin alike; some are long, some have beams, some several answers."""
    base = random.Random(rng.randrange(3)).choices(range(V), k=40)
    if rng.random() < 0.5:  # it has blocks in common, and not what stands before them
        base[4:12] = [*range(8)]
    prompt = base[: rng.randrange(1, 40)] + rng.choices(range(V), k=rng.randrange(6))
    kind = rng.random()
    beams, n = (rng.randrange(2, 4), 1) if kind < 0.1 else (1, rng.randrange(1, 4) if kind < 0.3 else 1)
    return ask(
        name, prompt, rng.choice(["", "", "a", "b"]), max_tokens=rng.randrange(1, 30), beams=beams, n=n,
        temperature=rng.choice([0.0, 0.7, 1.3]), seed=rng.randrange(100), top_k=rng.choice([0, 5]),
        top_p=rng.choice([1.0, 0.9]), repetition_penalty=rng.choice([1.0, 1.2]), stop_ids=(5,),
        presence_penalty=rng.choice([0.0, 0.5]),
    )  # fmt: skip


def random_loop(rng: random.Random) -> StepLoop:
    """An engine with little room: two or three texts fill it."""
    settings = EngineSettings(
        max_running=rng.randrange(1, 9),
        step_tokens=rng.choice([1, 4, 16, 64]),
        share_prefixes=rng.random() < 0.8,
        guess_tokens=rng.choice([0, 0, 3, 6]),
    )
    original = rng.choice([CONTEXT, 30])
    steps = loop(TextRunner(rng.randrange(26, 60), original), settings, ENDS)
    if settings.guess_tokens and rng.random() < 0.5:
        draft = TextRunner(rng.randrange(26, 60), original, taste=rng.choice([0, 1]))
        steps.guesser = DraftModel(draft, steps._rules_of, most=4, step_tokens=8, context_length=80)
    return steps


def answer_of(job: Any) -> list[list[int]]:
    assert job.error is None, job.error
    return [list(choice.tokens) for choice in job.result.choices]


def beams_alone(request: Request, runner: TextRunner) -> list[list[int]]:
    steps = loop(TextRunner(400, runner.original_context), ends=ENDS)
    job = steps.submit(request)
    while steps.step():
        pass
    return answer_of(job)


def check_schedule(seed: int) -> None:
    rng = random.Random(seed)
    steps = random_loop(rng)
    runner: Any = steps.runner
    jobs: dict[str, Any] = {}
    cancelled: set[str] = set()
    coming = [random_request(rng, f"r{i}") for i in range(rng.randrange(1, 10))]
    n_steps = 0
    while coming or steps.jobs:
        while coming and rng.random() < 0.4:
            request = coming.pop()
            jobs[request.id] = steps.submit(request)
        if jobs and rng.random() < 0.03:
            name = rng.choice(sorted(jobs))
            cancelled |= set() if jobs[name].finished.is_set() else {name}
            steps.cancel(name)
        steps.step()
        n_steps += 1
        assert n_steps < 5000, "it comes to an end"
    assert_nothing_leaks(steps)
    for name, job in jobs.items():
        if name not in cancelled:
            by = beams_alone(job.request, runner) if isinstance(job, BeamSearch) else alone(job.request, ENDS, runner)
            assert answer_of(job) == by, f"{name} is answered as if alone"


def check_schedules(seeds: range) -> None:
    for seed in seeds:
        check_schedule(seed)


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_random_schedules_answer_each_request_as_if_alone(start: int) -> None:
    check_schedules(range(start, start + 50))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 11000, 1000))
def test_ten_thousand_random_schedules(start: int) -> None:
    check_schedules(range(start, start + 1000))


def keys_without_chain(pool: Any, keys: list[bytes], tokens: list[int], salt: bytes) -> None:
    size = pool.block_size
    keys += [salt + bytes(tokens[n * size : (n + 1) * size]) for n in range(len(keys), len(tokens) // size)]


def without_salt(right: Any) -> Any:
    return lambda pool, keys, tokens, salt: right(pool, keys, tokens, b"")


def without_copies(right: Any) -> Any:
    return lambda pool, table, start, end: None if right(pool, table, start, end) is None else []


def all_kept(right: Any) -> Any:
    def take(job: Any, sequence: Any, chunk: Any, rows: Any) -> int:
        right(job, sequence, chunk, rows)
        return len(chunk.tokens)

    return take


def forgetting_to_close(right: Any) -> Any:
    return lambda pool, table: right(pool, table) if len(table.blocks) < 9 else table.blocks.clear()


def published_before_it_is_read(right: Any) -> Any:
    def read(scheduler: Any, sequence: Any, room: int, plan: Any) -> int:
        scheduler.pool.publish(sequence.table, sequence.keys, len(sequence.keys))
        return right(scheduler, sequence, room, plan)

    return read


CONTROLS: dict[str, tuple[type, str, Callable[[Any], Any]]] = {
    "blocks are known by their own tokens alone": (blocks.BlockPool, "extend_keys", lambda right: keys_without_chain),
    "neither adapter nor frequencies make a difference": (blocks.BlockPool, "extend_keys", without_salt),
    "shared blocks are written into": (blocks.BlockPool, "grow", without_copies),
    "blocks of long texts are not given back": (blocks.BlockPool, "close", forgetting_to_close),
    "wrong guesses stay in the cache": (Generation, "take", all_kept),
    "blocks are shared before they are written": (Scheduler, "_read", published_before_it_is_read),
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_protection_that_is_off_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, change = CONTROLS[name]
    monkeypatch.setattr(owner, method, change(getattr(owner, method)))
    with pytest.raises((AssertionError, IndexError)):
        check_schedules(range(300))


PROMPT = list(range(20))
ONE = ask("one", PROMPT, temperature=1.0, seed=7, max_tokens=40)


def together(steps: StepLoop, requests: list[Request]) -> dict[str, list[list[int]]]:
    jobs = [steps.submit(request) for request in requests]
    while steps.step():
        pass
    assert_nothing_leaks(steps)
    return {job.request.id: answer_of(job) for job in jobs}


def others(n: int, prompt: list[int] | None = None) -> list[Request]:
    rng = random.Random(1)
    prompts = [prompt or rng.choices(range(V), k=rng.randrange(1, 40)) for _ in range(n)]
    return [ask(f"other {i}", p, temperature=1.0, seed=i, max_tokens=30) for i, p in enumerate(prompts)]


@pytest.mark.parametrize(
    ("n_blocks", "settings", "company"),
    [
        (100, EngineSettings(), []),
        (400, EngineSettings(), others(15)),
        (24, EngineSettings(), others(15)),  # a tenth of what 16 texts need
        (400, EngineSettings(), others(15, PROMPT)),
        (400, EngineSettings(guess_tokens=5), others(15)),
        (400, EngineSettings(max_running=3, step_tokens=16), others(15)),
    ],
    ids=["alone", "in a batch", "after preemption", "with a shared prefix", "with guesses", "in turns"],
)
def test_the_same_tokens(n_blocks: int, settings: EngineSettings, company: list[Request]) -> None:
    steps = loop(TextRunner(n_blocks), settings)
    assert together(steps, [*company[:8], ONE, *company[8:]])["one"] == alone(ONE), "nothing else matters"
    if settings.guess_tokens:
        assert 0 < steps.stats.n_accepted < steps.stats.n_guessed, "some guesses were right, some wrong"
    if n_blocks == 24:
        assert steps.stats.n_preempted > 5, "the cache was too small"


def test_a_shared_prefix_is_read_once() -> None:
    requests = [ask(f"{i}", [*PROMPT, i], max_tokens=1) for i in range(16)]
    shared, apart = TextRunner(400), TextRunner(400)
    together(loop(shared), requests)
    together(loop(apart, EngineSettings(share_prefixes=False)), requests)
    assert shared.n_read == 21 + 15, "20 tokens once, and one of each"
    assert apart.n_read == 16 * 21, "the control reads all of them"


def test_texts_that_are_written_never_wait_for_a_long_prompt() -> None:
    steps = loop(TextRunner(400), EngineSettings(step_tokens=16))
    writing = steps.submit(ask("writing", [1, 2], max_tokens=50))
    steps.step()
    steps.submit(ask("long", [*range(20)] * 4, max_tokens=1))
    assert isinstance(writing, Generation), "it generates"
    for _ in range(8):
        before = len(writing.writers[0].tokens)
        steps.step()
        assert len(writing.writers[0].tokens) == before + 1, "a token in each step"


def test_first_come_first_served() -> None:
    steps = loop(TextRunner(400), EngineSettings(max_running=1))
    jobs = [steps.submit(ask(f"{i}", [i + 1], max_tokens=3)) for i in range(5)]
    finished: list[str] = []
    while steps.step():
        finished += [job.request.id for job in jobs if job.finished.is_set() and job.request.id not in finished]
    assert finished[:4] == ["0", "1", "2", "3"], "in the order in which they came"


def test_what_never_fits_fails_alone() -> None:
    steps = loop(TextRunner(6))
    too_long, grows, fits = (
        steps.submit(ask(name, range(n), max_tokens=most))
        for name, n, most in (("a", 24, 9), ("b", 10, 60), ("c", 5, 9))
    )
    while steps.step():
        pass
    fits_later = steps.submit(ask("d", range(24), max_tokens=1))
    while steps.step():
        pass
    for job in (too_long, grows):
        with pytest.raises(UserError, match="the engine's cache has room for 24"):
            raise job.error or AssertionError("it cannot have fitted")
    assert answer_of(fits) == alone(fits.request), "others go on"
    assert fits_later.error is None, "exactly full is full enough"
    assert_nothing_leaks(steps)


def test_cancelling_frees_blocks_at_once_and_leaves_others_alone() -> None:
    steps = loop(TextRunner(100))
    steps.submit(ONE)
    job = steps.submit(ask("gone", PROMPT[::-1], max_tokens=40))
    steps.step()
    held = steps.pool.n_free
    steps.cancel("gone")
    assert steps.pool.n_free == held + 5, "without another step"
    assert job.finished.is_set(), "who waits is told"
    steps.cancel("nobody")
    while steps.step():
        pass
    assert_nothing_leaks(steps)


class FailingRunner(TextRunner):
    """Cannot run what contains token 9, and has no numbers for what contains token 8."""

    def logits(self, chunks: Any) -> Any:
        if any(9 in chunk.tokens for chunk in chunks):
            raise RuntimeError("out of memory")
        rows = super().logits(chunks)
        rows[[8 in chunk.tokens for chunk in chunks]] = float("nan")
        return rows


def test_an_error_stays_with_its_request() -> None:
    steps = loop(FailingRunner(100))
    bad = [steps.submit(ask("run", [1, 9])), steps.submit(ask("nan", [8, 1])), steps.submit(ask("beams", [8], beams=2))]
    good = [steps.submit(ask(f"{i}", [i, 2], max_tokens=5, logit_bias={"8": -100, "9": -100})) for i in range(5)]
    while steps.step():
        pass
    assert "out of memory" in str(bad[0].error), "the runner's"
    assert "NaN" in str(bad[1].error), "the logits'"
    assert "NaN" in str(bad[2].error), "the beams'"
    assert [answer_of(job) for job in good] == [alone(job.request) for job in good], "the others never know"
    assert_nothing_leaks(steps)


def test_two_requests_of_one_name_and_unknown_ids_are_refused() -> None:
    steps = loop(TextRunner(100))
    steps.submit(ONE)
    for request, sentence in (
        (ONE, "under way already"),
        (ask("a", [V]), "not in 0 … 23"),
        (ask("b", [1], stop_ids=(99,)), "stop_ids: id 99"),
        (ask("c", [1], logit_bias={"99": 1}), "logit_bias: id 99"),
        (ask("d", [1], "c"), "there is no adapter 'c'"),
        (ask("e", []), "no tokens"),
        (ask("f", [1] * 97), "97 tokens"),
        (Request("g", (1, 2), SamplingParams(stop=("a",))), "need a tokenizer"),
        (Request("h", (1, 2), want="score", n_context=2), "no token to score"),
    ):
        with pytest.raises(UserError, match=sentence):
            steps.submit(request)
