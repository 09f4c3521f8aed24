"""New text for a client: guard, place, engine, and the answer in one or as a stream of server-sent events.

The first text is waited for before a stream begins, so that what fails early has a status of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from bimo.serving.answering import send_json
from bimo.serving.bounds import Send
from bimo.serving.contract import ChatMessage, EngineService, Event, Failed, Finished, GenerateCall, Piece, Started
from bimo.serving.errors import ApiError
from bimo.serving.gateway import Gateway, Routed, Visit
from bimo.serving.guarding import Told, guarded_input, guarded_output, holds_output, must_read
from bimo.serving.shapes import DONE, Shape, WholeChoice, event, usage_of

_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wants.

    Attributes:
        calls: One for each prompt.
        n: Answers to each.
        shape: How the answer is written.
        stream: Whether it comes in pieces.
        include_usage: Whether a stream ends with its token counts.
        routed: Why this model.
    """

    calls: tuple[GenerateCall, ...]
    n: int
    shape: Shape
    stream: bool
    include_usage: bool
    routed: Routed


class Generating:
    """One request for new text.

    Args:
        gateway: The services.
        visit: The request.
        wish: What it wants.
    """

    def __init__(self, gateway: Gateway, visit: Visit, wish: Wish) -> None:
        self._gateway, self._visit, self._wish = gateway, visit, wish
        self._guard = gateway.guard_of(wish.routed.model)
        self._told = Told()
        self._choices = [WholeChoice() for _ in range(wish.n * len(wish.calls))]
        self._began = False

    async def run(self, send: Send) -> None:
        """Answer."""
        gateway, visit, settings = self._gateway, self._visit, self._gateway.settings
        calls = await self._guarded()
        size = sum(_bytes(call) for call in calls)
        new_tokens = sum(int(call.params["max_tokens"]) for call in calls) * self._wish.n
        loop = asyncio.get_running_loop()
        came = time.monotonic()
        try:
            async with gateway.admission.place(visit.key, size, new_tokens) as place:
                visit.queue_s = time.monotonic() - came
                try:
                    async with asyncio.timeout(settings.first_token_s) as limit:
                        end = loop.time() + settings.answer_s
                        async with aclosing(_events(gateway.service, calls, self._wish.n)) as events:
                            await self._told_on(events, send, limit, end)
                finally:
                    place.used = visit.prompt_tokens + visit.completion_tokens
        except TimeoutError as error:
            late = "the first token" if not visit.first_token_s else "the answer"
            failure = ApiError(504, f"{late} was not there in time", "timeout", retry_after_s=5)
            if not self._began:
                raise failure from error
            await self._end_with(failure, send)

    async def _told_on(
        self, events: AsyncGenerator[Event, None], send: Send, limit: asyncio.Timeout, end: float
    ) -> None:
        """Pass on what the engine says."""
        visit, wish = self._visit, self._wish
        hold = not wish.stream or await holds_output(self._guard)
        async for news in events:
            if type(news) is Piece:
                if not visit.first_token_s:
                    visit.first_token_s = time.monotonic() - visit.began
                    limit.reschedule(end)
                visit.completion_tokens = news.tokens
                choice = self._choices[news.choice]
                choice.texts.append(news.text)
                if hold:
                    choice.logprobs += news.logprobs
                    continue
                if not self._began:
                    await self._begin(send)
                await send({"type": "http.response.body", "body": wish.shape.piece(news), "more_body": True})
            elif isinstance(news, Started):
                visit.prompt_tokens += news.prompt_tokens
            elif isinstance(news, Failed):
                failure = ApiError.of(news.error)
                if not self._began:
                    raise failure
                return await self._end_with(failure, send)
            elif isinstance(news, Finished):
                await self._finished(news, send, hold)
        return None

    async def _finished(self, news: Finished, send: Send, hold: bool) -> None:
        """The last words."""
        visit, wish = self._visit, self._wish
        visit.prompt_tokens, visit.completion_tokens = news.prompt_tokens, news.completion_tokens
        for choice, own in zip(self._choices, news.choices, strict=True):
            choice.reason = own.finish_reason
        n_before = len(self._told.verdicts)
        shown = await guarded_output(self._guard, [choice.text for choice in self._choices], self._told)
        if hold:
            self._keep_to(shown)
        usage = usage_of(news.prompt_tokens, news.completion_tokens)
        if not wish.stream:
            return await send_json(send, wish.shape.whole(self._choices, usage, self._about()))
        parts = []
        if not self._began:
            await self._begin(send)
            parts = [
                wish.shape.piece(Piece(number, choice.text, tuple(choice.logprobs)))
                for number, choice in enumerate(self._choices)
                if hold and choice.texts
            ]
        new = self._told.verdicts[n_before:]
        last = len(self._choices) - 1
        for number, choice in enumerate(self._choices):
            about = {"guard": new} if new and number == last and not hold else None
            parts.append(wish.shape.end(number, choice.reason, about))
        if wish.include_usage:
            parts.append(wish.shape.usage(usage))
        return await send({"type": "http.response.body", "body": b"".join([*parts, DONE]), "more_body": False})

    def _keep_to(self, shown: Sequence[str | None]) -> None:
        """Leave of the answers what the guard lets through; tokens would tell the rest."""
        for choice, text in zip(self._choices, shown, strict=True):
            if text != choice.text:
                choice.texts, choice.logprobs = [text or ""], []
                choice.reason = "content_filter" if text is None else choice.reason

    async def _guarded(self) -> tuple[GenerateCall, ...]:
        """The calls as the guard lets them through."""
        found = []
        for call in self._wish.calls:
            if call.messages:
                texts = await guarded_input(self._guard, [m.content for m in call.messages], self._told)
                said = zip(call.messages, texts, strict=True)
                call = replace(call, messages=tuple(ChatMessage(m.role, text) for m, text in said))
            elif isinstance(call.prompt, str):
                (text,) = await guarded_input(self._guard, [call.prompt], self._told)
                call = replace(call, prompt=text)
            else:
                await must_read(self._guard, "prompt")
            found.append(call)
        return tuple(found)

    def _about(self) -> dict[str, Any]:
        return {"route": self._wish.routed.to_dict(), "guard": list(self._told.verdicts)}

    async def _begin(self, send: Send) -> None:
        self._began = True
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        first = self._wish.shape.first(len(self._choices), self._about())
        await send({"type": "http.response.body", "body": first, "more_body": True})

    async def _end_with(self, failure: ApiError, send: Send) -> None:
        """An error in a stream that has begun."""
        await send({"type": "http.response.body", "body": event(failure.content), "more_body": False})


