"""Messages go to JSON and back; what is no such message is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bimo.core.errors import UserError
from bimo.serving import contract as c
from bimo.serving.messages import Message

MESSAGES = [
    c.ModelCard("tiny", context_length=5, tasks=("translation",)),
    c.GenerateCall("1", "tiny", prompt=(1, 2)),
    c.GenerateCall(
        "1", "tiny", messages=(c.ChatMessage("user", "🙂"),), params={"stop": ["a"], "logit_bias": {"3": 1.5}}
    ),
    c.Started(3),
    c.Piece(0, "e\u0301", (c.TokenInfo("e", -0.5, (101,), (c.TokenInfo("f", -1.0),)),), 4),
    c.Finished((c.ChoiceEnd("end", 3),), 2, 3),
    c.Failed("busy", "no", retry_after_s=2.5),
    c.EmbedCall("1", "tiny", ("a", (1, 2))),
    c.Embedded(((0.5, 1.0),), 3),
    c.ApplyCall("1", "tiny", "translate", ("a",), target="de"),
    c.Applied((c.AppliedText("a", {"b": 0.5}, ("w",)),), 1, 2),
    c.AttentionCall("1", "tiny", "a", 0, 1),
    c.Attention(("a",), ((1.0,),), 2, 4),
    c.ServiceStats((c.EngineStats("tiny", "ready", tokens_per_s=3),), 5),
    c.GuardVerdict("pii", 0.5, "mask", 0, 3),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire(message: Message) -> None:
    values = json.loads(json.dumps(message.to_dict()))
    assert values["is"] == type(message).__name__
    assert type(message).from_dict(values) == message


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (c.Started, {"prompt_tokens": "3"}),
        (c.Started, {"prompt_tokens": True}),
        (c.Started, {"prompt_tokens": 3, "more": 1}),
        (c.Started, {}),
        (c.Started, {"is": "Piece", "prompt_tokens": 3}),
        (c.Started, [3]),
        (c.Failed, {"kind": "odd", "what": "x"}),
        (c.GenerateCall, {"id": "1", "model": "m", "prompt": ["a"]}),
        (c.GenerateCall, {"id": "1", "model": "m", "messages": [{"role": "user"}]}),
        (c.Embedded, {"vectors": [["a"]], "prompt_tokens": 1}),
        (c.Applied, {"results": {}, "prompt_tokens": 1, "completion_tokens": 1}),
    ],
)
def test_what_is_no_such_message_is_refused(kind: type[Message], values: Any) -> None:
    with pytest.raises(UserError, match="a message between the parts of the server is wrong"):
        kind.from_dict(values)


def test_errors_keep_their_kind_and_lose_what_is_inside() -> None:
    assert c.ServiceError.of(UserError("too long", where="prompt")).kind == "invalid"
    inside = c.ServiceError.of(RuntimeError("a text of somebody"))
    assert inside.kind == "internal"
    assert "somebody" not in inside.what
    failed = c.Failed.of(c.ServiceError("busy", "no", retry_after_s=3))
    assert failed.error.retry_after_s == 3
