"""The guard in the server: what it notes, masks and refuses, on the way in and on the way out."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from serving.echo import Echo
from serving.servers import Running, Serve
from serving.test_streams import said

from bimo import LM
from bimo.core.errors import UserError
from bimo.serving.guarding import BothGuards, local_guard

MAIL = "write to anna.b@posteo.de now"


def answered(running: Running, text: str, **more: Any) -> tuple[str, list[dict], str]:
    """Text, verdicts and the reason why it ended; streamed or whole."""
    found = running.post("/v1/chat/completions", said(text, **more))
    assert found.status_code == 200, found.text
    if not more.get("stream"):
        choice = found.json()["choices"][0]
        return choice["message"]["content"], found.json()["bimo"]["guard"], choice["finish_reason"]
    chunks = [json.loads(line[6:]) for line in found.text.split("\n") if line.startswith("data: {")]
    assert found.text.rstrip().endswith("[DONE]")
    text = "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])
    verdicts = [v for chunk in chunks for v in chunk.get("bimo", {}).get("guard", ())]
    return text, verdicts, chunks[-1]["choices"][0]["finish_reason"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_noted_is_told_and_passes(serve: Serve, small: LM, stream: bool) -> None:
    running = serve([Echo(small)])
    text, verdicts, _ = answered(running, MAIL, stream=stream)
    assert text == MAIL
    assert [(v["side"], MAIL[v["start"] : v["end"]]) for v in verdicts] == [
        ("input", "anna.b@posteo.de"),
        ("output", "anna.b@posteo.de"),
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("side", ["input", "output"])
def test_what_is_masked_passes_nobody(serve: Serve, small: LM, stream: bool, side: str) -> None:
    running = serve([Echo(small)], guard=[f'personal_data(action="mask", sides="{side}")'])
    text, verdicts, _ = answered(running, MAIL, stream=stream, logprobs=True)
    assert text == "write to ███ now"
    assert {v["side"] for v in verdicts} == {side}
    whole = running.post("/v1/chat/completions", said(MAIL, stream=stream, logprobs=True)).text
    if side == "output":
        assert "posteo" not in whole, "also not by its tokens"


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_on_the_way_out_is_not_shown(serve: Serve, small: LM, stream: bool) -> None:
    running = serve([Echo(small)], guard=['personal_data(action="refuse", sides="output")'])
    assert answered(running, MAIL, stream=stream) == ("", answered(running, MAIL)[1], "content_filter")
    assert answered(running, "the cat", stream=stream)[0] == "the cat", "the control"


def test_what_is_refused_on_the_way_in_is_400(serve: Serve, small: LM) -> None:
    model = Echo(small)
    running = serve([model], guard=['personal_data(action="refuse", sides="input")'])
    for path, content in (
        ("chat/completions", said(MAIL)),
        ("completions", {"prompt": MAIL}),
        ("embeddings", {"input": ["a", MAIL]}),
        ("translate", {"input": MAIL, "target": "de"}),
        ("classify", {"input": MAIL, "labels": ["a", "b"]}),
        ("attention", {"input": MAIL, "layer": 0, "head": 0}),
    ):
        found = running.post(f"/v1/{path}", content)
        assert found.status_code == 400, path
        assert found.json()["error"]["code"] == "content_filter"
    assert model.runner.n_read == 0, "the model has read nothing of it"


@pytest.mark.parametrize("action", ["mask", "refuse"])
def test_what_the_guard_cannot_read_does_not_pass_it(serve: Serve, small: LM, action: str) -> None:
    ids = small.tokenizer.encode(MAIL)
    running = serve([Echo(small)], guard=[f'personal_data(action="{action}", sides="input")'])
    for path, content in (("completions", {"prompt": ids}), ("embeddings", {"input": [ids]})):
        found = running.post(f"/v1/{path}", content)
        assert (found.status_code, found.json()["error"]["code"]) == (400, "content_filter"), path
    noting = serve([Echo(small)], guard=["length", "personal_data"])
    assert noting.post("/v1/completions", {"prompt": ids}).status_code == 200, "the control: its rules change nothing"


def test_labels_pass_the_guard_too(serve: Serve, small: LM) -> None:
    running = serve([Echo(small)], guard=["personal_data(action='mask')"])
    found = running.post("/v1/classify", {"input": "the cat", "labels": ["good", MAIL]})
    assert (found.status_code, found.json()["error"]["param"]) == (400, "labels")
    assert running.post("/v1/classify", {"input": "the cat", "labels": ["good", "bad"]}).status_code == 200


def test_a_rule_that_stands_twice_is_an_error() -> None:
    with pytest.raises(UserError, match="stands twice"):
        local_guard(["personal_data(action='refuse')", "personal_data"])


def test_the_stronger_of_two_guards_counts() -> None:
    weak, strong = (
        local_guard([f"personal_data({words})"]) for words in ("action='refuse', sides='input'", "action='mask'")
    )
    for both in (BothGuards(weak, strong), BothGuards(strong, weak)):
        assert asyncio.run(both.rules()) == {"personal_data": "mask"}
    assert asyncio.run(weak.rules()) == {"personal_data": "input"}


def test_long_texts_are_refused_by_their_length(serve: Serve, small: LM) -> None:
    running = serve([Echo(small)], guard=["length(most=10)"])
    assert running.post("/v1/chat/completions", said("x" * 11)).status_code == 400
    assert answered(running, "x" * 10)[0] == "x" * 10


def test_a_guard_that_does_not_answer_lets_nothing_pass(serve: Serve, small: LM) -> None:
    class Broken:
        async def check(self, texts: object, side: str) -> list:
            raise RuntimeError("the guard is gone")

        async def rules(self) -> dict[str, str]:
            return {}

    model = Echo(small)
    with pytest.raises(RuntimeError, match="the guard is gone"):
        asyncio.run(Broken().check([], "input"))
    running = serve([model], guard_service=Broken())
    assert running.post("/v1/chat/completions", said("a")).status_code == 500
    assert model.runner.n_read == 0


def test_a_guard_that_hangs_lets_nothing_pass(serve: Serve, small: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging:
        async def check(self, texts: object, side: str) -> list:
            await asyncio.sleep(60)
            return []

        async def rules(self) -> dict[str, str]:
            return {}

    monkeypatch.setattr("bimo.serving.guarding._PATIENCE_S", 0.2)
    model = Echo(small)
    running = serve([model], guard_service=Hanging())
    assert running.post("/v1/chat/completions", said("a")).status_code == 503
    assert model.runner.n_read == 0


def test_with_rules_that_only_note_a_stream_comes_in_pieces(serve: Serve, small: LM) -> None:
    def n_pieces(*guard: str) -> int:
        running = serve([Echo(small, lambda chunks: time.sleep(0.002))], guard=list(guard))
        text = running.post("/v1/chat/completions", said("the cat sat on a mat", stream=True)).text
        return text.count('"delta": {"content"')

    assert n_pieces("length", "personal_data") > 3
    assert n_pieces("personal_data(action='mask')") == 1, "the control: what may be masked is held back"
