"""What every engine service promises, wherever it is: in this process, behind a wire, a child, or several as one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from serving.parts.conftest import QUICK, Loop, all_events, call, standing_engine, until

from bimo import LM
from bimo.engine import EngineSettings
from bimo.serving.balancing import BalancedEngines
from bimo.serving.child import ChildPlan
from bimo.serving.contract import (
    ApplyCall,
    AttentionCall,
    EmbedCall,
    EngineService,
    Failed,
    Finished,
    GenerateCall,
    Piece,
    ServiceError,
    Started,
)
from bimo.serving.local import LocalEngine
from bimo.serving.models import ServedModel
from bimo.serving.remote import engine_at
from bimo.serving.supervising import SupervisedEngine


@contextlib.asynccontextmanager
async def _opened(kind: str, small: LM, plan: ChildPlan) -> AsyncIterator[EngineService]:
    if kind == "local":
        engine: Any = LocalEngine([ServedModel("tiny", small, EngineSettings(threads=1))])
        yield engine
        await engine.close()
    elif kind == "remote":
        async with standing_engine(small) as (address, _, _):
            yield (engine := engine_at(address, QUICK))
            await engine.close()
    elif kind == "child":
        engine = SupervisedEngine(plan)
        await engine.start()
        yield engine
        await engine.close()
    else:
        async with standing_engine(small) as (one, _, _), standing_engine(small) as (two, _, _):
            yield (engine := BalancedEngines({a.url: engine_at(a, QUICK) for a in (one, two)}, QUICK))
            await engine.close()


@pytest.fixture(scope="module", params=["local", "remote", "child", "two"])
def engine(request: pytest.FixtureRequest, loop: Loop, small: LM, plan: ChildPlan) -> Iterator[EngineService]:
    opened = _opened(request.param, small, plan)
    yield loop.run(opened.__aenter__())
    loop.run(opened.__aexit__(None, None, None))


def test_it_says_which_models_there_are(engine: EngineService, loop: Loop, small: LM) -> None:
    (card,) = loop.run(engine.models())
    assert (card.name, card.vocab_size, card.context_length) == ("tiny", small.model.spec.vocab_size, 256)


def test_an_answer_is_what_the_model_generates(engine: EngineService, loop: Loop, small: LM) -> None:
    events = loop.run(all_events(engine.generate(call())))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert all(isinstance(event, Piece) for event in events[1:-1])
    text = "".join(event.text for event in events[1:-1])
    assert text == small.generate("the cat sat", max_tokens=8, temperature=0.0, min_tokens=8)
    assert events[-1].completion_tokens == 8
    assert events[0].prompt_tokens == events[-1].prompt_tokens


def test_a_seeded_answer_with_logprobs_is_the_same_everywhere(
    engine: EngineService, loop: Loop, small: LM, local: LocalEngine
) -> None:
    own = call("一只 猫 🙂", temperature=1.0, seed=7, logprobs=2)
    own = GenerateCall(own.id, own.model, own.prompt, (), own.params, report_logprobs=True)
    here, there = (loop.run(all_events(service.generate(own))) for service in (local, engine))
    infos = [[info for e in events if isinstance(e, Piece) for info in e.logprobs] for events in (here, there)]
    assert [i.token for i in infos[0]] == [i.token for i in infos[1]]
    assert [len(i.top) for i in infos[1]] == [2] * 8
    assert [i.logprob for i in infos[1]] == pytest.approx([i.logprob for i in infos[0]], abs=1e-5)


@pytest.fixture(scope="module")
def local(loop: Loop, small: LM) -> Iterator[LocalEngine]:
    engine = LocalEngine([ServedModel("tiny", small, EngineSettings(threads=1))])
    yield engine
    loop.run(engine.close())


def test_many_at_once_get_each_their_own(engine: EngineService, loop: Loop, small: LM) -> None:
    prompts = [f"the cat {word} on" for word in ("sat", "saw", "一只", "Hund") * 5]

    async def together() -> list[str]:
        found = await asyncio.gather(*(all_events(engine.generate(call(prompt))) for prompt in prompts))
        return ["".join(e.text for e in events if isinstance(e, Piece)) for events in found]

    assert loop.run(together()) == [
        small.generate(prompt, max_tokens=8, temperature=0.0, min_tokens=8) for prompt in prompts
    ]


def test_an_unknown_model_is_not_found(engine: EngineService, loop: Loop) -> None:
    (failed,) = loop.run(all_events(engine.generate(call(model="tinny"))))
    assert isinstance(failed, Failed)
    assert failed.kind == "not_found"
    assert "tiny" in failed.what


def test_wrong_parameters_are_the_callers_fault(engine: EngineService, loop: Loop) -> None:
    (failed,) = loop.run(all_events(engine.generate(call(temperature=-1.0))))
    assert isinstance(failed, Failed)
    assert failed.kind == "invalid"
    assert "temperature" in failed.what


LONG = {"max_tokens": 240, "min_tokens": 240, "n": 8}


async def written(engine: EngineService) -> int:
    """Tokens chosen so far."""
    return sum(e.n_tokens for e in (await engine.stats()).engines)


async def given_up(engine: EngineService, before: int) -> int:
    """Wait until something was written since and nothing is under way; returns how much. Counts may come late."""

    async def settled() -> bool:
        idle = all(e.running + e.waiting == 0 for e in (await engine.stats()).engines)
        return idle and await written(engine) > before

    await until(settled, 10)
    return await written(engine) - before


def test_whoever_leaves_frees_the_place(engine: EngineService, loop: Loop) -> None:
    async def leave() -> int:
        before, events = await written(engine), engine.generate(call(**LONG))
        async for event in events:
            if isinstance(event, Piece):
                break
        await events.aclose()
        return await given_up(engine, before)

    assert loop.run(leave()) < 240 * 8, "it did not come to its own end"


def test_whoever_is_cancelled_frees_the_place(engine: EngineService, loop: Loop) -> None:
    async def cancel() -> int:
        before, begun = await written(engine), asyncio.Event()

        async def read() -> None:
            async for event in engine.generate(call(**LONG)):
                if isinstance(event, Piece):
                    begun.set()

        task = asyncio.create_task(read())
        await asyncio.wait_for(begun.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return await given_up(engine, before)

    assert loop.run(cancel()) < 240 * 8, "it did not come to its own end"


def test_texts_become_vectors(engine: EngineService, loop: Loop, local: LocalEngine) -> None:
    own = EmbedCall("e", "tiny", ("the cat", "一只 猫"))
    here, there = (loop.run(service.embed(own)) for service in (local, engine))
    assert there.prompt_tokens == here.prompt_tokens > 0
    for one, other in zip(here.vectors, there.vectors, strict=True):
        assert other == pytest.approx(one, abs=1e-5)


def test_attention_can_be_looked_at(engine: EngineService, loop: Loop) -> None:
    found = loop.run(engine.attention(AttentionCall("a", "tiny", "the cat sat", 1, 2)))
    assert len(found.weights) == len(found.tokens) > 1
    assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in found.weights)


def test_an_application_that_the_model_does_not_know_is_refused(engine: EngineService, loop: Loop) -> None:
    with pytest.raises(ServiceError) as refused:
        loop.run(engine.apply(ApplyCall("t", "tiny", "translate", ("the cat",), target="xx-unknown")))
    assert refused.value.kind in ("invalid", "not_found")


def test_it_is_ready_and_says_what_it_does(engine: EngineService, loop: Loop) -> None:
    stats = loop.run(engine.stats())
    assert stats.ready
    assert [e.model for e in stats.engines] == ["tiny"]
    assert stats.engines[0].n_blocks > 0
