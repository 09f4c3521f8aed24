"""How things end: a drain loses nothing, an engine that dies is made anew, a poisoned request fails alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from serving.echo import Echo
from serving.servers import Serve
from serving.test_streams import said

from bimo import LM
from bimo.engine.runner import Chunk

TEXT = "the cat sat on a mat 一只 猫"


def drain_once(serve: Serve, small: LM) -> None:
    go = threading.Event()
    running = serve([Echo(small, lambda chunks: go.wait(20) and None)], max_parallel=8)
    with ThreadPoolExecutor(20) as pool:
        answers = [
            pool.submit(
                httpx.post, f"{running.url}/v1/chat/completions", json=said(TEXT, stream=n % 2 == 0), timeout=60
            )
            for n in range(20)
        ]
        running.until(lambda: running.gateway.admission.running + running.gateway.admission.waiting == 20)
        running.server.handle_exit(signal.SIGTERM, None)
        running.until(lambda: running.gateway.draining)
        late = httpx.post(f"{running.url}/v1/chat/completions", json=said("late"))
        assert late.status_code == 503
        assert "retry-after" in late.headers
        assert httpx.get(f"{running.url}/ready").status_code == 503
        assert httpx.get(f"{running.url}/health").status_code == 200
        go.set()
        for answer in answers:
            found = answer.result()
            assert found.status_code == 200
            lines = [line[6:] for line in found.text.split("\n") if line.startswith("data: {")]
            parts = [json.loads(line)["choices"] for line in lines]
            text = "".join(c["delta"].get("content") or "" for part in parts for c in part)
            assert (text or found.json()["choices"][0]["message"]["content"]) == TEXT, "nothing is lost"
    running.thread.join(10)
    assert not running.thread.is_alive()


def test_a_drain_loses_nothing_and_takes_nothing_new(serve: Serve, small: LM) -> None:
    drain_once(serve, small)


@pytest.mark.slow
def test_ten_drains_lose_nothing(serve: Serve, small: LM) -> None:
    for _ in range(10):
        drain_once(serve, small)


def test_a_drain_does_not_wait_for_ever(serve: Serve, small: LM) -> None:
    running = serve([Echo(small, lambda chunks: time.sleep(0.05))], drain_s=0.5)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(running.post, "/v1/chat/completions", said(TEXT * 5))
        running.until(lambda: running.gateway.admission.running == 1)
        running.server.handle_exit(signal.SIGTERM, None)
        running.thread.join(12)
        assert not running.thread.is_alive()
        assert answer.result().status_code == 503, "it was cut off, and told so"


def test_an_engine_that_dies_is_made_anew(serve: Serve, small: LM) -> None:
    model = Echo(small, lambda chunks: time.sleep(0.005))
    running = serve([model])
    driver = model.driver
    make, may_make = driver._make, threading.Event()

    def slowly() -> object:
        assert may_make.wait(10)
        return make()

    driver._make = slowly
    with ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(running.post, "/v1/chat/completions", said(TEXT)) for _ in range(4)]
        running.until(lambda: driver.engine.stats.running == 4)

        def broken() -> object:
            raise RuntimeError(f"the engine's tables are broken, at the text {TEXT}")

        driver.engine.scheduler.schedule = broken
        for answer in under_way:
            found = answer.result()
            assert found.status_code == 503, found.text
            assert "retry-after" in found.headers
    assert running.get("/ready").status_code == 503
    assert running.post("/v1/chat/completions", said("meanwhile")).status_code == 503
    assert running.get("/v1/stats").json()["models"][0]["state"] == "restarting"
    may_make.set()
    assert running.until(lambda: running.get("/ready").status_code == 200) < 10
    found = running.post("/v1/chat/completions", said(TEXT))
    assert found.json()["choices"][0]["message"]["content"] == TEXT
    assert running.get("/v1/stats").json()["models"][0]["n_restarts"] == 1


def test_an_engine_that_cannot_be_made_at_once_is_tried_again(serve: Serve, small: LM) -> None:
    model = Echo(small)
    running = serve([model])
    make, attempts = model.driver._make, []

    def sometimes() -> object:
        attempts.append(1)
        if len(attempts) < 2:
            raise MemoryError
        return make()

    model.driver._make = sometimes
    model.driver.engine.scheduler.schedule = lambda: 1 / 0
    assert running.post("/v1/chat/completions", said(TEXT)).status_code == 503
    running.until(lambda: running.get("/ready").status_code == 200)
    assert len(attempts) == 2
    assert running.post("/v1/chat/completions", said(TEXT)).status_code == 200


def test_a_poisoned_request_fails_alone(serve: Serve, small: LM) -> None:
    poison = small.tokenizer.encode("schlief")[0]

    def fails(chunks: Sequence[Chunk]) -> None:
        time.sleep(0.002)
        if any(poison in chunk.tokens for chunk in chunks):
            raise ValueError("no kernel likes this token, schlief")

    running = serve([Echo(small, fails)])
    with ThreadPoolExecutor(9) as pool:
        good = [pool.submit(running.post, "/v1/chat/completions", said(TEXT)) for _ in range(8)]
        bad = pool.submit(running.post, "/v1/chat/completions", said("schlief"))
        assert bad.result().status_code == 500
        assert "schlief" not in bad.text if hasattr(bad, "text") else True
        assert "kernel" not in bad.result().text, "what is inside stays inside"
        assert {answer.result().json()["choices"][0]["message"]["content"] for answer in good} == {TEXT}
    assert running.get("/v1/stats").json()["models"][0]["n_restarts"] == 0


@pytest.fixture(scope="module")
def folder(small: LM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.save(tmp_path_factory.mktemp("models") / "tiny")


def started(folder: Path, *flags: str) -> tuple[subprocess.Popen[str], str]:
    """A server as a person starts it, and its URL."""
    command = [sys.executable, "-m", "bimo", "serve", str(folder), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert " at http" in line, process.communicate(timeout=20)
    assert process.stdout.readline().startswith("curl http"), "it says how to call it"
    return process, line.split(" at ")[1].split()[0]


def test_the_command_serves_drains_on_sigterm_and_ends_with_zero(folder: Path) -> None:
    process, url = started(folder)
    try:
        found = httpx.post(f"{url}/v1/chat/completions", json=said("the cat", max_tokens=3), timeout=30)
        assert found.status_code == 200
        assert found.json()["model"] == "tiny"
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=said("a", min_tokens=200, stream=True)) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(lines), "what is under way comes to its end"
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0, err
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert "request" in events
    assert "draining" in events


def test_a_port_in_use_is_one_sentence(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "bimo", "serve", str(folder), "--port", str(taken.getsockname()[1])]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 2
    assert "cannot listen there" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
