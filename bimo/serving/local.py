"""The engine service in this process: several models and adapters behind the contract.

Reading a request (templates, tokens, grammars) is done by a few threads, never on the event loop; steps are done by one
thread for each model; applications, which ask again and again, have threads of their own that wait for the same steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bimo.core.errors import UserError, nearest
from bimo.engine import Completion, SamplingParams
from bimo.engine.jobs import Generation, Job
from bimo.engine.request import EngineError
from bimo.serving.contract import (
    Applied,
    ApplyCall,
    Attention,
    AttentionCall,
    ChoiceEnd,
    EmbedCall,
    Embedded,
    Event,
    Failed,
    Finished,
    GenerateCall,
    ModelCard,
    Piece,
    ServiceError,
    ServiceStats,
    Started,
)
from bimo.serving.driving import EngineGoneError, Watcher
from bimo.serving.logs import failure, log
from bimo.serving.models import ServedModel

Result = TypeVar("Result")
_READERS = 2
_APPLIERS = 8
_POLL_S = 0.05


class LocalEngine:
    """Models of this process.

    Args:
        models: Those that there are; their names, and those of their adapters, differ.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = tuple(models)
        self._by_name = {name: model for model in models for name in model.names}
        assert len(self._by_name) == sum(len(model.names) for model in models), "each model has a name of its own"
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="bimo-reading")
        self._appliers = ThreadPoolExecutor(_APPLIERS, thread_name_prefix="bimo-applying")
        self._closed = False
        self._under_way = 0

    async def models(self) -> tuple[ModelCard, ...]:
        """See `EngineService`."""
        return tuple(card for model in self._models for card in model.cards)

    async def generate(self, call: GenerateCall) -> AsyncGenerator[Event, None]:
        """See `EngineService`."""
        watcher = Watcher(asyncio.get_running_loop())
        self._under_way += 1
        job: Job | None = None
        try:
            model = self._model(call.model)
            job = await self._submitted(model, lambda: self._submit(model, call, watcher))
            yield Started(len(job.request.prompt))
            shown = _Shown(model, job, call.report_logprobs)
            while True:
                watcher.news.clear()
                finished = job.finished.is_set()  # before the pieces are fetched: none comes later
                for piece in shown.new():
                    yield piece
                if finished:
                    yield _end(job)
                    return
                await watcher.news.wait()
        except (UserError, ServiceError) as error:
            yield Failed.of(_service_error(error))
        finally:
            self._under_way -= 1
            if job is not None:
                model.driver.cancel(job)

    async def embed(self, call: EmbedCall) -> Embedded:
        """See `EngineService`."""
        watcher = Watcher(asyncio.get_running_loop())
        model = self._model(call.model)
        jobs: list[Job] = []
        self._under_way += 1
        try:
            for text in call.texts:
                jobs.append(await self._submitted(model, partial(_pooled, model, call, text, watcher)))
            while not all(job.finished.is_set() for job in jobs):
                await watcher.news.wait()
                watcher.news.clear()
            failed = next((job.error for job in jobs if job.error is not None), None)
            if failed is not None:
                raise _service_error(failed)
            vectors = await asyncio.wrap_future(self._readers.submit(_unit_vectors, [job.result for job in jobs]))
            return Embedded(vectors, sum(len(job.request.prompt) for job in jobs))
        except UserError as error:
            raise _service_error(error) from error
        finally:
            self._under_way -= 1
            for job in jobs:
                model.driver.cancel(job)

    async def apply(self, call: ApplyCall) -> Applied:
        """See `EngineService`."""
        from bimo.serving.applications import AppliedEngine, applied

        model = self._model(call.model)
        engine = AppliedEngine(model, call.model, call.tenant)
        return await self._worked(self._appliers, lambda: applied(model, engine, call), engine.give_up)

    async def attention(self, call: AttentionCall) -> Attention:
        """See `EngineService`."""
        from bimo.serving.attending import attention_of

        model = self._model(call.model)
        return await self._worked(self._readers, lambda: attention_of(model, call), lambda: None)

    async def _worked(
        self, pool: ThreadPoolExecutor, work: Callable[[], Result], give_up: Callable[[], None]
    ) -> Result:
        """What a thread works out; when nobody waits any more, it is told so."""
        self._under_way += 1
        try:
            return await asyncio.wrap_future(pool.submit(work))
        except asyncio.CancelledError:
            give_up()
            raise
        except UserError as error:
            raise _service_error(error) from error
        finally:
            self._under_way -= 1

    async def stats(self) -> ServiceStats:
        """See `EngineService`."""
        return ServiceStats(tuple(model.driver.stats for model in self._models), _memory_bytes())

    async def close(self, drain_seconds: float = 0.0) -> None:
        """See `EngineService`."""
        self._closed = True
        end = asyncio.get_running_loop().time() + drain_seconds
        while self._under_way and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_POLL_S)
        for model in self._models:
            await asyncio.to_thread(model.driver.stop)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._appliers.shutdown(wait=False, cancel_futures=True)

    def _model(self, name: str) -> ServedModel:
        if self._closed:
            raise ServiceError("unavailable", "the server is going down", retry_after_s=5)
        if name not in self._by_name:
            what = f"there is no model {name[:100]!r}{nearest(name[:100], self._by_name)}"
            raise ServiceError("not_found", what, "model", f"There are: {', '.join(self._by_name)}.")
        return self._by_name[name]

    def _submit(self, model: ServedModel, call: GenerateCall, watcher: Watcher) -> Job:
        """In a thread: what a call asks, read and handed to the engine."""
        params = SamplingParams.from_dict(call.params)
        return model.submit(call.model, model.ids(call.prompt, call.messages), params, watcher, tenant=call.tenant)

    async def _submitted(self, model: ServedModel, submit: Callable[[], Job]) -> Job:
        """What a thread has submitted; if nobody waits any more, it is cancelled as soon as it is there."""
        future = self._readers.submit(submit)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(lambda done: _forgotten(model, done))
            raise


