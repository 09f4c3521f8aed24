"""Applications of `bimo.applying` on an engine that a thread of its own steps: they ask, and wait for its news."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from bimo.applying.classifying import Classifier
from bimo.applying.summarizing import Summarizer
from bimo.applying.translating import Translator
from bimo.core.errors import UserError
from bimo.engine import Request, SamplingParams
from bimo.engine.answers import Completion
from bimo.engine.jobs import Job
from bimo.engine.request import Want
from bimo.serving.contract import Applied, AppliedText, ApplyCall
from bimo.serving.models import ServedModel

if TYPE_CHECKING:
    from bimo.lm import LM

_PATIENCE_S = 0.5


class LeftError(UserError):
    """Nobody waits for the result any more."""


class AppliedEngine:
    """What `applying.working` needs of an engine; a step of it is the wait for one that another thread does.

    Args:
        model: What answers.
        name: Of the model or of one of its adapters.
        tenant: Whose texts they are.

    Attributes:
        prompt_tokens: Read so far.
        completion_tokens: Written so far.
    """

    def __init__(self, model: ServedModel, name: str, tenant: str) -> None:
        self._model, self._tenant = model, tenant
        self._adapter = "" if name == model.name else name
        self._news = threading.Event()
        self._left = False
        self._jobs: dict[str, Job] = {}
        self.prompt_tokens = self.completion_tokens = 0

    def request(
        self, ids: tuple[int, ...], params: SamplingParams, *, want: Want = "generate", n_context: int = 0
    ) -> Request:
        """See `Engine.request`."""
        engine = self._model.driver.engine
        return engine.request(ids, params, want=want, n_context=n_context, adapter=self._adapter, tenant=self._tenant)

    def submit(self, request: Request) -> Job:
        """See `Engine.submit`."""
        job = self._model.driver.submit(lambda engine: request, self._news.set)
        self._jobs[request.id] = job
        self.prompt_tokens += len(request.prompt)
        return job

    def step(self) -> bool:
        """Wait until something has come of what was asked.

        Raises:
            LeftError: Nobody waits for it any more.
        """
        if self._left:
            raise LeftError("the client has left")
        self._news.wait(_PATIENCE_S)
        self._news.clear()
        for name in [name for name, job in self._jobs.items() if job.finished.is_set()]:
            result = self._jobs.pop(name).result
            if isinstance(result, Completion):
                self.completion_tokens += sum(len(choice.tokens) for choice in result.choices)
        return bool(self._jobs)

    def cancel(self, request_id: str) -> None:
        """See `Engine.cancel`."""
        job = self._jobs.pop(request_id, None)
        if job is not None:
            self._model.driver.cancel(job)

    def give_up(self) -> None:
        """From another thread: the next step ends it."""
        self._left = True
        self._news.set()


def applied(model: ServedModel, engine: AppliedEngine, call: ApplyCall) -> Applied:
    """Do what a call asks, in a thread of its own.

    Raises:
        UserError: A language or label is wrong, or a text cannot be done.
    """
    lm, texts = _as_applications_see_it(model, engine, call.model), _checked(call.texts)
    found: Iterator[Any]
    if call.task == "translate":
        found = Translator(lm, call.target, source=call.source).stream(texts)
    elif call.task == "summarize":
        found = Summarizer(lm).stream(texts)
    else:
        found = Classifier(lm, call.labels).stream(texts)
    results = []
    for number, one in enumerate(found):
        if isinstance(one, UserError):
            raise type(one)(one.what, where=f"input.{number}", mend=one.mend)
        warnings = tuple(str(notice) for notice in one.warnings)
        results.append(AppliedText(str(one), dict(getattr(one, "probabilities", {})), warnings))
    return Applied(tuple(results), engine.prompt_tokens, engine.completion_tokens)


def _as_applications_see_it(model: ServedModel, engine: AppliedEngine, name: str) -> LM:
    """What they need of an LM, with the words of the adapter that answers; the torch module is not made for them."""
    own = model.lm
    view = SimpleNamespace(
        tokenizer=model.tokenizer_of(name), tasks=own.tasks, source=model.name, engine=engine,
        label_head=own.label_head, model=SimpleNamespace(spec=model.driver.engine.spec),
    )  # fmt: skip
    return cast("LM", view)


def _checked(texts: tuple[str, ...]) -> tuple[str, ...]:
    empty = next((number for number, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise UserError("it is empty", where=f"input.{empty}", mend="Leave it out.")
    return texts
