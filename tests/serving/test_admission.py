"""Places, the queue and deadlines; policy by a clock of our own, the rest against a real server."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving.echo import Echo
from serving.servers import Serve
from serving.test_streams import busy, said

from bimo import LM
from bimo.serving.admission import Admission
from bimo.serving.errors import ApiError
from bimo.serving.keys import ANYBODY, Key
from bimo.serving.settings import ServeSettings

ANNA, BERT = Key("anna", "a"), Key("bert", "b")


class Clock:
    """Time that stands until it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(clock: Clock | None = None, **settings: float) -> Admission:
    return Admission(ServeSettings.from_dict(settings), clock or Clock())


async def hold(own: Admission, key: Key, log: list[str], release: asyncio.Event, size: int = 3) -> None:
    async with own.place(key, size, 1):
        log.append(key.name)
        await release.wait()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_places_go_round_the_keys() -> None:
    async def run() -> list[str]:
        own, log, first, rest = admission(max_parallel=1), list[str](), asyncio.Event(), asyncio.Event()
        rest.set()
        tasks = [asyncio.create_task(hold(own, ANYBODY, log, first))]
        await settle()
        tasks += [asyncio.create_task(hold(own, key, log, rest)) for key in [ANNA] * 4 + [BERT] * 2]
        await settle()
        first.set()
        await asyncio.gather(*tasks)
        assert (own.running, own.waiting) == (0, 0)
        return log

    assert asyncio.run(run()) == ["", "anna", "bert", "anna", "bert", "anna", "anna"]


def test_the_queue_is_bounded_in_requests_and_in_tokens() -> None:
    async def run(sizes: list[int], **settings: float) -> int:
        own, release = admission(max_parallel=1, **settings), asyncio.Event()
        tasks = [asyncio.create_task(hold(own, ANNA, [], release, size)) for size in sizes]
        await settle()
        release.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [error for error in found if isinstance(error, ApiError)]
        assert all(error.status == 429 and error.retry_after_s >= 1 for error in refused)
        return len(refused)

    assert asyncio.run(run([3] * 10, queue_requests=4)) == 5, "one runs, four wait"
    assert asyncio.run(run([3] * 10, queue_requests=100)) == 0, "the control"
    assert asyncio.run(run([300] * 10, queue_requests=100, queue_tokens=500)) == 4, "one runs, five of 100 tokens wait"


def test_whoever_waits_too_long_or_leaves_gives_its_turn_away() -> None:
    async def run() -> None:
        own, release, log = admission(max_parallel=1, queue_s=0.05), asyncio.Event(), list[str]()
        first = asyncio.create_task(hold(own, ANYBODY, log, release))
        await settle()
        late, gone = (asyncio.create_task(hold(own, key, log, release)) for key in (ANNA, BERT))
        await settle()
        gone.cancel()
        await settle()
        assert own.waiting == 1
        with pytest.raises(ApiError, match="no place became free"):
            await late
        release.set()
        await first
        assert (own.running, own.waiting, log) == (0, 0, [""])

    asyncio.run(run())


def test_a_minute_brings_a_key_what_it_may_use() -> None:
    async def run() -> None:
        clock = Clock()
        own = admission(clock, key_requests_per_minute=2, key_tokens_per_minute=100)
        own.knock(ANNA)
        own.knock(ANNA)
        with pytest.raises(ApiError) as caught:
            own.knock(ANNA)
        assert caught.value.retry_after_s == pytest.approx(30)
        own.knock(BERT)
        clock.now += 30
        own.knock(ANNA)
        async with own.place(ANNA, 30, 60) as place:
            place.used = 90
        with pytest.raises(ApiError, match="tokens"):
            async with own.place(ANNA, 30, 60):
                pass
        clock.now += 36
        async with own.place(ANNA, 30, 60) as place:
            place.used = 10
        async with own.place(ANNA, 30, 50):
            pass

    asyncio.run(run())


def test_a_full_server_says_so_within_fifty_milliseconds(serve: Serve, small: LM) -> None:
    running = serve([Echo(small, lambda chunks: time.sleep(0.02))], max_parallel=2, queue_requests=2)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(running.post, "/v1/chat/completions", said("the cat sat " * 4)) for _ in range(4)]
        running.until(lambda: running.gateway.admission.waiting == 2)
        times = []
        for _ in range(10):
            began = time.perf_counter()
            refused = running.post("/v1/chat/completions", said("more"))
            times.append(time.perf_counter() - began)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
        assert sorted(times)[5] < 0.05
        assert running.get("/health").status_code == 200, "it can still be looked at"
        assert [answer.result().status_code for answer in answers] == [200] * 4


def test_keys_have_so_many_requests_at_once(serve: Serve, small: LM) -> None:
    running = serve([Echo(small, lambda chunks: time.sleep(0.02))], key_parallel=1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(running.post, "/v1/chat/completions", said("the cat sat on the mat"))
        running.until(lambda: running.gateway.admission.running == 1)
        assert running.post("/v1/chat/completions", said("more")).status_code == 429
        assert first.result().status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_no_first_token_in_time_is_504(serve: Serve, small: LM, stream: bool) -> None:
    stuck = threading.Event()
    running = serve([Echo(small, lambda chunks: stuck.wait(5) and None)], first_token_s=0.3)
    found = running.post("/v1/chat/completions", said("the cat", stream=stream))
    assert found.status_code == 504
    assert found.json()["error"]["code"] == "timeout"
    stuck.set()
    running.until(lambda: busy(running) == 0)
    assert running.post("/v1/chat/completions", said("the cat")).status_code == 200


def test_an_answer_that_takes_too_long_ends_with_an_error_in_its_stream(serve: Serve, small: LM) -> None:
    running = serve([Echo(small, lambda chunks: time.sleep(0.05))], answer_s=0.5)
    long = "the cat sat on a mat " * 8
    found = running.post("/v1/chat/completions", said(long, stream=True))
    assert found.status_code == 200
    assert '"code": "timeout"' in found.text.strip().splitlines()[-1]
    assert "[DONE]" not in found.text
    assert running.post("/v1/chat/completions", said(long)).status_code == 504
    running.until(lambda: busy(running) == 0, 3)
