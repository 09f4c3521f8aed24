"""Keys: every address needs one, files hold hashes, and each key has its limits."""

from __future__ import annotations

import base64
import hmac
import os
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.servers import Serve

from bimo.core.errors import UserError
from bimo.serving.keys import Key, KeyRing, new_key, read_keys, secret_of

ASK = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 4, "temperature": 0}


@pytest.fixture
def ring(tmp_path: Path) -> tuple[KeyRing, str, str]:
    path = tmp_path / "keys"
    first, second = new_key(path, "anna"), new_key(path, "bert")
    return read_keys(path), first, second


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def addresses(app: Any) -> list[tuple[str, str]]:
    """All methods and addresses that there are."""
    found = []
    for route in app.routes:
        path = getattr(route, "path", "").replace("{name}", "x").replace("{name:path}", "tiny")
        found += [(method, path) for method in getattr(route, "methods", None) or ()]
    return found


def test_every_address_needs_a_key(serve: Serve, ring: tuple[KeyRing, str, str], tmp_path: Path) -> None:
    running = serve(keys=ring[0], runs=str(tmp_path))
    app = running.app._app
    every = [*addresses(app), ("GET", "/"), ("GET", "/nothing"), ("OPTIONS", "/v1/models"), ("HEAD", "/health")]
    assert {path for _, path in every} >= {"/docs", "/openapi.json", "/health", "/ready", "/metrics", "/v1/runs"}
    assert len(every) > 18
    client = httpx.Client(base_url=running.url)
    for method, path in every:
        for headers in ({}, bearer("bimo-wrong"), bearer(ring[0].keys[0].hash), {"authorization": "Basic YTpi"}):
            found = client.request(method, path, headers=headers)
            assert found.status_code == 401, (method, path)
        assert "Bearer" in found.headers["www-authenticate"]
        assert 'Basic realm="bimo"' in found.headers["www-authenticate"]
    for method, path in every:  # the control
        known = client.request(method, path, headers=bearer(ring[1]))
        assert known.status_code != 401, (method, path)


def test_a_browser_may_give_the_key_as_password(serve: Serve, ring: tuple[KeyRing, str, str]) -> None:
    running = serve(keys=ring[0])
    assert httpx.get(f"{running.url}/health", auth=("anybody", ring[1])).status_code == 200
    assert httpx.get(f"{running.url}/health", auth=(ring[1], "")).status_code == 401


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        (b"Bearer abc", "abc"),
        (b"bearer  abc ", "abc"),
        (b"Basic " + base64.b64encode(b"me:a:b"), "a:b"),
        (b"Basic %%%", ""),
        (b"Basic " + base64.b64encode(b"\xff\xfe:x"), ""),
        (b"Digest abc", ""),
        (b"", ""),
        (b"Bearer " + b"x" * 5000, "x" * 1017),
    ],
)
def test_headers_of_all_kinds_are_read(header: bytes, secret: str) -> None:
    assert secret_of(header) == secret


def test_all_keys_are_compared_in_constant_time(
    ring: tuple[KeyRing, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or compare(a, b))
    first = ring[0].holder(b"Bearer " + ring[1].encode())
    assert first is not None
    assert first.name == "anna"
    assert len(compared) == 2, "also those behind the one that fits"


def test_a_file_of_keys_holds_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    secret = new_key(path, "anna")
    assert len(secret) > 40
    assert secret not in path.read_text()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(UserError, match="there is a key called 'anna'"):
        new_key(path, "anna")
    with pytest.raises(UserError, match="is no name"):
        new_key(path, "a b")


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "anna\n", "anna sha256:12\n", "anna plain-secret-key\n", "a sha256:" + "0" * 64 + " x=1\n"],
)
def test_files_without_proper_keys_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_keys(path)
    assert "plain-secret-key" not in str(caught.value), "a key in the wrong place is not shown"


def test_limits_stand_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    new_key(path, "anna")
    path.write_text(path.read_text().strip() + " requests=2 tokens=100 parallel=1\n")
    (key,) = read_keys(path).keys
    assert (key.requests, key.tokens, key.parallel) == (2, 100, 1)


def test_a_key_has_its_limit_of_requests(serve: Serve, ring: tuple[KeyRing, str, str]) -> None:
    running = serve(keys=ring[0], key_requests_per_minute=3)
    anna, bert = bearer(ring[1]), bearer(ring[2])
    statuses = [running.post("/v1/chat/completions", ASK, headers=anna).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    refused = running.post("/v1/chat/completions", ASK, headers=anna)
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert running.post("/v1/chat/completions", ASK, headers=bert).status_code == 200, "another key is not touched"


def test_a_key_has_its_limit_of_tokens(serve: Serve, ring: tuple[KeyRing, str, str]) -> None:
    running = serve(keys=ring[0], key_tokens_per_minute=40)
    anna = bearer(ring[1])
    statuses = [running.post("/v1/chat/completions", ASK, headers=anna).status_code for _ in range(8)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    assert running.post("/v1/chat/completions", ASK, headers=bearer(ring[2])).status_code == 200


def test_a_small_bucket_still_lets_a_large_request_in_once(serve: Serve) -> None:
    secret = "bimo-test"
    import hashlib

    key = Key("anna", hashlib.sha256(secret.encode()).hexdigest(), tokens=5)
    running = serve(keys=KeyRing([key]))
    assert running.post("/v1/chat/completions", ASK, headers=bearer(secret)).status_code == 200
    assert running.post("/v1/chat/completions", ASK, headers=bearer(secret)).status_code == 429


def test_without_keys_everybody_on_this_machine_may_ask(serve: Serve) -> None:
    assert httpx.get(f"{serve().url}/health").status_code == 200
