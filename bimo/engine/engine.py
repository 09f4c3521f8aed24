"""The engine as a person uses it: prompts in, completions, streams, scores, vectors and labels out.

All of them are requests to the same loop of steps (`steps.StepLoop`) and share its batches. A text does not depend on
what else is under way. Control tokens other than the ends are never generated.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from bimo.core.errors import UserError
from bimo.engine.answers import Completion
from bimo.engine.choosing import TextModel, as_it_lies, choose_runner, gpt_of, is_gpt
from bimo.engine.intake import Intake
from bimo.engine.jobs import Generation, Job
from bimo.engine.request import Request, SamplingParams, Want
from bimo.engine.runner import Runner
from bimo.engine.sampling import Floats
from bimo.engine.settings import EngineSettings
from bimo.engine.steps import StepLoop
from bimo.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bimo.model.gpt import GPT
    from bimo.model.lora import Adapter

Prompt = str | Sequence[int]
Tell = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a given text is.

    Attributes:
        tokens: Its ids.
        logprobs: Log-probability of each, after those before it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """Log-probability of the whole text, in nats."""
        return float(sum(self.logprobs))


@dataclass(frozen=True, slots=True)
class Label:
    """The likeliest label of a text.

    Attributes:
        label: Its name.
        probabilities: Of all labels; 1 together.
    """

    label: str
    probabilities: dict[str, float]


class Engine(StepLoop):
    """Generates, scores, embeds and classifies with one model, many requests at once.

    It is for the weights as they are when it is made: native kernels have a copy of their own, and the cache holds what
    these weights computed. After training, make another; `bimo.LM` sees to that itself.

    Args:
        model: A GPT; or what has `.model` and `.tokenizer`, as a `bimo.LM`.
        tokenizer: The tokenizer that a GPT was trained with; None: prompts are ids, and nothing is an end.
        settings: Memory, batch and arithmetic.
        draft: A small model with the same ids, which guesses; its guesses make no difference to the text.
        adapters: LoRA adapters, which requests choose by name.
        runner: What runs the model; None: the fastest that can.
    """

    def __init__(
        self,
        model: GPT | TextModel,
        tokenizer: Tokenizer | None = None,
        settings: EngineSettings | None = None,
        *,
        draft: GPT | TextModel | None = None,
        adapters: Sequence[Adapter] = (),
        runner: Runner | None = None,
    ) -> None:
        settings = settings or EngineSettings()
        self._source = source = cast(Any, model)
        if tokenizer is None and not is_gpt(model) and getattr(model, "has_tokenizer", True):
            tokenizer = source.tokenizer
        self.tokenizer, self.spec = tokenizer, as_it_lies(model).spec
        small = None
        if draft is not None:
            from bimo.engine.speculation import check_draft

            spec = as_it_lies(draft).spec
            check_draft(self.spec.vocab_size, spec.vocab_size)
            small = spec.context_length, choose_runner(draft, settings)
        numbers = {adapter.name: number for number, adapter in enumerate(adapters, start=1)}
        super().__init__(
            runner or choose_runner(model, settings, adapters),
            Intake(self.spec, tokenizer, numbers),
            settings,
            small,
        )
        self._names = itertools.count(1)

    @property
    def model(self) -> GPT:
        """The torch module; it is made when it is first asked for."""
        return gpt_of(self._source)

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str] = "",
        keep_errors: bool = False,
        on_progress: Tell | None = None,
    ) -> list[Completion]:
        """An answer to each prompt, in order.

        Args:
            prompts: Texts, or ids as the tokenizer gives them.
            params: For all of them, or one for each.
            adapter: The LoRA adapter to use, for all of them, or one for each; "": none.
            keep_errors: Give a prompt that cannot be answered a Completion with the error, instead of raising it after
                all others were answered.
            on_progress: Told after each step which share of the prompts is answered.
        """
        every = _prompts(prompts)
        each = list(params) if isinstance(params, Sequence) else [params] * len(every)
        names = [adapter] * len(every) if isinstance(adapter, str) else list(adapter)
        for what, given in (("params", each), ("adapters", names)):
            if len(given) != len(every):
                mend = "Give one for all, or one for each."
                raise UserError(f"{len(every)} prompts and {len(given)} {what}", mend=mend)
        requests = [
            self.request(prompt, own, adapter=name) for prompt, own, name in zip(every, each, names, strict=True)
        ]
        found = self._answers(requests, keep_errors=keep_errors, on_progress=on_progress)
        return [Completion((), answer) if isinstance(answer, UserError) else answer for answer in found]

    def complete(self, prompt: Prompt, params: SamplingParams | None = None) -> Completion:
        """The whole answer to one prompt."""
        return self._answers([self.request(prompt, params)])[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Generator[str, None, Completion]:
        """Pieces of the answer as they become whole characters; returns the completion. Closing it cancels."""
        job = self.submit(self.request(prompt, _single(params)))
        try:
            while True:
                finished = job.finished.is_set()  # before the pieces are fetched: none comes later
                while job.pieces:
                    yield job.pieces.popleft()[1]
                if finished:
                    return self._result(job)
                self.step()
        finally:
            self._give_up(job)

    async def astream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncGenerator[str, None]:
        """Like `stream`, for `async for`: a thread runs the steps, for all such streams together."""
        import asyncio  # here: many engines never serve an event loop

        loop, news = asyncio.get_running_loop(), asyncio.Event()
        job = self.submit(self.request(prompt, _single(params)))

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(news.set)
            except RuntimeError:  # the loop is closed: nobody listens any more
                self.cancel(job.request.id)

        job.listener = wake
        self.drive()
        try:
            while True:
                news.clear()
                finished = job.finished.is_set()
                while job.pieces:
                    yield job.pieces.popleft()[1]
                if finished:
                    self._result(job)
                    return
                await news.wait()
        finally:
            self._give_up(job)

    def tokens(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[int]:
        """New token ids, one by one, until an end token, `max_tokens` or the end of the context."""
        job = self.submit(self.request(prompt, _single(params)))
        assert isinstance(job, Generation), "a single answer without beams is drawn"
        shown = 0
        try:
            while True:
                finished = job.finished.is_set()
                new = job.writers[0].tokens[shown:]
                yield from new
                shown += len(new)
                if finished:
                    self._result(job)
                    return
                self.step()
        finally:
            self._give_up(job)

    def score(
        self,
        texts: Sequence[str],
        contexts: Sequence[Prompt] | None = None,
        *,
        adapter: str = "",
        on_progress: Tell | None = None,
    ) -> list[Score]:
        """How likely each text is, token by token, by the model alone.

        Args:
            texts: What is scored.
            contexts: What stands before each, as text or as ids; None: nothing but what the tokenizer puts before a
                prompt. Without even that, the first token has no probability and is left out.
            adapter: The LoRA adapter to use.
            on_progress: Told after each step which share is scored.
        """
        texts = _texts(texts, "texts")
        contexts = [""] * len(texts) if contexts is None else _contexts(contexts, "contexts")
        if len(contexts) != len(texts):
            raise UserError(f"{len(texts)} texts and {len(contexts)} contexts", mend="Give one for each.")
        requests, tokens = [], []
        for text, context in zip(texts, contexts, strict=True):
            before = self.prompt_ids(context) if isinstance(context, str) else _ids(context)
            own = self._need_tokenizer().encode(text)
            tokens.append(own if before else own[1:])
            requests.append(self.request([*before, *own], want="score", adapter=adapter, n_context=len(before)))
        found = self._answers(requests, on_progress=on_progress)
        return [Score(tuple(ids), logprobs) for ids, logprobs in zip(tokens, found, strict=True)]

    def embed(
        self,
        texts: Sequence[Prompt],
        *,
        pooling: Literal["mean", "last"] = "mean",
        normalize: bool = True,
        adapter: str = "",
    ) -> Floats:
        """A vector for each text, float32 (n, C): the mean of the last hidden states, or the last one.

        Args:
            texts: Texts, or ids.
            pooling: What is taken of the states.
            normalize: Scale to length 1.
            adapter: The LoRA adapter to use.
        """
        if pooling not in ("mean", "last"):
            raise UserError(f"pooling must be mean or last, is {pooling!r}", mend="Choose one of them.")
        rows = self._answers([self.request(text, want=pooling, adapter=adapter) for text in _prompts(texts)])
        vectors = np.stack(rows) if rows else np.empty((0, self.spec.d_model), dtype=np.float32)
        if normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def classify(
        self, texts: Sequence[Prompt], labels: Sequence[str], *, adapter: str = "", on_progress: Tell | None = None
    ) -> list[Label]:
        """The label that the model finds likeliest to follow each text (or ids), which should end with the question."""
        texts, labels = _contexts(texts, "texts"), _texts(labels, "labels")
        if not labels or len(set(labels)) < len(labels):
            raise UserError(f"labels must be different texts, are {list(labels)}", mend="Name each once.")
        pairs = [(text, label) for text in texts for label in labels]
        scores = self.score(
            [label for _, label in pairs], [text for text, _ in pairs], adapter=adapter, on_progress=on_progress
        )
        totals = np.array([score.total for score in scores]).reshape(len(texts), len(labels))
        weights = np.exp(totals - totals.max(axis=1, keepdims=True)) if len(texts) else totals
        found = []
        for row in weights / weights.sum(axis=1, keepdims=True):
            found.append(Label(labels[int(row.argmax())], dict(zip(labels, row.tolist(), strict=True))))
        return found

    def prompt_ids(self, text: str) -> list[int]:
        """A prompt's ids: what the tokenizer puts before a prompt (the beginning of a document), then the text."""
        tokenizer = self._need_tokenizer()
        return [*tokenizer.prefix_ids, *tokenizer.encode(text)]

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        want: Want = "generate",
        adapter: str = "",
        n_context: int = 0,
        tenant: str = "",
    ) -> Request:
        """A request with a name of its own, for `submit`."""
        ids = self.prompt_ids(prompt) if isinstance(prompt, str) else _ids(prompt)
        if params is not None and not isinstance(params, SamplingParams):
            raise UserError(f"params must be SamplingParams, is {type(params).__name__}", mend="Make one of them.")
        name = f"request-{next(self._names)}"
        return Request(name, tuple(ids), params or SamplingParams(), want, adapter, n_context, tenant)

    def _answers(
        self, requests: Sequence[Request], *, keep_errors: bool = False, on_progress: Tell | None = None
    ) -> list[Any]:
        """What comes of requests, in order; the first error is raised when all are done, or takes its place."""
        jobs: list[Job | UserError] = []
        for request in requests:
            try:
                jobs.append(self.submit(request))
            except UserError as error:
                jobs.append(error)
        try:
            for job in jobs:
                while isinstance(job, Job) and not job.finished.is_set():
                    self.step()
                    if on_progress is not None:
                        on_progress(sum(not isinstance(j, Job) or j.finished.is_set() for j in jobs) / len(jobs))
        finally:
            for job in jobs:
                if isinstance(job, Job):
                    self._give_up(job)
        found = [job if isinstance(job, UserError) else job.error or job.result for job in jobs]
        for number, answer in enumerate(found):
            if isinstance(answer, UserError) and not keep_errors:
                if len(found) == 1:
                    raise answer
                raise UserError(answer.what, where=answer.where or f"prompt {number}", mend=answer.mend) from answer
        return found

    def _give_up(self, job: Job) -> None:
        """Cancel a job that is still under way."""
        if not job.finished.is_set():
            self.cancel(job.request.id)

    @staticmethod
    def _result(job: Job) -> Any:
        """The result of a finished job."""
        if job.error is not None:
            raise job.error
        return job.result

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(
                "this engine has no tokenizer, so it knows ids and no text", mend="Give ids, or a tokenizer."
            )
        return self.tokenizer


