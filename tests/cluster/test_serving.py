"""A server on Ray Serve: the same answers, streams that can be left, replicas that follow a queue."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from bimo import LM
from bimo.cluster.scaling import ScaleSettings
from bimo.cluster.serving import start, stop
from bimo.core.errors import UserError
from bimo.serving.keys import new_key, open_keys
from bimo.serving.places import Wanted
from bimo.serving.settings import ServeSettings

SCALE = ScaleSettings(
    name="bimotest",
    max_engines=2,
    max_gateways=1,
    engine_queue=1.0,
    engine_cpus=0.2,
    gateway_cpus=0.1,
    grow_s=0.5,
    shrink_s=1.0,
)
BODY = {"model": "tiny", "prompt": "the cat sat", "max_tokens": 8, "min_tokens": 8, "temperature": 0}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(ray: Any, lm: LM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server on Ray."""
    pytest.importorskip("ray.serve", reason="the extra bimo[ray] is not installed")
    folder = tmp_path_factory.mktemp("serving")
    lm.save(folder / "tiny")
    secret = new_key(folder / "keys", "anna")
    wanted = Wanted(
        models=[str(folder / "tiny")], names=["tiny"], adapters=[], engine={"threads": 1}, rules=["personal_data"],
        modules=[], drain_s=5.0,
    )  # fmt: skip
    settings = ServeSettings(port=_free_port(), drain_s=5.0)
    url, names = start(wanted, settings, open_keys(str(folder / "keys")), SCALE)
    assert names == ["tiny"]
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {secret}"}, timeout=60, trust_env=False) as own:
        yield own
    stop(SCALE)


def _engines() -> list[int]:
    """The processes of the engine's replicas."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_text(encoding="utf-8")
            except OSError:
                continue
            found += [int(folder.name)] if "ServeReplica:bimotest:engine" in words else []
    return found


def _until(holds: Any, seconds: float = 60) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, "it does not come true in time"
        time.sleep(0.1)


@pytest.mark.slow
def test_it_answers_as_the_model_does_alone(server: Any, lm: LM) -> None:
    answer = server.post("/v1/completions", json=BODY).json()
    assert answer["choices"][0]["text"] == lm.generate("the cat sat", max_tokens=8, min_tokens=8, temperature=0.0)


@pytest.mark.slow
def test_without_its_key_nothing_is_answered(server: Any) -> None:
    assert httpx.get(f"{server.base_url}/v1/models", trust_env=False).status_code == 401


@pytest.mark.slow
def test_the_guard_is_asked(server: Any) -> None:
    found = server.post("/v1/moderations", json={"input": "write to anna.schmidt@gmail.com"}).json()
    assert found["results"][0]["flagged"]


@pytest.mark.slow
def test_a_stream_comes_in_pieces_and_can_be_left(server: Any) -> None:
    body = {**BODY, "max_tokens": 50, "min_tokens": 50, "n": 8, "stream": True}
    with server.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
    _until(lambda: sum(e["running"] + e["waiting"] for e in server.get("/v1/stats").json()["models"]) == 0, 10)


@pytest.mark.slow
def test_an_unknown_model_is_a_404(server: Any) -> None:
    assert server.post("/v1/completions", json={**BODY, "model": "other"}).status_code == 404


@pytest.mark.slow
def test_a_replica_that_is_killed_is_replaced(server: Any) -> None:
    killed = _engines()[0]
    os.kill(killed, signal.SIGKILL)
    _until(lambda: server.post("/v1/completions", json=BODY).status_code == 200)
    assert [pid for pid in _engines() if pid != killed], "another process answers"


@pytest.mark.slow
def test_a_long_queue_starts_another_replica_and_a_short_one_ends_it(server: Any) -> None:
    _until(lambda: len(_engines()) == 1)

    body = {**BODY, "max_tokens": 50, "min_tokens": 50, "n": 8}
    with ThreadPoolExecutor(8) as people:
        began = time.monotonic()
        while len(_engines()) < 2:
            assert time.monotonic() - began < 90, "the queue is long, and nothing happens"
            codes = people.map(lambda _: server.post("/v1/completions", json=body).status_code, range(16))
            assert set(codes) == {200}
    _until(lambda: len(_engines()) == 1)


@pytest.mark.parametrize("wrong", [{"engines": 0}, {"engines": 5}, {"engine_queue": 0.0}, {"name": "a b"}])
def test_scales_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        ScaleSettings(**wrong)
