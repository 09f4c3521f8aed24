"""What all routes share: the services behind, the limits, and what is known of a request under way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bimo.core.errors import nearest
from bimo.serving.admission import Admission
from bimo.serving.bounds import Budget
from bimo.serving.contract import EngineService, GuardService, ModelCard
from bimo.serving.errors import ApiError
from bimo.serving.keys import Key, KeyRing
from bimo.serving.metrics import Metrics
from bimo.serving.settings import ServeSettings


@dataclass(frozen=True, slots=True)
class Routed:
    """Which model answers.

    Attributes:
        model: Its name.
        language: Of the text, when it was looked at.
        reason: Why this one, for a person.
    """

    model: str
    language: str | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As an answer tells it."""
        return {"language": self.language, "model": self.model, "reason": self.reason}


class ModelRouter(Protocol):
    """Chooses a model for a text."""

    def route(self, text: str, wanted: str, cards: Sequence[ModelCard], task: str = "") -> Routed:
        """The model for a text.

        Args:
            text: What it is about.
            wanted: The name that the request has; "": none.
            cards: What there is.
            task: translate, summarize, classify; "": another.
        """
        ...


class ByName:
    """The model that is asked for; without a name, the first one."""

    def route(self, text: str, wanted: str, cards: Sequence[ModelCard], task: str = "") -> Routed:
        """See `ModelRouter`."""
        if not wanted:
            return Routed(cards[0].name, None, "the first one, as no model was named")
        known = [card.name for card in cards]
        if wanted not in known:
            message = f"there is no model {wanted[:100]!r}{nearest(wanted[:100], known)}; there are: {', '.join(known)}"
            raise ApiError(404, message, "model_not_found", param="model")
        return Routed(wanted, None, "it was asked for")


@dataclass(slots=True)
class Visit:
    """A request under way: what logs and metrics tell of it.

    Attributes:
        id: Its number, in the header `x-request-id` and in logs.
        key: Whose it is.
        began: When, in seconds of a clock that never goes back.
        content: Its JSON.
        size: Bytes of its body.
        route: Pattern of its address.
        model: Who answers.
        prompt_tokens: Read.
        completion_tokens: Written.
        status: Of its answer; 0: none has begun.
        queue_s: How long it waited for a place.
        first_token_s: How long until its first text.
        left: Whether the client left before the end.
    """

    id: str
    key: Key
    began: float
    content: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    route: str = "other"
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int = 0
    queue_s: float = 0.0
    first_token_s: float = 0.0
    left: bool = False


class Gateway:
    """The services and the limits of a server.

    Args:
        service: The models.
        guard: Looks at texts.
        settings: Every bound.
        keys: Who may use it.
        router: Chooses models; None: by name.

    Attributes:
        draining: Whether the server is going down, and takes nothing new.
        visits: Requests under way.
    """

    def __init__(
        self,
        service: EngineService,
        guard: GuardService,
        settings: ServeSettings,
        keys: KeyRing,
        router: ModelRouter | None = None,
    ) -> None:
        self.service, self.guard, self.settings, self.keys = service, guard, settings, keys
        self.router = router or ByName()
        self.admission = Admission(settings, time.monotonic)
        self.budget = Budget(settings.max_buffered_bytes)
        self.metrics = Metrics()
        self.draining = False
        self.visits: set[str] = set()

    async def routed(self, text: str, wanted: str, task: str = "") -> tuple[Routed, ModelCard]:
        """The model that a request is for.

        Raises:
            ApiError: There is none of that name.
        """
        cards = await self.service.models()
        if not cards:
            raise ApiError(503, "there is no model at the moment", "unavailable", retry_after_s=5)
        routed = self.router.route(text, wanted, cards, task)
        return routed, next(card for card in cards if card.name == routed.model)
