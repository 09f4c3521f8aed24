"""Answers in OpenAI's dialect, whole and in chunks. What is the same in all chunks of a stream is written once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any, Protocol

from bimo.serving.contract import Piece, TokenInfo

_LINE_ENDS = (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\u0085", "\\u0085"))
DONE = b"data: [DONE]\n\n"
_REASONS = {
    "end": "stop",
    "stop": "stop",
    "max_tokens": "length",
    "context": "length",
    "content_filter": "content_filter",
}


class Shape(Protocol):
    """How a kind of answer is written."""

    def first(self, n: int, about: Mapping[str, Any]) -> bytes:
        """The chunk before all text; b'' when there is none."""
        ...

    def piece(self, piece: Piece) -> bytes:
        """A chunk with text."""
        ...

    def end(self, choice: int, reason: str, about: Mapping[str, Any] | None = None) -> bytes:
        """The last chunk of one of the answers."""
        ...

    def usage(self, usage: Mapping[str, int]) -> bytes:
        """The chunk behind all of them that says how many tokens it was."""
        ...

    def whole(
        self, choices: Sequence[WholeChoice], usage: Mapping[str, int], about: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The answer in one."""
        ...


class WholeChoice:
    """One of the answers, as it grows.

    Attributes:
        texts: Its pieces.
        logprobs: Its tokens, when they are reported.
        reason: Why it ended.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.logprobs: list[TokenInfo] = []
        self.reason = ""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Token counts of an answer."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def event(content: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content).encode("ascii") + b"\n\n"


def _quoted(text: str) -> bytes:
    """A text as JSON, on one line to everybody: some clients end lines at these three characters, too."""
    quoted = encode_basestring(text)
    if not text.isascii():
        for end, escape in _LINE_ENDS:
            quoted = quoted.replace(end, escape)
    return quoted.encode("utf-8", errors="replace")


class _Base:
    """What both shapes share.

    Args:
        id: Of the answer.
        model: Who answers.
        created: Seconds since 1970.
        report_logprobs: Whether tokens are reported.
    """

    kind = chunk_kind = ""

    def __init__(self, id: str, model: str, created: int, report_logprobs: bool) -> None:
        self.id, self.model, self.created, self.report_logprobs = id, model, created, report_logprobs
        self._heads: dict[int, tuple[bytes, bytes]] = {}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return event({**self._frame(self.chunk_kind), "choices": choices, **more})

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def usage(self, usage: Mapping[str, int]) -> bytes:
        """See `Shape`."""
        return self._chunk([], usage=usage)

    def _around(self, choice: int, make: Any) -> tuple[bytes, bytes]:
        """What stands before and behind a piece's text, the quotes left out."""
        if choice not in self._heads:
            before, _, behind = self._chunk([make]).partition(rb'"\u0000"')
            self._heads[choice] = before, behind
        return self._heads[choice]


class ChatShape(_Base):
    """chat.completion."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def first(self, n: int, about: Mapping[str, Any]) -> bytes:
        """See `Shape`."""
        delta = {"role": "assistant", "content": ""}
        choices = [self._choice(number, delta) for number in range(n)]
        return b"".join(
            self._chunk([choice], **({"bimo": about} if number == 0 else {})) for number, choice in enumerate(choices)
        )

    def piece(self, piece: Piece) -> bytes:
        """See `Shape`."""
        if piece.logprobs:
            logprobs = {"content": [_chat_token(token) for token in piece.logprobs]}
            return self._chunk([self._choice(piece.choice, {"content": piece.text}, logprobs)])
        before, behind = self._around(piece.choice, self._choice(piece.choice, {"content": "\x00"}))
        return before + _quoted(piece.text) + behind

    def end(self, choice: int, reason: str, about: Mapping[str, Any] | None = None) -> bytes:
        """See `Shape`."""
        own = {**self._choice(choice, {}), "finish_reason": _REASONS[reason]}
        return self._chunk([own], **({"bimo": about} if about else {}))

    def whole(
        self, choices: Sequence[WholeChoice], usage: Mapping[str, int], about: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See `Shape`."""
        found = []
        for number, choice in enumerate(choices):
            logprobs = {"content": [_chat_token(t) for t in choice.logprobs]} if self.report_logprobs else None
            message = {"role": "assistant", "content": choice.text, "refusal": None}
            own = {"index": number, "message": message, "logprobs": logprobs}
            found.append({**own, "finish_reason": _REASONS[choice.reason]})
        return {**self._frame(self.kind), "choices": found, "usage": usage, "bimo": about}

    @staticmethod
    def _choice(number: int, delta: Mapping[str, Any], logprobs: Any = None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": None}


class CompletionShape(_Base):
    """text_completion."""

    kind = chunk_kind = "text_completion"

    def first(self, n: int, about: Mapping[str, Any]) -> bytes:
        """See `Shape`."""
        return self._chunk([self._choice(0, "")], bimo=about)

    def piece(self, piece: Piece) -> bytes:
        """See `Shape`."""
        if piece.logprobs:
            return self._chunk([self._choice(piece.choice, piece.text, _completion_tokens(piece.logprobs))])
        before, behind = self._around(piece.choice, self._choice(piece.choice, "\x00"))
        return before + _quoted(piece.text) + behind

    def end(self, choice: int, reason: str, about: Mapping[str, Any] | None = None) -> bytes:
        """See `Shape`."""
        own = {**self._choice(choice, ""), "finish_reason": _REASONS[reason]}
        return self._chunk([own], **({"bimo": about} if about else {}))

    def whole(
        self, choices: Sequence[WholeChoice], usage: Mapping[str, int], about: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See `Shape`."""
        found = []
        for number, choice in enumerate(choices):
            logprobs = _completion_tokens(choice.logprobs) if self.report_logprobs else None
            found.append({**self._choice(number, choice.text, logprobs), "finish_reason": _REASONS[choice.reason]})
        return {**self._frame(self.kind), "choices": found, "usage": usage, "bimo": about}

    @staticmethod
    def _choice(number: int, text: str, logprobs: Any = None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": None}


def _chat_token(token: TokenInfo) -> dict[str, Any]:
    top = [{"token": one.token, "logprob": one.logprob, "bytes": list(one.bytes)} for one in token.top]
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.bytes), "top_logprobs": top}


def _completion_tokens(tokens: Sequence[TokenInfo]) -> dict[str, Any]:
    offsets, place = [], 0
    for token in tokens:
        offsets.append(place)
        place += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{one.token: one.logprob for one in token.top} for token in tokens],
        "text_offset": offsets,
        "bytes": [list(token.bytes) for token in tokens],  # beyond OpenAI: a token may be a part of a character
    }
