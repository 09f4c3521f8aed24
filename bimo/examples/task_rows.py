"""Examples of a task as rows of ids, of which only what the model must say is trained.

A row that is longer than the context is never cut in its answer: it is left out, or the text that is read loses its
end; a conversation becomes several. Each is told with its place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

import numpy as np

from bimo.core.errors import UserError
from bimo.examples.conversations import conversation_rows
from bimo.tasks.prompts import prompt_ids
from bimo.tasks.task import Message, TaskExample
from bimo.tokenizer import Tokenizer
from bimo.training.inputs import Tell
from bimo.training.pairs import PairRows
from bimo.training.rows import RowWriter, TokenRows

OnLong = Literal["cut", "skip", "stop"]
Marked = tuple[list[int], bytes]
"""Ids, and for each a byte, 1 where it is trained."""

_TOLD = 10  # of each kind, one by one
_MEND = "Mend or shorten the records, or give the model a larger context_length."
_SHORTER = "Shorten or drop it, or give the model a larger context_length."


@dataclass
class TaskRows:
    """Makes rows of examples, and remembers what became of them.

    Attributes:
        tokenizer: Text to ids.
        context_length: Most ids that the model reads at once.
        on_long: What to do with an example that is longer: cut what is read, leave it out, or stop.
        tell: Told of the first of each kind, and at the end of how many there were.
        labels: For a head of labels: what follows the prompt is the number of the row's label in here.
        counts: How many were cut, split, or left out.
        first: Why the first of them was left out.
    """

    tokenizer: Tokenizer
    context_length: int
    on_long: OnLong
    tell: Tell
    labels: Sequence[str] = ()
    counts: Counter[str] = field(default_factory=Counter)
    first: str = ""

    def rows(self, examples: Sequence[TaskExample]) -> TokenRows:
        """All examples that can be used.

        Raises:
            UserError: None can, or one is too long and `on_long` is "stop".
        """
        writer = RowWriter(self.tokenizer.pad_id, self.context_length)
        for example in examples:
            for ids, trained in self.marked(example):
                writer.add(np.array(ids, np.int32), trained, example.where, whole=bool(example.messages))
        for kind, count in self.counts.items():
            if count > _TOLD:
                self.tell(kind, what=f"{count} rows in all", count=count)
        if writer.n_untrained:
            shown = ", ".join(writer.untrained)
            what = f"{writer.n_untrained} rows have no token to train on, such as {shown}"
            self.tell("without a trained token", what=what, count=writer.n_untrained)
        return self._table(writer)

    def pairs(self, examples: Sequence[TaskExample]) -> PairRows:
        """Pairs of the better and the worse answer; an example without a worse one, or of which one does not fit, is
        left out.

        Raises:
            UserError: None can be used.
        """
        writer = RowWriter(self.tokenizer.pad_id, self.context_length)
        for example in examples:
            if not example.rejected or not example.messages:
                self._left_out(example, "there is no rejected answer" if example.messages else "there is no prompt")
                continue
            answers = (example, replace(example, target=example.rejected))
            both = [self._written(example.messages, answer) for answer in answers]
            if None in both:
                continue  # why is told
            pair = [_last_answer(*rows[-1]) for rows in both if rows]
            if not all(1 in trained[1:] for _, trained in pair):  # the writer would drop one, and shift all others
                self._left_out(example, "an answer has no token to train on")
                continue
            longest = max(len(ids) for ids, _ in pair)
            if longest > self.context_length + 1:
                what = f"prompt and answer have {longest} tokens, the model sees {self.context_length}"
                if self.on_long == "stop":
                    raise UserError(what, where=example.where, mend=_SHORTER)
                self._left_out(example, what)
                continue
            for ids, trained in pair:
                writer.add(np.array(ids, np.int32), trained, example.where, whole=True)
        return PairRows(self._table(writer))

    def _table(self, writer: RowWriter) -> TokenRows:
        """What was written; where all was left out, the error says why."""
        if not writer.n_examples and self.first:
            raise UserError(f"no record can be used; the first: {self.first}", where="tasks", mend=_MEND)
        return writer.rows()

    def marked(self, example: TaskExample) -> Iterator[Marked]:
        """The rows of one example; none when it is left out."""
        if len(example.messages) > 2 and self.on_long != "stop":  # long ones would be written turn by turn for nothing
            least = sum(self._sizes([*example.messages, {"content": example.target}]))
            if least > self.context_length + 1:
                what = f"the texts alone have {least} tokens, the model sees {self.context_length}"
                yield from self._windows(example, what)
                return
        whole = self._written(example.messages, example)
        if whole is None:
            return
        for ids, trained in whole:
            if len(ids) <= self.context_length + 1 or not example.messages:  # plain text is cut into pieces
                yield ids, trained
            else:
                yield from self._shortened(example, len(ids))

    def _written(self, messages: Sequence[Message], example: TaskExample) -> list[Marked] | None:
        """The rows of messages with the example's answer; None when the chat format refuses them."""
        try:
            if self.labels:
                read = prompt_ids(messages, self.tokenizer)
                return [([*read, self.labels.index(example.target)], b"\0" * len(read) + b"\1")]
            if messages and self.tokenizer.has_chat_template:
                answer = {"role": "assistant", "content": example.target}
                return list(conversation_rows([*messages, answer], self.tokenizer, example.where))
            read, said = prompt_ids(messages, self.tokenizer), self.tokenizer.encode(example.target)
        except UserError as error:
            self._left_out(example, error.what)
            return None
        end = [] if self.tokenizer.end_id is None else [self.tokenizer.end_id]
        return [([*read, *said, *end], b"\0" * len(read) + b"\1" * (len(said) + len(end)))]

    def _shortened(self, example: TaskExample, length: int) -> Iterator[Marked]:
        """An example that does not fit."""
        what = f"prompt and answer have {length} tokens, the model sees {self.context_length}"
        if self.on_long == "stop":
            raise UserError(what, where=example.where, mend=_SHORTER)
        if len(example.messages) > 2:
            yield from self._windows(example, what)
        elif self.on_long == "skip":
            self._left_out(example, what)
        else:
            yield from self._with_less_to_read(example, what)

    def _with_less_to_read(self, example: TaskExample, what: str) -> Iterator[Marked]:
        """The example with as much of its text as fits; the answer stays whole."""
        *before, message = example.messages
        text = message["content"]
        least, most, best = 0, len(text), list[Marked]()
        while least < most:  # the longest beginning that fits
            middle = (least + most + 1) // 2
            rows = self._written([*before, {**message, "content": text[:middle]}], example) or []
            if rows and len(rows[0][0]) <= self.context_length + 1:
                least, best = middle, rows
            else:
                most = middle - 1
        instruction = len(text) - len(example.source)
        if not best or least <= instruction:
            self._left_out(example, f"{what}, and the answer alone is too long")
            return
        self._count("cut", example, f"{what}: the last {len(text) - least} characters that are read are cut")
        yield from best

    def _windows(self, example: TaskExample, what: str) -> Iterator[Marked]:
        """A conversation as several, each with as many turns as fit, the system's message in front of all."""
        turns: list[Message] = [*example.messages, {"role": "assistant", "content": example.target}]
        system = turns[:1] if turns[0]["role"] == "system" else []
        turns = turns[len(system) :]
        sizes = [0, *accumulate(self._sizes(turns))]
        start = count = skipped = 0
        while start < len(turns):
            end, best = len(turns), list[Marked]()
            ends = [n + 1 for n in range(start + 1, len(turns)) if turns[n]["role"] == "assistant"]
            fitting = [n for n in ends if sizes[n] - sizes[start] <= self.context_length]
            for end in reversed(fitting):
                said = turns[end - 1]["content"]
                window = [*system, *turns[start : end - 1]]
                best = self._written(window, TaskExample(tuple(window), said, "", example.where)) or []
                if best and len(best[0][0]) <= self.context_length + 1:
                    break
                best = []
            if best:
                yield from best
                count, start = count + 1, end
            else:
                following = ends[0] if ends else len(turns)
                skipped, start = skipped + following - start, following
        if count:
            self._count("split", example, f"{what}: it becomes {count} conversations")
            if skipped:
                fits = f"{skipped} of its {len(turns)} turns fit into none of them, and are left out"
                self._count("turns left out", example, fits)
        else:
            self._left_out(example, f"{what}, and no turn of it fits")

    def _sizes(self, turns: Sequence[Message]) -> list[int]:
        """Tokens of each turn's text alone."""
        return [len(self.tokenizer.encode_array(turn["content"])) for turn in turns]

    def _left_out(self, example: TaskExample, what: str) -> None:
        self.first = self.first or f"{example.where}: {what}"
        self._count("left out", example, what)

    def _count(self, kind: str, example: TaskExample, what: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= _TOLD:
            self.tell(kind, what=f"{example.where}: {what}")


def _last_answer(ids: list[int], trained: bytes) -> Marked:
    """A conversation of which only the last answer counts: what was said before is no matter of preference, and a mean
    over tokens must not count it."""
    end = trained.rfind(1) + 1
    start = trained.rfind(0, 0, end) + 1
    return ids, b"\0" * start + trained[start:end] + b"\0" * (len(trained) - end)
