"""The engine's steps: many requests at once through one model, each answered as if it were alone.

`StepLoop.step` is the whole of it: schedule → run → choose → publish. Requests come and go between steps, from any
thread; whoever wants an answer drives the steps, or has a thread do it. An error stays with its request.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bimo.core.errors import UserError
from bimo.engine.blocks import BlockPool
from bimo.engine.intake import Intake
from bimo.engine.jobs import Generation, Job
from bimo.engine.request import EngineError, Request
from bimo.engine.runner import Chunk, Rows, Runner
from bimo.engine.sampling import Rules
from bimo.engine.scheduler import Scheduler
from bimo.engine.sequence import Sequence
from bimo.engine.settings import EngineSettings

if TYPE_CHECKING:
    from bimo.engine.speculation import Guesser

Planned = tuple[Sequence, Chunk]
_REMEMBERED_STEPS = 64


@dataclass(frozen=True, slots=True)
class Stats:
    """What an engine is doing.

    Attributes:
        running: Texts with blocks.
        waiting: Texts without.
        free_blocks: Blocks that no text holds.
        n_blocks: All blocks.
        n_tokens: Tokens chosen so far.
        tokens_per_s: Of the last steps.
        n_preempted: How often a text gave up its blocks.
        n_guessed: Guesses checked so far.
        n_accepted: Those that were right.
    """

    running: int
    waiting: int
    free_blocks: int
    n_blocks: int
    n_tokens: int
    tokens_per_s: float
    n_preempted: int
    n_guessed: int
    n_accepted: int


class StepLoop:
    """Runs steps for the requests under way.

    Args:
        runner: Runs the model.
        intake: Makes jobs of requests.
        settings: Memory and batch.
        draft: A small model that guesses: the tokens that it sees, and what runs it.

    Attributes:
        jobs: Requests under way, by id.
    """

    def __init__(
        self, runner: Runner, intake: Intake, settings: EngineSettings, draft: tuple[int, Runner] | None = None
    ) -> None:
        self.runner, self.intake, self.settings = runner, intake, settings
        self.pool = BlockPool(runner.n_blocks, runner.block_size, share=settings.share_prefixes)
        self.scheduler = Scheduler(self.pool, settings, runner.stretch)
        self.guesser: Guesser | None = None
        if settings.guess_tokens or draft is not None:
            from bimo.engine.speculation import DraftModel, PromptLookup
        if settings.guess_tokens and draft is None:
            self.guesser = PromptLookup(settings.guess_tokens)
        elif draft is not None:
            self.guesser = DraftModel(
                draft[1], self._rules_of, most=settings.guess_tokens or 4, step_tokens=settings.step_tokens,
                context_length=draft[0],
            )  # fmt: skip
        self.jobs: dict[str, Job] = {}
        self._door = threading.Lock()  # held for a moment
        self._stepping = threading.Lock()  # held for a step
        self._arrived: deque[Job] = deque()
        self._cancelled: deque[str] = deque()
        self._driver: threading.Thread | None = None
        self._n_tokens = self._n_guessed = self._n_accepted = 0
        self._times: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED_STEPS)

    def submit(self, request: Request) -> Job:
        """Take a request in; it takes part in the next step. From any thread.

        Raises:
            UserError: The model cannot do what is asked.
        """
        job = self.intake.job(request)
        with self._door:
            if request.id in self.jobs:
                raise UserError(f"a request {request.id!r} is under way already", mend="Give each an id of its own.")
            self.jobs[request.id] = job
            self._arrived.append(job)
        return job

    def cancel(self, request_id: str) -> None:
        """Give a request up and free its blocks, after the step that is running, if one is. From any thread."""
        self._cancelled.append(request_id)
        self._sweep()

    def step(self) -> bool:
        """Do one step; returns whether there is more to do."""
        with self._stepping:
            self._take_in()
            self._guess()
            plan = self.scheduler.schedule()
            assert plan.chunks or plan.failed or not self.scheduler.running, "texts wait for each other"
            for sequence, error in plan.failed:
                self._fail(sequence.job, error)
            for source, target in plan.copies:
                self.runner.copy_block(source, target)
            touched: dict[Job, None] = {}
            for (sequence, chunk), rows in self._run(plan.chunks):
                job = self.jobs.get(sequence.job)
                if job is not None and self._take(job, sequence, chunk, rows):
                    touched[job] = None
            self._times.append((time.perf_counter(), self._n_tokens))
            for job in touched:
                job.settle(self.scheduler)
                if job.finished.is_set():
                    self.jobs.pop(job.request.id, None)
            self._take_in()
        self._sweep()
        return bool(self.jobs)

    @property
    def stats(self) -> Stats:
        """Counts of this moment."""
        times = tuple(self._times)
        seconds = time.perf_counter() - times[0][0] if times else 0.0
        return Stats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting) + len(self._arrived),
            free_blocks=self.pool.n_free,
            n_blocks=self.pool.n_blocks,
            n_tokens=self._n_tokens,
            tokens_per_s=(self._n_tokens - times[0][1]) / seconds if seconds else 0.0,
            n_preempted=self.scheduler.n_preempted,
            n_guessed=self._n_guessed,
            n_accepted=self._n_accepted,
        )

    def drive(self) -> None:
        """Have steps done in a thread as long as somebody listens to a job."""
        with self._door:
            if self._driver is None or not self._driver.is_alive():  # a forked process has none of its parent's threads
                self._driver = threading.Thread(target=self._keep_stepping, name="bimo-engine", daemon=True)
                self._driver.start()

    def _keep_stepping(self) -> None:
        while True:
            with self._door:
                if not any(job.listener for job in tuple(self.jobs.values())):  # others end jobs meanwhile
                    self._driver = None
                    return
            try:
                self.step()
            except Exception as error:  # nobody is above this thread: those who wait get the error
                with self._stepping, self._door:
                    self._take_in()
                    for name in tuple(self.jobs):
                        self._fail(name, _as_user_error(error))

    def _take_in(self) -> None:
        """What came from other threads: new requests, then those that are given up."""
        # Counted first: whoever is given up by now has arrived by now; one who arrives later may be given up later.
        n_cancelled = len(self._cancelled)
        while self._arrived:
            for sequence in self._arrived.popleft().sequences:
                self.scheduler.add(sequence)
        for _ in range(n_cancelled):
            self._fail(self._cancelled.popleft(), None)

    def _sweep(self) -> None:
        """See to what is given up, unless a step is running, at whose end somebody does it."""
        while self._cancelled and self._stepping.acquire(blocking=False):
            try:
                self._take_in()
            finally:
                self._stepping.release()

    def _guess(self) -> None:
        if self.guesser is not None:
            writing = [s for s in self.scheduler.running if s.pending == 1 and s.want == "generate"]
            self.guesser.guess([s for s in writing if isinstance(self.jobs.get(s.job), Generation)])

    def _rules_of(self, sequence: Sequence) -> Rules:
        job = self.jobs[sequence.job]
        assert isinstance(job, Generation), "only texts that are drawn have guesses"
        return job.rules[sequence.order[1]]

    def _run(self, planned: list[Planned]) -> Iterator[tuple[Planned, Rows]]:
        """The outputs of each chunk."""
        read = [p for p in planned if p[0].want in ("generate", "score")]
        pooled = [p for p in planned if p[0].want not in ("generate", "score")]
        for part, run in ((read, self.runner.logits), (pooled, self.runner.hidden)):
            if not part:
                continue
            try:
                rows = run([chunk for _, chunk in part])
            except Exception as error:  # one of them is to blame: each alone, and who fails gets the error
                if len(part) == 1:
                    self._fail(part[0][0].job, _as_user_error(error))
                else:
                    for one in part:
                        yield from self._run([one])
                continue
            start = 0
            for one in part:
                end = start + one[1].n_outputs
                yield one, rows[start:end]
                start = end

    def _take(self, job: Job, sequence: Sequence, chunk: Chunk, rows: Rows) -> bool:
        """Give a job the outputs of a chunk; False: it failed."""
        before = len(sequence.tokens)
        try:
            kept = job.take(sequence, chunk, rows)
        except Exception as error:  # of this request alone, which gets it
            self._fail(sequence.job, _as_user_error(error))
            return False
        self.scheduler.advance(sequence, kept)
        self._n_tokens += len(sequence.tokens) - before
        if chunk.n_outputs > 1 and sequence.want == "generate":
            self._n_guessed += chunk.n_outputs - 1
            self._n_accepted += sequence.n_accepted
        return True

    def _fail(self, name: str, error: UserError | None) -> None:
        """End a job without a result; None: it is cancelled."""
        job = self.jobs.pop(name, None)
        if job is not None:
            job.stop(self.scheduler, error)


def _as_user_error(error: Exception) -> UserError:
    """An error as its request gets it."""
    if isinstance(error, UserError):
        return error
    wrapped = EngineError(
        f"the request failed ({type(error).__name__}: {error})", mend="The engine goes on without it."
    )
    wrapped.__cause__ = error
    return wrapped
