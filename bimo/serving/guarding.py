"""The guard as the gateway asks it: in this process, a long text in a thread; and what becomes of its verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from bimo.guard import Chain, Side, Verdict, made_chain, masked
from bimo.serving.contract import GuardService, GuardVerdict, ServiceError
from bimo.serving.errors import ApiError

_THREAD_CHARACTERS = 20_000
_PATIENCE_S = 30.0
_DOES = ("note", "input", "mask", "refuse")


class LocalGuard:
    """A chain of rules in this process.

    Args:
        chain: The rules.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    async def check(self, texts: Sequence[str], side: Side) -> list[list[GuardVerdict]]:
        """See `GuardService`."""
        if sum(map(len, texts)) > _THREAD_CHARACTERS:
            return await asyncio.to_thread(self._check, texts, side)
        return self._check(texts, side)

    async def rules(self) -> Mapping[str, str]:
        """See `GuardService`."""
        return {name: _does(rule) for name, rule in self._chain.rules.items()}

    def _check(self, texts: Sequence[str], side: Side) -> list[list[GuardVerdict]]:
        return [
            [GuardVerdict(v.rule, v.score, v.action, v.start, v.end) for v in self._chain.check(text, side)]
            for text in texts
        ]


class BothGuards:
    """Two guards as one: the stricter of them decides.

    Args:
        first: One.
        second: The other.
    """

    def __init__(self, first: GuardService, second: GuardService) -> None:
        self._both = (first, second)

    async def check(self, texts: Sequence[str], side: Side) -> list[list[GuardVerdict]]:
        """See `GuardService`."""
        first, second = [await guard.check(texts, side) for guard in self._both]
        every = [[*one, *other] for one, other in zip(first, second, strict=True)]
        return [sorted(verdicts, key=lambda verdict: (verdict.start, verdict.end)) for verdicts in every]

    async def rules(self) -> Mapping[str, str]:
        """See `GuardService`."""
        first, second = [dict(await guard.rules()) for guard in self._both]
        stronger = {
            name: does for name, does in second.items() if _DOES.index(does) > _DOES.index(first.get(name, "note"))
        }
        return {**second, **first, **stronger}


def local_guard(rules: Sequence[str]) -> LocalGuard:
    """The guard of rules that are named like `personal_data(action="mask")`, in this process.

    Raises:
        UserError: A rule is unknown, or refuses its parameters.
    """
    return LocalGuard(made_chain(rules))


class Told:
    """What the guard said about a request and its answer, as the answer tells it."""

    def __init__(self) -> None:
        self.verdicts: list[dict[str, Any]] = []

    def add(self, verdicts: Sequence[GuardVerdict], side: Side, number: int) -> None:
        """Verdicts on one of the texts."""
        for verdict in verdicts:
            own = {key: value for key, value in verdict.to_dict().items() if key != "is"}
            self.verdicts.append({**own, "side": side, "text": number})


async def checked(guard: GuardService, texts: Sequence[str], side: Side) -> list[list[GuardVerdict]]:
    """The guard's verdicts.

    Raises:
        ServiceError: It does not answer: then nothing passes.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await guard.check(texts, side)
    except TimeoutError as error:
        raise ServiceError("unavailable", "the guard does not answer", retry_after_s=5) from error


async def guarded_input(guard: GuardService, texts: Sequence[str], told: Told) -> list[str]:
    """Texts as they go to a model: what is masked is left out.

    Raises:
        ApiError: A rule refuses one of them.
    """
    found = []
    for number, (text, verdicts) in enumerate(zip(texts, await checked(guard, texts, "input"), strict=True)):
        told.add(verdicts, "input", number)
        refused = next((verdict for verdict in verdicts if verdict.action == "refuse"), None)
        if refused is not None:
            message = f"the guard's rule {refused.rule!r} refuses this text"
            raise ApiError(400, message, "content_filter", param="input")
        found.append(_masked(text, verdicts))
    return found


async def guarded_output(guard: GuardService, texts: Sequence[str], told: Told) -> list[str | None]:
    """Texts as they go to a client; None: a rule refuses it."""
    found: list[str | None] = []
    for number, (text, verdicts) in enumerate(zip(texts, await checked(guard, texts, "output"), strict=True)):
        told.add(verdicts, "output", number)
        refused = any(verdict.action == "refuse" for verdict in verdicts)
        found.append(None if refused else _masked(text, verdicts))
    return found


async def holds_output(guard: GuardService) -> bool:
    """Whether a rule may change what comes out, so that nothing of it can be shown before all is there."""
    return any(does in ("mask", "refuse") for does in (await guard.rules()).values())


async def must_read(guard: GuardService, param: str) -> None:
    """Whether tokens may pass that the guard cannot read.

    Raises:
        ApiError: A rule masks or refuses what it reads.
    """
    if any(does != "note" for does in (await guard.rules()).values()):
        message = "the guard of this server reads texts: send text in place of token ids"
        raise ApiError(400, message, "content_filter", param=param)


def _does(rule: object) -> str:
    """The most that a rule may do; "input": mask or refuse, what goes in alone.

    A rule whose class has `reads = False` looks at nothing but the length.
    """
    action = getattr(rule, "action", "refuse")
    if getattr(rule, "sides", "both") != "input" or action == "note":
        return str(action)
    return "input" if getattr(rule, "reads", True) else "note"


def _masked(text: str, verdicts: Sequence[GuardVerdict]) -> str:
    return masked(text, [Verdict(v.rule, v.score, v.action, v.start, v.end) for v in verdicts])
