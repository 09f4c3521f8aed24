"""Streams: not a byte is lost, added or split, in whatever script; readers that are slow or leave harm nobody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time

import httpx
import pytest
from serving.echo import Echo
from serving.servers import Running, Serve

from bimo import LM

_RANGES = (
    *((0x20, 0x7E), (0xA1, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A), (0x905, 0x939)),
    *((0xE01, 0xE3A), (0x1100, 0x1112), (0x3041, 0x3096), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1F5FF)),
    *((0x1F600, 0x1F64F), (0x20000, 0x2A6DF), (0x12000, 0x12399), (0x10330, 0x1034A)),
)
_WHOLE = (
    "👩‍👩‍👧",
    "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "🇩🇪",
    "❤️",
    "e\u0301",
    "नमस्ते",
    "ক্ষ",
    "👍🏽",
    "\r\n",
    "\n",
    "\t",
    '"',
    "\\",
    "\u2028",
    "</script>",
)


def any_text(rng: random.Random) -> str:
    """A short text out of many scripts."""
    parts = []
    for _ in range(rng.randint(1, 8)):
        if rng.random() < 0.4:
            parts.append(rng.choice(_WHOLE))
        else:
            low, high = rng.choice(_RANGES)
            parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4))))
    return "".join(parts) or "x"


async def streamed(client: httpx.AsyncClient, content: dict) -> tuple[int, str, bool]:
    """Status, text and whether a stream came to its proper end."""
    parts, done = [], False
    async with client.stream("POST", "/v1/chat/completions", json={**content, "stream": True}) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return answer.status_code, "", False
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                parts += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
    return answer.status_code, "".join(parts), done


def said(text: str, **more: object) -> dict:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 400, "temperature": 0, **more}


async def repeated(url: str, texts: list[str], at_once: int) -> list[tuple[int, str, bool]]:
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        turn = asyncio.Semaphore(at_once)

        async def one(text: str) -> tuple[int, str, bool]:
            async with turn:
                return await streamed(client, said(text))

        return await asyncio.gather(*map(one, texts))


def assert_exact(running: Running, n_texts: int) -> None:
    rng = random.Random(1)
    texts = [any_text(rng) for _ in range(n_texts)]
    found = asyncio.run(repeated(running.url, texts, at_once=32))
    assert {status for status, _, _ in found} == {200}
    assert all(done for _, _, done in found)
    wrong = [(text, answer) for text, (_, answer, _) in zip(texts, found, strict=True) if text != answer]
    assert wrong == [], f"{len(wrong)} of {n_texts} streams differ"


def test_streams_in_many_scripts_are_exact_to_the_byte(serve: Serve, small: LM) -> None:
    assert_exact(serve([Echo(small)]), 250)


@pytest.mark.slow
def test_five_thousand_streams_in_many_scripts_are_exact_to_the_byte(serve: Serve, small: LM) -> None:
    assert_exact(serve([Echo(small)]), 5000)


def test_no_piece_of_a_stream_ends_inside_a_character(serve: Serve, small: LM) -> None:
    running = serve([Echo(small, lambda chunks: time.sleep(0.003))])
    text = "👩‍👩‍👧🇩🇪नमस्ते e\u0301 🏴󠁧󠁢󠁥󠁮󠁧󠁿!"
    pieces = []
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=said(text, stream=True)) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                pieces += [c["delta"].get("content", "") for c in json.loads(line[6:])["choices"]]
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 3, "it comes in pieces"
    import regex

    clusters = regex.findall(r"\X", text)
    places = {sum(map(len, clusters[:n])) for n in range(len(clusters) + 1)}
    ends = {sum(map(len, pieces[:n])) for n in range(len(pieces) + 1)}
    assert ends <= places, "a piece ends inside a character as people see it"


def raw(content: dict) -> bytes:
    """A request as it goes over the wire."""
    payload = json.dumps(content).encode()
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    return b"POST /v1/chat/completions HTTP/1.1\r\n" + head.encode() + payload


def busy(running: Running) -> int:
    """Requests and texts under way."""
    stats = running.engine._models[0].driver.engine.stats
    return running.gateway.admission.running + running.gateway.admission.waiting + stats.running + stats.waiting


def leave(running: Running, count: int) -> float:
    """Open streams, cut each off in the middle; returns the seconds until all places are free."""
    request = raw({**said("the cat"), "stream": True, "max_tokens": 4000, "min_tokens": 4000})
    sockets = []
    for _ in range(count):
        own = socket.create_connection(("127.0.0.1", running.port))
        own.sendall(request)
        sockets.append(own)
    running.until(lambda: busy(running) >= min(count, 2), 20)
    for own in sockets[: count // 2]:
        own.recv(10)
    for own in sockets:
        own.close()
    return running.until(lambda: busy(running) == 0, 20)


def never_ending(small: LM) -> Echo:
    """A model that takes its time."""
    return Echo(small, lambda chunks: time.sleep(0.005), max_running=32)


def test_places_of_clients_that_leave_are_free_within_two_seconds(serve: Serve, small: LM) -> None:
    running = serve([never_ending(small)], max_parallel=32, queue_requests=1000)
    assert leave(running, 60) < 2.0
    blocks = running.engine._models[0].driver.engine.stats
    assert blocks.free_blocks == blocks.n_blocks, "no block is lost"
    assert httpx.get(f"{running.url}/v1/stats").json()["requests"] == 1, "only this one"


@pytest.mark.slow
def test_five_hundred_clients_leave(serve: Serve, small: LM) -> None:
    running = serve([never_ending(small)], max_parallel=32, queue_requests=1000)
    assert leave(running, 500) < 2.0


def test_without_the_watch_for_leavers_places_stay_taken(
    serve: Serve, small: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(receive: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr("bimo.serving.answering._left", never)
    running = serve([never_ending(small)], max_parallel=32, queue_requests=1000)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{running.url}/v1/chat/completions", json=said("the cat " * 25), timeout=0.1)
    time.sleep(0.1)
    assert busy(running) > 0, "the control: nobody has seen that the client left"


def test_a_reader_that_takes_nothing_is_cut_off_and_holds_nobody_up(serve: Serve, small: LM) -> None:
    running = serve([Echo(small)], write_s=1.0, max_parallel=8)
    request = raw({**said("x" * 220), "stream": True, "n": 11, "logprobs": True, "top_logprobs": 20})
    readers = []
    for _ in range(3):
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        own.connect(("127.0.0.1", running.port))
        own.sendall(request)
        readers.append(own)
    time.sleep(0.2)
    assert running.post("/v1/chat/completions", said("hello")).json()["choices"][0]["message"]["content"] == "hello"
    running.until(lambda: busy(running) == 0, 15)
    for own in readers:
        own.settimeout(5)
        assert b"[DONE]" not in rest_of(own), "the stream came to an end, although nobody read it in time"
        own.close()


def rest_of(own: socket.socket) -> bytes:
    """All that still comes."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while parts[-1:] != [b""]:
            parts.append(own.recv(65536))
    return b"".join(parts)


def test_with_more_patience_a_reader_that_takes_nothing_keeps_its_place(serve: Serve, small: LM) -> None:
    running = serve([Echo(small)], write_s=60.0, drain_s=0.0)
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    own.connect(("127.0.0.1", running.port))
    own.sendall(raw({**said("x" * 220), "stream": True, "n": 11, "logprobs": True, "top_logprobs": 20}))
    time.sleep(2.5)
    assert running.gateway.admission.running == 1, "the control: it is the time limit that cuts off"
    own.close()
