"""Adapters come and go while requests run: none is lost, none is mixed up with another of its name."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from model.test_lora import adapter_of

from bimo import GPT, ModelSpec, UserError
from bimo.engine import Engine, EngineSettings, SamplingParams
from bimo.engine.adapters import AdapterShelf
from bimo.engine.jobs import Job
from bimo.model.lora import Adapter, LowRank, merge

SPEC = ModelSpec(vocab_size=61, context_length=128, n_layers=2, d_model=24, n_heads=4, n_kv_heads=2, head_dim=8)
GREEDY = SamplingParams(max_tokens=24, temperature=0)
PROMPT = list(range(1, 40))  # two full blocks of the cache, which texts share
BACKENDS = ("native", "torch")


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(SPEC).eval()


def engine_of(model: GPT, backend: str, *adapters: Adapter) -> Engine:
    return Engine(model, settings=EngineSettings(backend=backend, threads=1), adapters=adapters)


def written(engine: Engine, adapter: str = "", params: SamplingParams = GREEDY) -> tuple[int, ...]:
    return engine.generate([PROMPT], params, adapter=adapter)[0].tokens


def merged(model: GPT, adapter: Adapter) -> tuple[int, ...]:
    """What a model says that has the adapter in its weights."""
    return written(engine_of(merge(copy.deepcopy(model), adapter), "torch"))


@contextmanager
def stepping(engine: Engine) -> Iterator[None]:
    """Steps are done in a thread of their own."""
    stop = threading.Event()

    def step() -> None:
        while not stop.is_set():
            if not engine.step():
                time.sleep(0.001)

    thread = threading.Thread(target=step)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_that_comes_later_equals_the_merged_model(model: GPT, backend: str) -> None:
    engine = engine_of(model, backend, adapter_of(model, "first", 2, seed=1))
    before, late = written(engine), adapter_of(model, "late", 3, seed=2)
    with pytest.raises(UserError, match="there is no adapter 'late'"):
        written(engine, "late")
    engine.add_adapter(late)
    assert written(engine, "late") == merged(model, late)
    assert written(engine, "first") == merged(model, adapter_of(model, "first", 2, seed=1))
    assert written(engine) == before != written(engine, "late"), "the model alone stays what it was"


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_adapter_that_was_removed_is_refused_and_others_stay(model: GPT, backend: str) -> None:
    one, two = (adapter_of(model, name, 2, seed=seed) for seed, name in enumerate(("one", "two"), start=1))
    engine = engine_of(model, backend, one, two)
    engine.remove_adapter("one")
    with pytest.raises(UserError, match=r"there is no adapter 'one'.*has: two"):
        written(engine, "one")
    assert written(engine, "two") == merged(model, two)
    with pytest.raises(UserError, match="there is no adapter 'one'"):
        engine.remove_adapter("one")


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_adapter_of_the_same_name_finds_nothing_of_the_old_one(
    model: GPT, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (adapter_of(model, "same", 3, seed=seed) for seed in (1, 2))
    engine = engine_of(model, backend, old)
    assert written(engine, "same") == merged(model, old)
    engine.remove_adapter("same")
    engine.add_adapter(new)
    assert written(engine, "same") == merged(model, new) != merged(model, old)
    monkeypatch.setattr(AdapterShelf, "new_number", lambda shelf: 1)  # the control: numbers that are used again
    careless = engine_of(model, backend, old)
    written(careless, "same")
    careless.remove_adapter("same")
    careless.add_adapter(new)
    assert written(careless, "same") != merged(model, new), "blocks of the old adapter were taken for the new one's"


@pytest.mark.parametrize("backend", BACKENDS)
def test_requests_under_way_are_finished_with_the_adapter_that_they_began_with(model: GPT, backend: str) -> None:
    old, new = (adapter_of(model, "same", 3, seed=seed) for seed in (1, 2))
    engine = engine_of(model, backend, old)
    early = engine.submit(engine.request(PROMPT, GREEDY, adapter="same"))
    for _ in range(4):
        engine.step()
    engine.add_adapter(new, replace=True)
    late = engine.submit(engine.request(PROMPT, GREEDY, adapter="same"))
    while engine.step():
        pass
    assert early.result.tokens == merged(model, old)
    assert late.result.tokens == merged(model, new)
    engine.step()
    assert len(held(engine)) == 1, "the old one's memory is free again"


def test_an_adapter_that_is_removed_while_a_request_uses_it_stays_until_then(model: GPT) -> None:
    engine = engine_of(model, "torch", adapter_of(model, "one", 2, seed=1))
    job = engine.submit(engine.request(PROMPT, GREEDY, adapter="one"))
    engine.step()
    engine.remove_adapter("one")
    assert len(held(engine)) == 1, "the control: it is in use"
    engine.cancel(job.request.id)
    assert not held(engine), "it goes with the last request"


def held(engine: Engine) -> dict[int, Adapter]:
    """What the torch or the native runner keeps."""
    runner = engine.runner
    kept = runner.adapters._adapters if hasattr(runner, "adapters") else runner.native._laid_out_adapters
    return dict(kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_request_is_lost_or_mixed_up_while_adapters_come_and_go(model: GPT, backend: str) -> None:
    """Two threads ask, one swaps an adapter for another of its name, one adds and removes a third."""
    kinds = [adapter_of(model, "same", 2 + seed, seed=seed) for seed in (1, 2)]
    guest = adapter_of(model, "guest", 2, seed=5)
    allowed = {"same": {merged(model, kind) for kind in kinds}, "guest": {merged(model, guest)}, "": {()}}
    engine = engine_of(model, backend, kinds[0])
    allowed[""] = {written(engine)}
    assert len(set.union(*allowed.values())) == 4, "all of them say something else"
    stop, wrong, answered = threading.Event(), list[str](), dict.fromkeys(allowed, 0)

    def ask(names: list[str]) -> None:
        for number in range(10**9):
            if stop.is_set():
                return
            name = names[number % len(names)]
            try:
                job: Job = engine.submit(engine.request(PROMPT, GREEDY, adapter=name))
            except UserError as error:
                if name != "guest" or "there is no adapter 'guest'" not in str(error):
                    wrong.append(str(error))
                continue
            job.finished.wait(60)
            if job.error or job.result.tokens not in allowed[name]:
                wrong.append(f"{name}: {job.error or job.result.tokens}")
            answered[name] += 1

    def rounds() -> Iterator[int]:
        end = time.monotonic() + 100
        for number in range(10**6):
            if (number >= 25 and answered["same"] >= 8) or time.monotonic() > end:
                return
            yield number

    def swap() -> None:
        for number in rounds():
            engine.add_adapter(kinds[number % 2], replace=True)

    def come_and_go() -> None:
        for _ in rounds():
            engine.add_adapter(guest)
            engine.remove_adapter("guest")

    with stepping(engine):
        askers = run(lambda: ask(["same", ""]), lambda: ask(["guest", "same"]))
        for thread in run(swap, come_and_go):
            thread.join(120)
        stop.set()
        for thread in askers:
            thread.join(60)
    assert not wrong, wrong[:3]
    assert answered["same"] >= 8, "requests were answered meanwhile"
    engine.step()
    assert len(held(engine)) == 1, "what was removed is gone"


def run(*works: Callable[[], None]) -> list[threading.Thread]:
    """Threads that are at work."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    return threads


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_does_not_fit_is_refused_and_changes_nothing(model: GPT, backend: str) -> None:
    engine = engine_of(model, backend, adapter_of(model, "one", 2, seed=1))
    wrong = LowRank(torch.zeros(2, 20), torch.zeros(32, 2), 1.0)
    with pytest.raises(UserError, match=r"wants \(2, 24\)"):
        engine.add_adapter(Adapter("wide", {"layers.0.self_attn.q_proj": wrong}))
    with pytest.raises(UserError, match="no linear layer"):
        engine.add_adapter(Adapter("deep", {"layers.7.self_attn.q_proj": wrong}))
    with pytest.raises(UserError, match="there is an adapter 'one' already"):
        engine.add_adapter(adapter_of(model, "one", 2, seed=2))
    with pytest.raises(UserError, match="the adapter has no name"):
        engine.add_adapter(adapter_of(model, "", 2, seed=2))
    assert len(held(engine)) == 1
    assert written(engine, "one") == merged(model, adapter_of(model, "one", 2, seed=1))


