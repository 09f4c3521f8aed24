"""From a request to a job: what was asked is checked against the model, and gets its texts, rules and writers."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bimo.core.errors import UserError, nearest
from bimo.core.spec import ModelSpec
from bimo.engine.answers import Writer
from bimo.engine.jobs import Generation, Job, Pooling, Scoring
from bimo.engine.request import Request, SamplingParams, room_after
from bimo.engine.sampling import Ids, Rules, seed_of
from bimo.engine.sequence import Sequence
from bimo.tokenizer import Tokenizer

if TYPE_CHECKING:
    from bimo.engine.constraints import Constraint, Forms


class Intake:
    """Makes jobs, from any thread.

    Args:
        spec: The model's shape.
        tokenizer: None: requests are in ids, and nothing is an end.
        adapters: Numbers of the LoRA adapters by name, from 1 on.
    """

    def __init__(self, spec: ModelSpec, tokenizer: Tokenizer | None, adapters: Mapping[str, int]) -> None:
        self.spec, self.tokenizer, self.adapters = spec, tokenizer, adapters
        ends = frozenset[int]() if tokenizer is None else tokenizer.end_ids
        self.ends = frozenset(i for i in ends if i < spec.vocab_size)  # a tokenizer may have more ids than the model
        self._arrivals = itertools.count()
        self._compiling = threading.Lock()  # the compiled forms are kept in one table

    @cached_property
    def forbidden(self) -> frozenset[int]:
        """Ids that must not appear inside an answer: control tokens, and ids beyond the tokenizer."""
        if self.tokenizer is None:
            return frozenset()
        beyond = range(self.tokenizer.vocab_size, self.spec.vocab_size)
        control = {i for i in self.tokenizer.control_tokens.values() if i < self.spec.vocab_size}
        return frozenset({*control, *beyond}) - self.ends

    def job(self, request: Request) -> Job:
        """The job for a request.

        Raises:
            UserError: The model cannot do what is asked.
        """
        self._check(request)
        arrival = next(self._arrivals)
        if request.want == "generate":
            return self._generation(request, arrival)
        sequence = self._sequence(request, (arrival, 0))
        sequence.read_to = len(request.prompt) - (
            request.want == "score"
        )  # nothing is asked about the last one's output
        if request.want == "score":
            sequence.output_from = max(request.n_context - 1, 0)
            return Scoring(request, [sequence])
        sequence.output_from = 0 if request.want == "mean" else None
        return Pooling(request, [sequence])

    def _generation(self, request: Request, arrival: int) -> Job:
        import secrets  # here: with a seed, nothing is asked of the system

        params = request.params
        seed = secrets.randbits(64) if params.seed is None else params.seed
        forbidden = np.array(sorted(self.forbidden - {*params.stop_ids}), dtype=np.int64)
        if params.beams > 1:
            from bimo.engine.beams import BeamSearch

            rules = Rules(params, seed, self.ends, forbidden)
            return BeamSearch(request, self._sequence(request, (arrival, 0)), rules, self.tokenizer)
        room = room_after(self.spec.context_length, request.prompt)
        numbers = range(params.n)
        return Generation(
            request,
            [self._sequence(request, (arrival, number)) for number in numbers],
            [self._rules(params, seed_of(seed, number), forbidden) for number in numbers],
            [Writer(self.tokenizer, params, self.ends, room) for _ in numbers],
        )

    def _rules(self, params: SamplingParams, seed: int, forbidden: Ids) -> Rules:
        return Rules(params, seed, self.ends, forbidden, self._constraint(params))

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        if not params.constrained:
            return None
        with self._compiling:
            return self._forms.of(params)

    @cached_property
    def _forms(self) -> Forms:
        from bimo.engine.constraints import Forms

        assert self.tokenizer is not None, "a request with a form and no tokenizer is refused"
        return Forms(self.tokenizer, self.spec.vocab_size)

    def _sequence(self, request: Request, order: tuple[int, int]) -> Sequence:
        room = room_after(self.spec.context_length, request.prompt)
        return Sequence(
            job=request.id,
            order=order,
            tokens=list(request.prompt),
            n_prompt=len(request.prompt),
            limit=len(request.prompt) + min(room, request.params.max_tokens),
            want=request.want,
            adapter=self.adapters[request.adapter] if request.adapter else 0,
            tenant=request.tenant,
        )

    def _check(self, request: Request) -> None:
        """What can be wrong with a request although its parameters are right in themselves."""
        room_after(self.spec.context_length, request.prompt)
        V, params = self.spec.vocab_size, request.params
        named = {"prompt": request.prompt, "stop_ids": params.stop_ids, "logit_bias": map(int, params.logit_bias)}
        for name, ids in named.items():
            wrong = next((i for i in ids if not 0 <= i < V), None)
            if wrong is not None:
                raise UserError(f"id {wrong} is not in 0 … {V - 1}", where=name, mend="Use this model's ids.")
        if request.adapter and request.adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise UserError(
                f"there is no adapter {request.adapter!r}{nearest(request.adapter, self.adapters)}",
                mend=f"The engine has: {known}.",
            )
        if self.tokenizer is None and (params.stop or params.constrained):
            raise UserError("stop strings and constraints need a tokenizer", mend="Give the engine one.")
        if request.want == "score" and len(request.prompt) <= max(request.n_context, 1):
            raise UserError("there is no token to score", mend="Give a text, or a context before it.")
