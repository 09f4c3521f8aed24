"""The wire between the parts: who may call, what is refused, silence, and what is told of errors."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.parts.conftest import QUICK, SECRET, Loop, all_events, call, standing, standing_engine

from bimo import LM
from bimo.core.errors import UserError
from bimo.guard import made_chain
from bimo.serving import wire as wires
from bimo.serving.balancing import BalancedEngines
from bimo.serving.contract import EmbedCall, Embedded, Failed, Finished, ServiceError
from bimo.serving.guard_app import guard_app
from bimo.serving.guarding import LocalGuard
from bimo.serving.keys import KeyRing
from bimo.serving.messages import Message
from bimo.serving.offering import Offering
from bimo.serving.remote import Address, addresses, engine_at, guard_at
from bimo.serving.standing import PartSettings, listening
from bimo.serving.wire import ENGINE_CALLS, RefusedError, WireSettings, contract_version, shared_secret

RULES = ["hidden_characters", 'personal_data(action="mask")']
Work = Callable[[httpx.AsyncClient], Awaitable[Any]]


def _asked(loop: Loop, small: LM, work: Work, **settings: Any) -> Any:
    """What comes of some work with a plain client before an engine's wire."""

    async def ask() -> Any:
        async with standing_engine(small, replace(QUICK, **settings)) as (address, _, _):
            headers = {"x-bimo-contract": contract_version(), "authorization": f"Bearer {SECRET}"}
            async with httpx.AsyncClient(base_url=address.url, headers=headers, trust_env=False) as client:
                return await work(client)

    return loop.run(ask())


def _refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["what"]


@pytest.mark.parametrize("path", ["/engine/models", "/health", "/nothing", "/"])
@pytest.mark.parametrize("key", ["", "Bearer wrong", f"Bearer {SECRET[:-1]}", f"Basic {SECRET}"])
def test_without_the_key_every_address_is_closed(loop: Loop, small: LM, path: str, key: str) -> None:
    async def work(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(path, json={}, headers={"authorization": key})

    assert _asked(loop, small, work).status_code == 401


def test_with_the_key_its_health_can_be_asked(loop: Loop, small: LM) -> None:
    async def work(client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/health")

    assert _asked(loop, small, work).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "JSON"),
        (b"[]", 400, "object"),
        (b'{"id": "1", "id": "2"}', 400, "twice"),
        (b'{"id": NaN}', 400, "NaN"),
        (b'{"id": "1"}', 400, "missing"),
        (b'{"id": "1", "model": "tiny", "surprise": 1}', 400, "surprise"),
        (b'{"id": 1, "model": "tiny"}', 400, "fit"),
        (b'{"is": "EmbedCall", "id": "1", "model": "tiny"}', 400, "another"),
        (b"[" * 1000, 400, "deep"),
        (b'"' + b"x" * 5000 + b'"', 413, "larger"),
    ],
)
def test_what_is_no_call_is_refused_with_a_reason(loop: Loop, small: LM, body: bytes, status: int, word: str) -> None:
    async def work(client: httpx.AsyncClient) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return await client.post("/engine/generate", content=body, headers=headers)

    found = _refusal(_asked(loop, small, work, max_call_bytes=4096))
    assert found[0] == status
    assert word in found[1]