def test_the_head_is_changed_in_torch_and_refused_natively() -> None:
    torch.manual_seed(0)
    model = GPT(ModelSpec.from_dict({**SPEC.to_dict(), "tied_embeddings": False})).eval()
    head = adapter_of(model, "head", 2, seed=1)
    assert "lm_head" in head.parts
    engine = engine_of(model, "torch")
    engine.add_adapter(head)
    assert written(engine, "head") == merged(model, head)
    with pytest.raises(UserError, match="an adapter changes lm_head"):
        engine_of(model, "native").add_adapter(head)


def test_a_failing_change_is_told_to_who_asked_and_the_engine_goes_on(model: GPT) -> None:
    engine = engine_of(model, "torch")

    def full(*_: object) -> None:
        raise MemoryError("no room")

    engine.runner.change_adapters = full  # type: ignore[method-assign]
    with stepping(engine), pytest.raises(MemoryError, match="no room"):
        engine.add_adapter(adapter_of(model, "one", 2, seed=1))
    assert not engine.intake.adapters.numbers
    assert written(engine)


def test_numbers_are_never_used_again() -> None:
    shelf = AdapterShelf(["a"])
    first = shelf.new_number()
    shelf.put("a", first)
    assert shelf.take_idle({1}) == set(), "1 is in use"
    assert shelf.take_idle({first}) == {1}
    shelf.retire("a")
    assert not shelf.is_current(first)
    assert shelf.take_idle(()) == {first}
    assert shelf.new_number() == first + 1


def test_vectors_and_scores_follow_an_adapter_that_came_later(model: GPT) -> None:
    engine, late = engine_of(model, "native"), adapter_of(model, "late", 3, seed=2)
    engine.add_adapter(late)
    alone = engine_of(merge(copy.deepcopy(model), late), "native")
    assert np.allclose(engine.embed([PROMPT], adapter="late"), alone.embed([PROMPT]), atol=1e-4)
