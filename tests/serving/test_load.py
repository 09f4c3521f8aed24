"""Many at once: every answer is whole or a 429, and says what the idle server says."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest
from serving.servers import WORDS, Running, Serve
from serving.test_streams import busy, said, streamed

from bimo import LM
from bimo.engine import EngineSettings
from bimo.serving.models import ServedModel


def crowd(running: Running, count: int) -> dict[int, int]:
    """So many streams at once; how often each status came."""
    rng = random.Random(2)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(20)]
    asks = [said(text, max_tokens=24) for text in texts]
    idle = [running.post("/v1/chat/completions", ask).json()["choices"][0]["message"]["content"] for ask in asks]

    async def all_at_once() -> list[tuple[int, str, bool]]:
        limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=running.url, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(streamed(client, asks[n % 20]) for n in range(count)))

    found = asyncio.run(all_at_once())
    statuses: dict[int, int] = {}
    for number, (status, text, done) in enumerate(found):
        statuses[status] = statuses.get(status, 0) + 1
        if status == 200:
            assert done, "a stream was cut off"
            assert text == idle[number % 20], "under load it says something else"
    running.until(lambda: busy(running) == 0)
    return statuses


def test_a_hundred_streams_at_once_are_whole_or_refused(serve: Serve, small: LM) -> None:
    running = serve([ServedModel("tiny", small, EngineSettings(threads=1))], max_parallel=16, queue_requests=32)
    statuses = crowd(running, 150)
    assert statuses.keys() <= {200, 429}
    assert statuses[200] >= 48


@pytest.mark.slow
def test_a_thousand_streams_at_once_are_whole_or_refused(serve: Serve, small: LM) -> None:
    running = serve([ServedModel("tiny", small, EngineSettings(threads=1))])
    statuses = crowd(running, 1000)
    assert statuses.keys() <= {200, 429}
    assert statuses[200] >= 300


@pytest.mark.slow
def test_a_thousand_streams_with_a_queue_for_all_are_all_answered(serve: Serve, small: LM) -> None:
    running = serve([ServedModel("tiny", small, EngineSettings(threads=1))], queue_requests=2000, queue_s=120.0)
    assert crowd(running, 1000) == {200: 1000}
