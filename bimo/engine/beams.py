"""Beam search: the likeliest texts, not drawn ones. Its beams are texts like all others to the scheduler.

The conventions are those of transformers with early_stopping="never": a text's score is its log-probability divided by
length ** length_penalty, its end counted; an end counts among the `beams` best continuations only; the search is over
when no beam can beat the worst of the best `beams` finished texts. Beams share the blocks of what they have in common.
When one had to give up its blocks, the others wait until it was read again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bimo.core.errors import UserError
from bimo.engine.answers import Choice, Completion, Writer
from bimo.engine.jobs import Job
from bimo.engine.request import Request
from bimo.engine.runner import Chunk, Rows
from bimo.engine.sampling import Floats, Rules, check_finite, log_total
from bimo.engine.scheduler import Scheduler
from bimo.engine.sequence import Sequence
from bimo.tokenizer import Tokenizer

_NO_LOGITS = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A continuation: its log-probability, and whose next token it is."""

    logprob: float
    parent: Sequence
    token: int


class BeamSearch(Job):
    """One search.

    Args:
        request: What was asked.
        sequence: The prompt.
        rules: How logits are changed; their constraint and temperature have no part in it.
        tokenizer: Ids to text.
    """

    def __init__(self, request: Request, sequence: Sequence, rules: Rules, tokenizer: Tokenizer | None) -> None:
        super().__init__(request, [sequence])
        self.rules, self.tokenizer = rules, tokenizer
        self.ends = rules.ends | set(request.params.stop_ids)
        self._sums = {sequence: 0.0}
        self._next: dict[Sequence, Floats] = {}
        self._finished: list[tuple[float, list[int]]] = []

    def take(self, sequence: Sequence, chunk: Chunk, rows: Rows) -> int:
        """Keep the log-probabilities of what may follow, (V,), until all beams have theirs."""
        if chunk.n_outputs:
            check_finite(float(rows[-1].max()))
            scores = self.rules.scores(rows[-1], sequence.tokens, sequence.n_prompt)
            self._next[sequence] = self._sums[sequence] + scores.astype(np.float64) - log_total(scores)
            sequence.idle = True
        return len(chunk.tokens)

    def settle(self, scheduler: Scheduler) -> None:
        """When all beams have been read: choose the next ones."""
        if self.sequences and len(self._next) == len(self.sequences):
            self._choose(scheduler)
        super().settle(scheduler)

    def collect(self) -> Completion:
        """The best `n` texts."""
        choices = tuple(self._choice(*found) for found in self._finished[: self.request.params.n])
        if not choices:
            self.error = UserError("the rules leave no text", mend="Loosen logit_bias or min_tokens.")
        else:
            self.pieces.append((0, choices[0].text))
        return Completion(choices, self.error)

    def _choose(self, scheduler: Scheduler) -> None:
        beams = self.request.params.beams
        alive: list[_Candidate] = []
        for rank, candidate in enumerate(self._candidates((1 + max(1, len(self.ends))) * beams)):
            parent = candidate.parent
            if candidate.token in self.ends or len(parent.tokens) + 1 >= parent.limit:
                if rank < beams:
                    self._finish(candidate)
            elif len(alive) < beams:
                alive.append(candidate)
        if alive and not self._can_win(alive[0]):
            alive = []
        parents, self.sequences, self._next = self.sequences, [], {}
        sums, self._sums = self._sums, {}
        assert len(sums) == len(parents), "each beam has one sum"
        for number, candidate in enumerate(alive):
            parent = candidate.parent
            child = replace(
                parent, order=(parent.order[0], number), tokens=[*parent.tokens, candidate.token], table=None,
                cached=0, keys=[], guesses=[], idle=False,
            )  # fmt: skip
            scheduler.fork(parent, child)
            self.sequences.append(child)
            self._sums[child] = candidate.logprob
        for parent in parents:
            scheduler.remove(parent)

    def _candidates(self, count: int) -> list[_Candidate]:
        """The likeliest continuations of all beams, likeliest first."""
        table = np.stack([self._next[sequence] for sequence in self.sequences])  # (beams, V)
        flat = table.ravel()
        count = min(count, int(np.isfinite(flat).sum()))
        if not count:
            return []
        best = np.argpartition(flat, -count)[-count:]
        best = best[np.lexsort((best, -flat[best]))]
        width = table.shape[1]
        return [_Candidate(float(flat[i]), self.sequences[i // width], int(i % width)) for i in best.tolist()]

    def _finish(self, candidate: _Candidate) -> None:
        params = self.request.params
        tokens = [*candidate.parent.tokens[candidate.parent.n_prompt :], candidate.token]
        self._finished.append((candidate.logprob / len(tokens) ** params.length_penalty, tokens))
        self._finished.sort(key=lambda found: -found[0])
        del self._finished[params.beams :]

    def _can_win(self, best: _Candidate) -> bool:
        """Whether a text that goes on from the best beam may still come among the best finished ones."""
        params = self.request.params
        if len(self._finished) < params.beams:
            return True
        longest = best.parent.limit - best.parent.n_prompt
        length = longest if params.length_penalty > 0 else best.parent.n_new + 1
        return best.logprob / length**params.length_penalty > self._finished[-1][0]

    def _choice(self, score: float, tokens: list[int]) -> Choice:
        writer = Writer(self.tokenizer, self.request.params, self.rules.ends, room=len(tokens))
        for token in tokens:
            writer.push(token, _NO_LOGITS)
        return writer.choice(score)