def _events(service: EngineService, calls: Sequence[GenerateCall], n: int) -> AsyncGenerator[Event, None]:
    return service.generate(calls[0]) if len(calls) == 1 else _merged(service, calls, n)


async def _merged(service: EngineService, calls: Sequence[GenerateCall], n: int) -> AsyncGenerator[Event, None]:
    """The events of several calls as if they were one with all their answers."""
    queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue(maxsize=4 * len(calls))

    async def pump(number: int, call: GenerateCall) -> None:
        async with aclosing(service.generate(call)) as events:
            async for one in events:
                await queue.put((number, one))

    tasks = [asyncio.create_task(pump(number, call)) for number, call in enumerate(calls)]
    ends: dict[int, Finished] = {}
    tokens = [0] * len(calls)
    try:
        while len(ends) < len(calls):
            number, one = await queue.get()
            if isinstance(one, Piece):
                tokens[number] = one.tokens
                yield replace(one, choice=number * n + one.choice, tokens=sum(tokens))
            elif isinstance(one, Finished):
                ends[number] = one
            else:
                yield one
                if isinstance(one, Failed):
                    return
        every = [ends[number] for number in range(len(calls))]
        choices = tuple(choice for end in every for choice in end.choices)
        yield Finished(choices, sum(e.prompt_tokens for e in every), sum(e.completion_tokens for e in every))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _bytes(call: GenerateCall) -> int:
    """Bytes of what a call makes the model read."""
    if call.messages:
        return sum(len(message.content.encode("utf-8")) for message in call.messages)
    return len(call.prompt.encode("utf-8")) if isinstance(call.prompt, str) else 3 * len(call.prompt)
