"""What both ends of a wire between the parts of a server share: addresses, headers, lines, and how silence is read.

A call is a POST of one message. Its answer is a stream of lines, each a message of the contract; an empty line says
that the other side still lives, so that silence means that it does not. Whoever closes the connection has cancelled the
call. Each call names the contract that it speaks, which is a fingerprint of all messages: two parts of different
releases say so instead of misunderstanding each other.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from bimo.core.errors import UserError
from bimo.core.settings import Settings
from bimo.serving import contract
from bimo.serving.contract import (
    Applied,
    ApplyCall,
    Attention,
    AttentionCall,
    EmbedCall,
    Embedded,
    Failed,
    Finished,
    GenerateCall,
    GuardVerdict,
    ModelCard,
    Piece,
    ServiceError,
    ServiceStats,
    Started,
)
from bimo.serving.keys import Key, KeyRing
from bimo.serving.messages import Message

CONTRACT = b"x-bimo-contract"
HEALTH = "/health"


@dataclass(frozen=True, slots=True)
class Nothing(Message):
    """A call that needs no words."""


@dataclass(frozen=True, slots=True)
class ModelList(Message):
    """What can be asked for."""

    cards: tuple[ModelCard, ...]


@dataclass(frozen=True, slots=True)
class CheckCall(Message):
    """Texts that the guard looks at.

    Attributes:
        texts: One by one.
        side: Whether they go into a model or came out of it.
    """

    texts: tuple[str, ...]
    side: Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Checked(Message):
    """The verdicts on each text."""

    verdicts: tuple[tuple[GuardVerdict, ...], ...]


@dataclass(frozen=True, slots=True)
class RuleList(Message):
    """Each rule's name, and what it looks for."""

    rules: dict[str, str]


ENGINE_CALLS: Mapping[str, type[Message]] = {
    "/engine/generate": GenerateCall,
    "/engine/embed": EmbedCall,
    "/engine/apply": ApplyCall,
    "/engine/attention": AttentionCall,
    "/engine/models": Nothing,
    "/engine/stats": Nothing,
}
GUARD_CALLS: Mapping[str, type[Message]] = {"/guard/check": CheckCall, "/guard/rules": Nothing}
_ANSWERS: Sequence[type[Message]] = (
    *(Started, Piece, Finished, Failed, Embedded, Applied, Attention, ModelList, ServiceStats, Checked, RuleList),
)
ANSWERS: Mapping[str, type[Message]] = {answer.__name__: answer for answer in _ANSWERS}


@dataclass(frozen=True)
class WireSettings(Settings):
    """How the parts of a server talk to each other when each is a process of its own."""

    connect_s: float = 2.0
    """A part that takes no connection within so long is not there."""
    silence_s: float = 10.0
    """A part that says nothing for so long is gone; while it works, it sends an empty line every `beat_s`."""
    beat_s: float = 2.0
    """How often a part says that it still lives."""
    poll_s: float = 0.5
    """How often a gateway looks how its engines are."""
    doubt_s: float = 2.0
    """An engine that does not say within so long how it is gets requests only where there is no other; after
    `silence_s`, none."""
    moves: int = 2
    """How often a request whose engine died before the first piece of its answer is handed to another engine; 0: never.
    A request that kills every engine it meets takes so many with it, and no more."""
    retry_after_s: float = 3.0
    """When clients are told to try again while there is no engine."""
    max_call_bytes: int = 32 * 2**20
    """Of one call; larger ones are refused before they are read."""
    max_calls: int = 4096
    """Calls that a part works on at once; more are told that it is busy."""
    max_line_bytes: int = 256 * 2**20
    """Of one line of an answer."""

    def problems(self) -> list[str]:
        names = ("connect_s", "silence_s", "beat_s", "poll_s", "doubt_s", "retry_after_s")
        found = [f"{n} must lie in 0 … 3600 and not be 0, is {getattr(self, n)}" for n in names
                 if not 0 < getattr(self, n) <= 3600]  # fmt: skip
        if self.beat_s * 2 > self.silence_s:
            found.append(f"beat_s must be at most half of silence_s ({self.silence_s}), is {self.beat_s}")
        least = {"moves": 0, "max_call_bytes": 1024, "max_calls": 1, "max_line_bytes": 1024}
        return found + [f"{n} must be at least {m}, is {getattr(self, n)}" for n, m in least.items()
                        if getattr(self, n) < m]  # fmt: skip


@functools.cache
def contract_version() -> str:
    """A fingerprint of every message: its name, its fields and their types."""
    found: dict[str, Any] = {"Kind": get_args(contract.Kind), "Task": get_args(contract.Task)}
    for value in (*vars(contract).values(), *globals().values()):
        if isinstance(value, type) and issubclass(value, Message) and value is not Message:
            own = fields(value)  # type: ignore[arg-type]  # every subclass is a dataclass
            found[value.__name__] = [f"{field.name}: {field.type}" for field in own]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


class RefusedError(ServiceError):
    """The other side does not take calls of this one, now or later: a wrong key, another release."""

    def __init__(self, what: str) -> None:
        super().__init__("unavailable", what, mend="Tell whoever runs the server.")


def line(message: Message) -> bytes:
    """A message as a line."""
    return json.dumps(message.to_dict(), separators=(",", ":")).encode() + b"\n"


def message_of(words: bytes) -> Message:
    """The message in a line of an answer.

    Raises:
        UserError: It is none.
    """
    try:
        return message_of_values(json.loads(words))
    except (ValueError, RecursionError) as error:
        raise _no_message() from error


def message_of_values(values: Any) -> Message:
    """The message of an answer in plain values.

    Raises:
        UserError: It is none.
    """
    kind = ANSWERS.get(values.get("is", "")) if isinstance(values, dict) else None
    if kind is None:
        raise _no_message()
    return kind.from_dict(values)


def _no_message() -> UserError:
    what = "a line of an answer is no message of the contract"
    return UserError(what, mend="Run the same release of bimo on both sides.")


def shared_secret(secret: str) -> KeyRing:
    """The keys of a part that knows one secret only, which two processes have agreed on."""
    return KeyRing((Key("front", hashlib.sha256(secret.encode()).hexdigest()),))
