"""An engine service over HTTP, for gateways: the calls of the contract, each a POST."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import cast

from bimo.serving.contract import (
    ApplyCall,
    AttentionCall,
    EmbedCall,
    EngineService,
    GenerateCall,
)
from bimo.serving.keys import KeyRing
from bimo.serving.messages import Message
from bimo.serving.offering import Offering
from bimo.serving.wire import ENGINE_CALLS, ModelList, WireSettings


def engine_app(service: EngineService, keys: KeyRing | None = None, settings: WireSettings | None = None) -> Offering:
    """The application that offers an engine service.

    Args:
        service: The models.
        keys: Who may call; None: everybody.
        settings: Every bound.
    """

    def generate(call: Message) -> AsyncGenerator[Message, None]:
        return cast("AsyncGenerator[Message, None]", service.generate(cast(GenerateCall, call)))

    async def embed(call: Message) -> AsyncGenerator[Message, None]:
        yield await service.embed(cast(EmbedCall, call))

    async def apply(call: Message) -> AsyncGenerator[Message, None]:
        yield await service.apply(cast(ApplyCall, call))

    async def attention(call: Message) -> AsyncGenerator[Message, None]:
        yield await service.attention(cast(AttentionCall, call))

    async def models(_: Message) -> AsyncGenerator[Message, None]:
        yield ModelList(await service.models())

    async def stats(_: Message) -> AsyncGenerator[Message, None]:
        yield await service.stats()

    handlers = dict(zip(ENGINE_CALLS, (generate, embed, apply, attention, models, stats), strict=True))
    return Offering(ENGINE_CALLS, handlers, keys or KeyRing(), settings or WireSettings())