def _prompts(given: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """A list of prompts, also of a single one."""
    try:
        prompts: list[Any] = [given] if isinstance(given, str) else list(given)
    except TypeError:
        raise UserError(f"prompts are texts or ids, not {type(given).__name__}", mend="Give a list.") from None
    return [prompts] if prompts and _is_id(prompts[0]) else prompts


def _is_id(value: object) -> bool:
    """Whether it is a whole number, also one of NumPy or torch."""
    return not getattr(value, "shape", ()) and hasattr(value, "__index__")


def _ids(prompt: Sequence[int]) -> list[int]:
    """Ids as plain numbers, of a list, an array or a tensor."""
    try:
        return [operator.index(i) for i in prompt]
    except TypeError:
        raise UserError("a prompt is a text, or ids, which are whole numbers", mend="Give one of both.") from None


def _texts(given: Sequence[str], name: str) -> list[str]:
    """A list of texts: a single one would be taken for its characters."""
    texts = [] if isinstance(given, str) else list(given)
    if isinstance(given, str) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} must be a list of texts", mend="Put a single one into brackets.")
    return texts


def _contexts(given: Sequence[Prompt], name: str) -> list[Prompt]:
    """A list of texts or ids, as `_texts`."""
    if isinstance(given, str) or not all(isinstance(one, str) or hasattr(one, "__len__") for one in given):
        _texts(given, name)  # type: ignore[arg-type]  # it says what is wrong
    return list(given)


def _single(params: SamplingParams | None) -> SamplingParams:
    """Parameters of a stream, which has one answer, token by token."""
    params = params or SamplingParams()
    if params.n > 1 or params.beams > 1:
        raise UserError("a stream has one answer and no beams", mend="Use generate, or n = 1 and beams = 1.")
    return params
