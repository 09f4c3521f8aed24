"""Guesses at the next tokens, which the model checks in one step, at nearly the price of one token.

A token is a function of the logits, the seed and its number (`sampling`), so a guess is right or wrong: it is accepted
when it is the very token that is drawn there. The text is that without guesses, token by token, at any temperature;
exact in distribution follows. Wrong guesses cost time only, so a text gets 2 more guesses than twice as many as were
right in its last step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from bimo.core.errors import UserError
from bimo.engine.blocks import BlockPool, BlockTable
from bimo.engine.runner import Chunk, Runner
from bimo.engine.sampling import Rules
from bimo.engine.sequence import Sequence

RulesOf = Callable[[Sequence], Rules]


class Guesser(Protocol):
    """Guesses what comes next."""

    def guess(self, sequences: list[Sequence]) -> None:
        """Set `guesses` of texts that are being written; forget all texts that are not among these."""
        ...


def n_guesses(sequence: Sequence, most: int) -> int:
    """How many guesses are worth while: none of them can be the last token of the text, which is not read again."""
    return max(min(most, 2 * sequence.n_accepted + 2, sequence.limit - len(sequence.tokens) - 1), 0)


@dataclass(slots=True)
class _Places:
    """Where each pair and each triple of tokens of a text was seen last, and what followed."""

    n_read: int = 0
    after: dict[tuple[int, ...], int] = field(default_factory=dict)


class PromptLookup:
    """What followed the last time when the text had its last three, or two, tokens (Saxena 2023, prompt lookup).

    Args:
        most: Guesses per step.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._places: dict[Sequence, _Places] = {}

    def guess(self, sequences: list[Sequence]) -> None:
        """Set `guesses` from each text's own past; one look-up per text."""
        self._places = {sequence: self._places.get(sequence) or _Places() for sequence in sequences}
        for sequence, places in self._places.items():
            tokens = sequence.tokens
            self._read(places, tokens)
            keys = (tuple(tokens[-3:]), tuple(tokens[-2:]))
            start = next((places.after[key] for key in keys if key in places.after), None)
            if start is not None:
                sequence.guesses = tokens[start : start + n_guesses(sequence, self.most)]

    @staticmethod
    def _read(places: _Places, tokens: list[int]) -> None:
        """Note all places before the last one, which nothing follows yet."""
        for end in range(max(places.n_read, 2), len(tokens)):
            places.after[tuple(tokens[end - 2 : end])] = end
            if end >= 3:
                places.after[tuple(tokens[end - 3 : end])] = end
        places.n_read = len(tokens)


@dataclass(slots=True)
class _Draft:
    """A text as the small model has read it."""

    table: BlockTable
    rules: Rules
    stretch: int
    read: list[int] = field(default_factory=list)


class DraftModel:
    """Guesses by a small model, drawn with the same random numbers as the model's own tokens.

    Args:
        runner: Runs the small model; it has a cache of its own.
        rules_of: How a text's tokens are chosen.
        most: Guesses per step.
        step_tokens: Tokens that are read at once at most.
        context_length: Tokens that the small model sees.
    """

    def __init__(self, runner: Runner, rules_of: RulesOf, *, most: int, step_tokens: int, context_length: int) -> None:
        self.runner, self.rules_of, self.most = runner, rules_of, most
        self.step_tokens, self.context_length = step_tokens, context_length
        self.pool = BlockPool(runner.n_blocks, runner.block_size, share=False)
        self._drafts: dict[Sequence, _Draft] = {}

    def guess(self, sequences: list[Sequence]) -> None:
        """Set `guesses`: the small model reads what is new, and writes on, all texts at once."""
        for gone in self._drafts.keys() - {*sequences}:
            self.pool.close(self._drafts.pop(gone).table)
        wanted = {sequence: self._count(sequence) for sequence in sequences}
        active = [s for s, count in wanted.items() if count and self._prepare(s, len(s.tokens) + count)]
        texts = {sequence: list(sequence.tokens) for sequence in active}
        while active:
            written = self._extend({sequence: texts[sequence] for sequence in active})
            active = [s for s in written if len(texts[s]) - len(s.tokens) < wanted[s]]
        for sequence, text in texts.items():
            sequence.guesses = text[len(sequence.tokens) :]

    def _count(self, sequence: Sequence) -> int:
        """How many guesses: the text has the same set of frequencies with them."""
        count, length = n_guesses(sequence, self.most), len(sequence.tokens)
        while count and self.runner.stretch(length + count) != self.runner.stretch(length):
            count -= 1
        return count

    def _prepare(self, sequence: Sequence, end: int) -> bool:
        """Room for a text of `end` tokens, and what of it has been read; False: there is none."""
        draft = self._drafts.get(sequence)
        if draft is not None and self.runner.stretch(end) != draft.stretch:
            self.pool.close(self._drafts.pop(sequence).table)
            draft = None
        if end > self.context_length:
            return False
        if draft is None:
            rules = replace(self.rules_of(sequence), constraint=None)
            draft = _Draft(BlockTable([]), rules, self.runner.stretch(end))
        kept = min(len(draft.read), len(sequence.tokens) - 1)
        # Only guesses of the last step can differ from the text, and they are at the end.
        while draft.read[:kept] != sequence.tokens[:kept]:
            kept -= 1
        del draft.read[kept:]
        if self.pool.grow(draft.table, kept, end) is None:
            return False
        self._drafts[sequence] = draft
        return True

    def _extend(self, texts: dict[Sequence, list[int]]) -> list[Sequence]:
        """Read what is new of each text, and append one token to it; returns those that the small model could go on."""
        written: list[Sequence] = []
        while True:
            chunks, finished = [], []
            for sequence, text in texts.items():
                draft = self._drafts[sequence]
                start = len(draft.read)
                stop = min(len(text), start + self.step_tokens)
                while self.runner.stretch(stop) != draft.stretch and stop < len(text):
                    stop += 1
                if stop > start:
                    last = stop == len(text)
                    chunks.append(Chunk(text[start:stop], start, draft.table.blocks, int(last)))
                    finished += [sequence] if last else []
                    draft.read += text[start:stop]
            if not chunks:
                return written
            rows = self.runner.logits(chunks)
            for sequence, row in zip(finished, rows, strict=True):
                text = texts[sequence]
                try:
                    text.append(self._drafts[sequence].rules.choose(row, text, sequence.n_prompt))
                except UserError:  # nothing is guessed here: what the model itself chooses is what counts
                    continue
                written.append(sequence)
            texts = {sequence: text for sequence, text in texts.items() if sequence not in finished}


def check_draft(vocab_size: int, draft_vocab_size: int) -> None:
    """Raise a UserError unless both models have the same ids."""
    if vocab_size != draft_vocab_size:
        raise UserError(
            f"the draft model has {draft_vocab_size} ids, the model {vocab_size}",
            mend="Use a draft model with the same tokenizer.",
        )
