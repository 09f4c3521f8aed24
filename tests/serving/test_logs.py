"""Logs tell what happened and never what was said; nothing calls out."""

from __future__ import annotations

import io
import json
import logging
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from serving.echo import Echo
from serving.servers import Serve
from serving.test_streams import said

from bimo import LM
from bimo.engine.runner import Chunk
from bimo.serving.keys import new_key, read_keys
from bimo.serving.logs import JsonLines, log_to


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the server logs, with everything else that Python says."""
    stream = io.StringIO()
    names = ("bimo.serving", "uvicorn.error", "asyncio")
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).level) for name in names}
    log_to(stream)
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)
    for name, (handlers, level) in before.items():
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, True
        logging.getLogger(name).setLevel(level)


def form(schema: dict) -> dict:
    """A wish for JSON of a schema."""
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def secrets(count: int) -> list[str]:
    rng = random.Random(3)
    return [f"zq{''.join(rng.choices('abcdefghij0123456789', k=14))}" for _ in range(count)]


def test_none_of_fifty_secrets_gets_into_a_log(
    serve: Serve, small: LM, written: io.StringIO, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key = new_key(tmp_path / "keys", "anna")

    def fails(chunks: Sequence[Chunk]) -> None:
        if any(len(chunk.tokens) == 1 for chunk in chunks):
            return
        text = small.tokenizer.decode(chunks[0].tokens)
        if "poison" in text:
            raise ValueError(f"cannot read {text}")

    model = Echo(small, fails)
    running = serve([model], keys=read_keys(tmp_path / "keys"))
    planted = secrets(50)
    headers = {"authorization": f"Bearer {key}"}
    places = [
        lambda s: ("chat/completions", said(s)),
        lambda s: ("chat/completions", said(s, stream=True)),
        lambda s: ("chat/completions", said(f"poison {s}")),
        lambda s: ("chat/completions", {"messages": [{"role": s, "content": "a"}]}),
        lambda s: ("chat/completions", {"messages": "a", s: 1}),
        lambda s: ("chat/completions", said("a", model=s)),
        lambda s: ("chat/completions", said("a", user=s, stop=[s])),
        lambda s: ("chat/completions", said("a", response_format=form({"pattern": s}))),
        lambda s: ("completions", {"prompt": s, "max_tokens": s}),
        lambda s: ("embeddings", {"input": [s]}),
        lambda s: ("moderations", {"input": f"{s}@{s}.de"}),
        lambda s: ("translate", {"input": s, "target": s}),
        lambda s: ("translate", {"input": s, "target": "de"}),
        lambda s: ("classify", {"input": s, "labels": [s, "b"]}),
        lambda s: (f"{s}", {}),
    ]  # fmt: skip
    statuses = set()
    for number, secret in enumerate(planted):
        path, content = places[number % len(places)](secret)
        statuses.add(running.post(f"/v1/{path}?{secret}=1", content, headers=headers).status_code)
        body = f'{{"a": "{secret}'.encode()
        httpx.post(
            f"{running.url}/v1/completions",
            content=body,
            headers={**headers, "x-note": secret, "content-type": "application/json"},
        )
        running.client.get(f"/v1/models/{secret}", headers={"authorization": f"Bearer {secret}"})
    model.driver.engine.scheduler.schedule = lambda: 1 / 0
    assert running.post("/v1/chat/completions", said(planted[0]), headers=headers).status_code == 503
    running.until(lambda: running.get("/ready", headers=headers).status_code == 200)
    assert {200, 400, 404, 500} <= statuses
    text = written.getvalue() + "".join(capfd.readouterr())
    found = [secret for secret in [*planted, key] if secret in text]
    assert found == [], "a log tells what was said"
    lines = [json.loads(line) for line in written.getvalue().splitlines() if line.startswith("{")]
    assert {"request", "request failed in the engine", "engine died", "engine runs again"} <= {
        line["event"] for line in lines
    }
    asked = next(line for line in lines if line["event"] == "request" and line.get("completion_tokens"))
    assert asked["key"] == "anna"
    assert asked["route"] == "/v1/chat/completions"
    assert asked["status"] == 200
    assert asked["seconds"] > 0
    died = next(line for line in lines if line["event"] == "engine died")
    assert died["error"] == "ZeroDivisionError"
    assert died["place"].startswith("test_logs.py:")


def test_the_control_would_be_seen() -> None:
    record = logging.LogRecord("bimo.serving", logging.ERROR, "", 0, "failed", None, None)
    record.text = "secret"
    record.exc_info = (ValueError, ValueError("secret"), None)
    assert "secret" not in JsonLines().format(record)
    assert "secret" in logging.Formatter().format(record), "another formatter tells it"
    for name, args in (("uvicorn.error", None), ("asyncio", ("secret",))):
        other = logging.LogRecord(name, logging.ERROR, "", 0, "secret %s", args, None)
        assert "secret" not in JsonLines().format(other)


def test_metrics_count_without_text(serve: Serve, small: LM) -> None:
    running = serve([Echo(small)])
    running.post("/v1/chat/completions", said("zqsecret"))
    running.post("/v1/zqsecret", {})
    page = running.get("/metrics").text
    assert "zqsecret" not in page
    assert 'bimo_requests_total{route="/v1/chat/completions",status="200"} 1.0' in page
    assert 'bimo_tokens_total{kind="completion",model="echo"}' in page
    for name in ("bimo_first_token_seconds_count 1.0", "bimo_ready 1.0", "bimo_waiting 0.0", "bimo_rejected"):
        assert name in page


OUTSIDE = """
import sys
called = []
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "socket.sendto"):
        called.append((event, str(arguments)))
