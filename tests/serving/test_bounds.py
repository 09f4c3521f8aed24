"""Bodies, headers and clients of the worst kind: an answer below 500, no growth, and no neighbour notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import statistics
import time
from typing import Any

import httpx
import pytest
from serving.servers import Running, Serve

from bimo import LM
from bimo.serving.bounds import Budget, parsed
from bimo.serving.errors import ApiError
from bimo.serving.settings import ServeSettings

GOOD = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 2, "temperature": 0}
SETTINGS = ServeSettings()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"text"',
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": -1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1, "a": 2}',
        b'{"a": 1, "\\u0061": 1}',
        b'{"a": "\\ud800"}',
        b'{"a": "\\udc00\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-16-le"),
        '{"a": 1}'.encode("utf-32"),
        b"\xef\xbb\xbf{}",
        b'{"a": ' + b"[" * 33 + b"]" * 33 + b"}",
        b"[" * 1_000_000,
        b'{"a": [' + b"[]," * 250_000 + b"[]]}",
        b"{" + b",".join(b'"%d": 1' % n for n in range(3000)) + b"}",
        b'{"a": "\x00"}',
        b'{"a": 1} {"b": 2}',
        b"{'a': 1}",
        b'{"a": 01}',
        b"nul",
    ],
)
def test_bodies_that_are_not_one_plain_object_are_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(body, SETTINGS)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["}',
        b'{"a": "\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["}',
        b'{"a": "\\ud83d\\ude42 \\\\ud800"}',
        b'{"a": ' + b"[" * 31 + b"]" * 31 + b"}",
        '{"a": "🙂 \u2028"}'.encode(),
        b'{"a": 1e300, "b": -0.0}',
    ],
)
def test_the_control_is_let_in(body: bytes) -> None:
    assert parsed(body, SETTINGS) == json.loads(body)


def test_the_bytes_of_all_bodies_together_are_bounded() -> None:
    budget = Budget(100)
    budget.take(60)
    with pytest.raises(ApiError) as caught:
        budget.take(60)
    assert caught.value.status == 429
    assert budget.held == 60


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json; charset=utf-16"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "Application/JSON; Charset=UTF-8"}, 200),
        ({"content-type": "application/json", "host": "evil.example"}, 403),
        ({"content-type": "application/json", "x-long": "x" * 17000}, 431),
        ({"content-type": "application/json", **{f"x-{n}": "1" for n in range(120)}}, 431),
    ],
)
def test_headers_are_looked_at_first(server: Running, headers: dict[str, str], status: int) -> None:
    found = httpx.post(f"{server.url}/v1/chat/completions", content=json.dumps(GOOD), headers=headers)
    assert found.status_code == status, found.text
    assert (found.json()["error"]["message"] != "") if status != 200 else True


def test_what_is_too_large_is_refused_before_it_is_read(serve: Serve) -> None:
    running = serve(max_body_bytes=1000)
    huge = b"x" * 2**26
    before = memory_mb()
    with contextlib.suppress(httpx.WriteError, httpx.ReadError):
        assert httpx.post(f"{running.url}/v1/completions", content=huge, headers=JSON).status_code == 413

    def chunks() -> Any:
        for _ in range(200):
            yield b" " * 1000

    with contextlib.suppress(httpx.WriteError, httpx.ReadError):
        assert httpx.post(f"{running.url}/v1/completions", content=chunks(), headers=JSON).status_code == 413
    assert memory_mb() - before < 100, "64 MB are not kept"
    assert running.post("/v1/chat/completions", GOOD).status_code == 200


JSON = {"content-type": "application/json"}


def memory_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


def any_value(rng: random.Random, depth: int = 0) -> Any:
    """Something out of JSON, mostly wrong."""
    kind = rng.randrange(12 if depth < 4 else 9)
    simple = (
        *(None, True, False, 0, -1, 10**30, rng.randint(-(10**6), 10**6), rng.random() * 1e5, ""),
        *("x" * rng.randint(0, 50), "tiny", "\ud800", "🙂", "\x00", "[{", "assistant", "user", "text"),
    )
    if kind < 9:
        return rng.choice(simple)
    if kind == 9:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {
        rng.choice([*FIELDS, "x", "role", "content", "type"]): any_value(rng, depth + 1)
        for _ in range(rng.randrange(4))
    }


FIELDS = (
    *("model", "messages", "prompt", "input", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "stream"),
    *("logprobs", "top_logprobs", "logit_bias", "response_format", "stream_options", "labels", "target", "source"),
    *("layer", "head", "encoding_format", "dimensions", "tools", "user", "presence_penalty", "min_tokens", "top_k"),
)
PATHS = (
    *("chat/completions", "completions", "embeddings", "moderations", "translate", "summarize", "classify"),
    *("attention", "models", "nothing"),
)
BASES = {
    "chat/completions": GOOD,
    "completions": {"prompt": "a", "max_tokens": 1},
    "embeddings": {"input": "a"},
    "moderations": {"input": "a"},
    "translate": {"input": "a cat", "target": "de"},
    "summarize": {"input": "a"},
    "classify": {"input": "a", "labels": ["b", "c"]},
    "attention": {"input": "a", "layer": 0, "head": 0},
}


def fuzzed(rng: random.Random, path: str) -> bytes:
    """A body that is broken in one of many ways."""
    content = dict(BASES.get(path, {}))
    if rng.random() < 0.1:
        return json.dumps(content).encode()
    for _ in range(rng.randint(1, 3)):
        content[rng.choice(FIELDS)] = any_value(rng)
    if "max_tokens" not in content or not isinstance(content["max_tokens"], int) or content["max_tokens"] > 8:
        content["max_tokens"] = rng.choice([1, 2, 8, "8", None, 10**9])
    body = json.dumps(content).encode()
    way = rng.randrange(8)
    if way == 0:
        place = rng.randrange(len(body))
        body = body[:place] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 4))) + body[place + 1 :]
    elif way == 1:
        body = body[: rng.randrange(len(body))]
    elif way == 2:
        body = body.replace(b"1", rng.choice([b"NaN", b"1e999", b"-Infinity", b"1.5", b"00"]), 1)
    elif way == 3:
        body = body.decode().encode(rng.choice(["utf-16", "utf-16-be", "utf-32", "utf-8-sig"]))
    elif way == 4:
        depth = rng.choice([20, 100, 10000])
        body = body[:-1] + b', "x": ' + b"[" * depth + b"]" * depth + b"}"
    elif way == 5:
        body = body[:-1] + b"," + body[1:]
    return body


def fuzz(running: Running, count: int) -> dict[int, int]:
    """Send broken bodies; how often each status came."""
    rng = random.Random(5)
    found: dict[int, int] = {}

    async def some(client: httpx.AsyncClient, number: int) -> None:
        for _ in range(number):
            path = rng.choice(PATHS)
            answer = await client.post(f"/v1/{path}", content=fuzzed(rng, path), headers=JSON)
            assert answer.status_code < 500, (path, answer.text)
            found[answer.status_code] = found.get(answer.status_code, 0) + 1
            if answer.status_code >= 400:
                assert answer.json()["error"]["message"]

    async def all_of_it() -> None:
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
            await asyncio.gather(*(some(client, count // 8) for _ in range(8)))

    asyncio.run(all_of_it())
    return found


def test_broken_bodies_get_answers_below_500(server: Running) -> None:
    found = fuzz(server, 800)
    assert found[400] > 300, found
    assert found.get(200, 0) > 5, "the control: some are good"


@pytest.mark.slow
def test_ten_thousand_broken_bodies_leave_no_memory_behind(server: Running) -> None:
    fuzz(server, 2000)
    before = memory_mb()
    fuzz(server, 10_000)
    assert memory_mb() - before < 40


def test_a_list_of_a_million_wrong_things_costs_one_error(server: Running) -> None:
    before = memory_mb()
    for body in (b'{"prompt": [' + b"{}," * 90_000 + b"{}]}", b'{"input": [' + b"null," * 700_000 + b"null]}"):
        began = time.monotonic()
        path = "completions" if b"prompt" in body else "embeddings"
        found = httpx.post(f"{server.url}/v1/{path}", content=body, headers=JSON, timeout=30)
        assert found.status_code == 400
        assert len(found.text) < 1000
        assert time.monotonic() - began < 5
    assert memory_mb() - before < 150


def slow_clients(port: int, count: int) -> list[socket.socket]:
    """Connections that send half of their headers, or of their body, and wait."""
    found = []
    for number in range(count):
        own = socket.create_connection(("127.0.0.1", port))
        half = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Ty"
        body = b"pe: application/json\r\nContent-Length: 100\r\n\r\n{" if number % 2 else b""
        own.sendall(half + body)
        found.append(own)
    return found


def test_half_sent_requests_are_closed_in_time(serve: Serve) -> None:
    running = serve(header_s=0.5, body_s=0.5)
    waiting = slow_clients(running.port, 20)
    idle = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(3)]
    running.until(lambda: len(running.server.server_state.connections) > 0)
    running.until(lambda: not running.server.server_state.connections, 5)
    for number, own in enumerate([*waiting, *idle]):
        own.settimeout(2)
        with contextlib.suppress(ConnectionResetError):
            answer = own.recv(1000)
            assert answer == b"" or (number % 2 and b" 408 " in answer), answer
        own.close()


def test_a_second_request_that_never_ends_is_closed_too(serve: Serve) -> None:
    running = serve(header_s=0.5, keep_alive_s=30.0)
    own = socket.create_connection(("127.0.0.1", running.port))
    own.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert b"200 OK" in own.recv(4096)
    time.sleep(0.7)
    own.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
    own.settimeout(3)
    with contextlib.suppress(ConnectionResetError):
        while own.recv(100):
            pass
    own.close()


def test_connections_are_bounded(serve: Serve) -> None:
    running = serve(max_connections=10)
    waiting = slow_clients(running.port, 10)
    running.until(lambda: len(running.server.server_state.connections) >= 10)
    found = httpx.get(f"{running.url}/health")
    assert found.status_code == 429
    assert found.json()["error"]["code"] == "rate_limit_exceeded"
    for own in waiting:
        own.close()
    running.until(lambda: not running.server.server_state.connections)
    assert httpx.get(f"{running.url}/health").status_code == 200


def p95(running: Running, count: int) -> float:
    """Of the seconds that a short answer takes."""
    times = []
    with httpx.Client(base_url=running.url) as client:
        for _ in range(count):
            began = time.perf_counter()
            assert client.post("/v1/chat/completions", json=GOOD).status_code == 200
            times.append(time.perf_counter() - began)
    return statistics.quantiles(times, n=20)[-1]


@pytest.mark.slow
def test_two_hundred_slow_clients_are_not_felt_by_their_neighbours(serve: Serve, small: LM) -> None:
    running = serve(header_s=60.0, body_s=60.0)
    p95(running, 50)
    ratios = []
    for _ in range(5):  # in turn: the machine may be doing something else as well
        alone = p95(running, 100)
        waiting = slow_clients(running.port, 200)
        ratios.append(p95(running, 100) / alone)
        for own in waiting:
            own.close()
        running.until(lambda: len(running.server.server_state.connections) < 5)
    assert statistics.median(ratios) < 1.5, ratios


POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        POST + b"Content-Length: -5\r\n\r\n{}",
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
        POST + b"Transfer-Encoding: gzip\r\n\r\n{}",
        POST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
        b"GET /v1/runs/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /" + b"a" * 30000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"BREW /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_wrong_http_gets_an_answer_below_500(server: Running, request_line: bytes) -> None:
    own = socket.create_connection(("127.0.0.1", server.port))
    own.settimeout(5)
    own.sendall(request_line)
    with contextlib.suppress(ConnectionResetError, TimeoutError):
        answer = own.recv(4096)
        assert not answer or int(answer.split()[1]) in range(400, 500), answer
    own.close()
    assert server.get("/health").status_code == 200


def test_no_answer_allows_another_site(server: Running) -> None:
    found = httpx.options(
        f"{server.url}/v1/chat/completions",
        headers={"origin": "https://evil.example", "access-control-request-method": "POST"},
    )
    assert found.status_code == 405
    for answer in (found, server.post("/v1/chat/completions", GOOD, headers={"origin": "https://evil.example"})):
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_bodies_are_given_back_with_their_requests(serve: Serve) -> None:
    running = serve(max_buffered_bytes=3000)
    for content in (GOOD, {**GOOD, "messages": 1}, {**GOOD, "user": "x" * 200}):
        for _ in range(20):
            assert running.post("/v1/chat/completions", content).status_code in (200, 400)
    httpx.post(f"{running.url}/v1/completions", content=b"{" * 500, headers=JSON)
    assert running.gateway.budget.held == 0
    refused = running.post("/v1/chat/completions", {**GOOD, "messages": [{"role": "user", "content": "x" * 4000}]})
    assert refused.status_code == 429
    assert running.gateway.budget.held == 0


def test_reports_of_tokens_are_bounded(server: Running) -> None:
    about = {"logprobs": True, "top_logprobs": 20, "max_tokens": 1000, "n": 8}
    found = server.post("/v1/chat/completions", {**GOOD, **about})
    assert found.status_code == 400
    assert found.json()["error"]["param"] == "logprobs"