@pytest.mark.parametrize("version", ["", "0123456789abcdef"])
def test_another_contract_is_refused_by_name(loop: Loop, small: LM, version: str) -> None:
    async def work(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/engine/models", json={}, headers={"x-bimo-contract": version})

    status, what = _refusal(_asked(loop, small, work))
    assert status == 412
    assert "same release" in what


def test_the_contract_has_another_version_when_a_message_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = contract_version()
    other = wires.Nothing
    monkeypatch.setattr(wires, "Nothing", type("Nothing", (), {}))
    try:
        contract_version.cache_clear()
        assert contract_version() != before
    finally:
        monkeypatch.setattr(wires, "Nothing", other)
        contract_version.cache_clear()
    assert contract_version() == before


def test_a_gateway_with_a_wrong_key_says_so_and_is_not_served(loop: Loop, small: LM) -> None:
    async def work() -> tuple[Any, Any]:
        async with standing_engine(small) as (address, _, _):
            engine = engine_at(Address(address.url, "wrong"), QUICK)
            events = await all_events(engine.generate(call()))
            balanced = BalancedEngines({"one": engine}, QUICK)
            with pytest.raises(UserError, match="refuses the key"):
                await balanced.start()
            await balanced.close()
            return events

    (failed,) = loop.run(work())
    assert isinstance(failed, Failed)
    assert failed.kind == "unavailable"
    assert "wrong" not in failed.what


@pytest.mark.parametrize("status", [200, 404, 501])
def test_another_program_at_the_address_is_not_believed(loop: Loop, status: int) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b'{"is": "Started", "prompt_tokens": 1}\n'})

    async def work() -> None:
        async with standing(other) as url:  # type: ignore[arg-type]  # any application
            engine = engine_at(Address(url), QUICK)
            with pytest.raises(RefusedError, match="another program"):
                await engine.models()
            await engine.close()

    loop.run(work())


def test_a_redirect_is_not_followed(loop: Loop, small: LM) -> None:
    async def work() -> None:
        async with standing_engine(small) as (address, _, _):

            async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
                headers = [(b"location", f"{address.url}{scope['path']}".encode())]
                await send({"type": "http.response.start", "status": 307, "headers": headers})
                await send({"type": "http.response.body", "body": b""})

            async with standing(elsewhere) as url:  # type: ignore[arg-type]  # any application
                engine = engine_at(Address(url, SECRET), QUICK)
                with pytest.raises(ServiceError):
                    await engine.models()
                await engine.close()

    loop.run(work())


def test_nobody_at_the_address_is_unavailable_with_a_time_to_come_back(loop: Loop) -> None:
    sock = listening(PartSettings(port=0))
    port = sock.getsockname()[1]
    sock.close()
    (failed,) = loop.run(all_events(engine_at(Address(f"http://127.0.0.1:{port}"), QUICK).generate(call())))
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.retry_after_s > 0) == ("unavailable", True)


def _slow(seconds: float, beat_s: float) -> Offering:
    """A part whose every answer takes its time."""

    async def answer(_: Message) -> AsyncGenerator[Message, None]:
        await asyncio.sleep(seconds)
        yield Embedded(((1.0,),), 1)

    return Offering(ENGINE_CALLS, dict.fromkeys(ENGINE_CALLS, answer), KeyRing(), replace(QUICK, beat_s=beat_s))


def test_a_long_answer_is_waited_for_as_long_as_the_other_side_lives(loop: Loop) -> None:
    async def work(beat_s: float) -> Embedded:
        async with standing(_slow(1.5, beat_s)) as url:
            engine = engine_at(Address(url), replace(QUICK, silence_s=0.6))
            try:
                return await engine.embed(EmbedCall("e", "tiny", ("a",)))
            finally:
                await engine.close()

    assert loop.run(work(0.1)).vectors == ((1.0,),)
    with pytest.raises(ServiceError, match="does not answer"):  # the control: without signs of life
        loop.run(work(1.0))


def test_a_handler_that_fails_gives_its_kind_and_not_its_words(loop: Loop) -> None:
    async def work() -> None:
        async def answer(_: Message) -> AsyncGenerator[Message, None]:
            raise ValueError("the secret of a user")
            yield Finished((), 0, 0)

        app = Offering(ENGINE_CALLS, dict.fromkeys(ENGINE_CALLS, answer), KeyRing(), QUICK)
        async with standing(app) as url:
            engine = engine_at(Address(url), QUICK)
            with pytest.raises(ServiceError) as failed:
                await engine.embed(EmbedCall("e", "tiny", ("a",)))
            await engine.close()
            assert failed.value.kind == "internal"
            assert "secret" not in failed.value.what

    loop.run(work())


