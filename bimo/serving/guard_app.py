"""A guard over HTTP, for gateways: the calls of the contract, each a POST."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import cast

from bimo.serving.contract import GuardService
from bimo.serving.keys import KeyRing
from bimo.serving.messages import Message
from bimo.serving.offering import Offering
from bimo.serving.wire import GUARD_CALLS, CheckCall, Checked, RuleList, WireSettings


def guard_app(service: GuardService, keys: KeyRing | None = None, settings: WireSettings | None = None) -> Offering:
    """The application that offers a guard.

    Args:
        service: The guard.
        keys: Who may call; None: everybody.
        settings: Every bound.
    """

    async def check(call: Message) -> AsyncGenerator[Message, None]:
        asked = cast(CheckCall, call)
        yield Checked(tuple(map(tuple, await service.check(asked.texts, asked.side))))

    async def rules(_: Message) -> AsyncGenerator[Message, None]:
        yield RuleList(dict(await service.rules()))

    handlers = dict(zip(GUARD_CALLS, (check, rules), strict=True))
    return Offering(GUARD_CALLS, handlers, keys or KeyRing(), settings or WireSettings())