sys.addaudithook(hook)
import threading
from bimo.lm import load
from bimo.serving.app import make_app
from bimo.serving.local import LocalEngine
from bimo.serving.models import ServedModel
from bimo.serving.running import Server, listen
from bimo.serving.settings import ServeSettings
settings = ServeSettings(port=0)
own = listen(settings)
app, gateway = make_app(LocalEngine([ServedModel("tiny", load(sys.argv[1]))]), settings)
server = Server(app, gateway, lambda: print(own.getsockname()[1], flush=True))
server.run(sockets=[own])
inner = [c for c in called if "'127.0.0.1'" not in c[1] or c[0] != "socket.getaddrinfo"]
print("CALLED", inner)
import socket
try:
    socket.create_connection(("127.0.0.1", 9), timeout=0.2)
except OSError:
    pass
print("CONTROL", [event for event, _ in called[-1:]])
"""


def test_a_server_calls_nobody(small: LM, tmp_path: Path) -> None:
    folder = small.save(tmp_path / "tiny")
    process = subprocess.Popen([sys.executable, "-c", OUTSIDE, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline())
        url = f"http://127.0.0.1:{port}"
        hostile = {"$ref": "http://127.0.0.1:9/x"}
        for path, content in (
            ("chat/completions", said("look at http://127.0.0.1:9/x", max_tokens=4)),
            (
                "chat/completions",
                said("a", response_format=form(hostile)),
            ),
            ("chat/completions", said([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x"}}])),
            ("embeddings", {"input": "a"}),
            ("attention", {"input": "a", "layer": 0, "head": 0}),
            ("moderations", {"input": "http://127.0.0.1:9/x"}),
            ("translate", {"input": "http://127.0.0.1:9/x", "target": "de"}),
        ):
            assert httpx.post(f"{url}/v1/{path}", json=content, timeout=60).status_code < 500
        for path in ("/docs", "/openapi.json", "/metrics", "/v1/stats"):
            assert httpx.get(url + path).status_code == 200
        process.terminate()
        out = process.communicate(timeout=20)[0]
    finally:
        process.kill()
    assert "CALLED []" in out
    assert "CONTROL ['socket.connect']" in out, "the control: a call would have been seen"