def test_calls_at_once_are_bounded(loop: Loop) -> None:
    async def work() -> list[str]:
        app = _slow(0.5, 0.1)
        app._settings = replace(QUICK, max_calls=2)
        async with standing(app) as url:
            engine = engine_at(Address(url), QUICK)
            asked = (engine.embed(EmbedCall("e", "tiny", ("a",))) for _ in range(5))
            found = await asyncio.gather(*asked, return_exceptions=True)
            await engine.close()
            return [found.kind if isinstance(found, ServiceError) else "answered" for found in found]

    assert sorted(loop.run(work())) == ["answered"] * 2 + ["busy"] * 3


def test_a_guard_behind_a_wire_says_the_same(loop: Loop) -> None:
    texts = ["write to anna.schmidt@gmail.com", "", "all\u200bgood", "一只猫 🙂"]

    async def work() -> None:
        here = LocalGuard(made_chain(RULES))
        async with standing(guard_app(here, shared_secret(SECRET), QUICK)) as url:
            there = guard_at(Address(url, SECRET), QUICK)
            assert await there.check(texts, "input") == await here.check(texts, "input")
            assert await there.rules() == await here.rules()
            await there.close()
        with pytest.raises(ServiceError):  # nothing passes a guard that is not there
            await guard_at(Address(url, SECRET), QUICK).check(texts, "input")

    loop.run(work())


def test_a_part_can_listen_on_a_unix_socket_that_is_its_owners(loop: Loop, tmp_path: Path) -> None:
    path = Path(os.path.relpath(tmp_path / "guard.sock")).resolve()
    if len(str(path)) > 100:
        pytest.skip("the path of temporary files is too long for a socket")

    async def work() -> None:
        async with standing(guard_app(LocalGuard(made_chain(RULES)), settings=QUICK), socket=str(path)) as url:
            assert url == f"unix:{path}"
            assert path.stat().st_mode & 0o077 == 0
            guard = guard_at(Address(url), QUICK)
            assert "personal_data" in await guard.rules()
            await guard.close()
            with pytest.raises(UserError, match="another process"):
                listening(PartSettings(socket=str(path)))

    loop.run(work())
    listening(PartSettings(socket=str(path))).close()  # what was left behind is no obstacle


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8001",
        "ftp://host",
        "http://",
        "http://user:key@host",
        "http://h:99999",
        "unix:here",
        "http://h?x=1",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UserError) as wrong:
        addresses(url, "BIMO_TEST_KEY")
    assert "key@" not in str(wrong.value)


def test_a_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIMO_TEST_KEY", SECRET)
    (address,) = addresses("http://localhost:1", "BIMO_TEST_KEY")
    assert address.secret == SECRET
    assert SECRET not in repr(address)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_a_part_that_others_reach_needs_keys(host: str) -> None:
    with pytest.raises(UserError, match="keys"):
        PartSettings(host=host)
    PartSettings(host=host, keys="keys.txt")


def test_settings_that_call_a_living_part_dead_are_refused() -> None:
    with pytest.raises(UserError, match="beat_s"):
        WireSettings(beat_s=6.0, silence_s=10.0)


def test_every_message_of_the_contract_passes_the_wire(loop: Loop, small: LM) -> None:
    async def work() -> list[Any]:
        async with standing_engine(small) as (address, _, _):
            headers = {"x-bimo-contract": contract_version(), "authorization": f"Bearer {SECRET}"}
            async with httpx.AsyncClient(base_url=address.url, headers=headers, trust_env=False) as client:
                response = await client.post("/engine/generate", json=call("一只 🙂").to_dict())
                return [json.loads(line) for line in response.text.split("\n") if line]

    events = loop.run(work())
    assert [events[0]["is"], events[-1]["is"]] == ["Started", "Finished"]
    assert {event["is"] for event in events[1:-1]} == {"Piece"}