def _pooled(model: ServedModel, call: EmbedCall, text: str | tuple[int, ...], watcher: Watcher) -> Job:
    """In a thread: a text, read and handed to the engine."""
    return model.submit(call.model, model.ids(text), None, watcher, want="mean", tenant=call.tenant)


def _unit_vectors(rows: Sequence[NDArray[np.float32]]) -> tuple[tuple[float, ...], ...]:
    found = np.stack(rows)
    found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return tuple(tuple(row) for row in found.tolist())


class _Shown:
    """What of a job was given away already.

    Args:
        model: Whose job it is.
        job: The job.
        report_logprobs: Whether pieces come with their tokens.
    """

    def __init__(self, model: ServedModel, job: Job, report_logprobs: bool) -> None:
        self._model, self._job = model, job
        self._writers = job.writers if isinstance(job, Generation) else []
        self._n_logprobs = [0] * len(self._writers) if report_logprobs else []

    def new(self) -> Iterator[Piece]:
        """Pieces since the last call, one for each answer."""
        pieces, texts = self._job.pieces, dict[int, str]()
        while pieces:
            number, text = pieces.popleft()
            texts[number] = texts[number] + text if number in texts else text
        n_tokens = sum(len(writer.tokens) for writer in self._writers)
        if not self._n_logprobs:
            for number, text in texts.items():
                yield Piece(number, text, (), n_tokens)
            return
        for number, writer in enumerate(self._writers):
            found = writer.logprobs[self._n_logprobs[number] :]
            self._n_logprobs[number] += len(found)
            if found or number in texts:
                yield Piece(number, texts.get(number, ""), self._model.token_infos(found), n_tokens)


def _end(job: Job) -> Event:
    """The last event of a finished job."""
    if job.error is not None:
        return Failed.of(_service_error(job.error))
    assert isinstance(job.result, Completion), "a generation that ended well has a completion"
    ends = tuple(ChoiceEnd(choice.finish_reason, len(choice.tokens)) for choice in job.result.choices)
    return Finished(ends, len(job.request.prompt), sum(end.tokens for end in ends))


def _service_error(error: Exception) -> ServiceError:
    """An error of the engine as its caller gets it."""
    if isinstance(error, EngineGoneError):
        return ServiceError("unavailable", error.what, mend=error.mend, retry_after_s=5)
    if isinstance(error, EngineError):
        log.error("request failed in the engine", extra=failure(error.__cause__ or error))
        cause = f" ({type(error.__cause__).__name__})" if error.__cause__ is not None else ""
        return ServiceError(
            "internal", f"the model failed at this request{cause}", mend="Tell whoever runs the server."
        )
    return ServiceError.of(error)


def _forgotten(model: ServedModel, done: Future[Job]) -> None:
    """Cancel what was submitted for somebody who has left."""
    if not done.cancelled() and done.exception() is None:
        model.driver.cancel(done.result())


def _memory_bytes() -> int:
    """Resident memory of this process; 0 where that is not known."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    import resource

    return pages * resource.getpagesize()
