"""What the families learn from and are measured on: the same rows for all, none of the measured ones among them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from bimo.core.errors import UserError
from bimo.evaluation.asking import Data, examples_from, spread
from bimo.evaluation.fitting import fitting_prompt
from bimo.examples.task_rows import TaskRows
from bimo.families.settings import CompareSettings
from bimo.tasks import Task, TaskExample, make_task
from bimo.tokenizer import Tokenizer
from bimo.training.rows import TokenRows

_LEAST_ROWS, _LEAST_MEASURED = 40, 8
_MEASURED, _HELD_OUT = 10, 20  # one of so many rows, where no measured file is given; to choose rates by
_HELD_OUT_TOKENS = 2400  # per minute of the command: eight looks at them take a tenth of the training's time
_LEAST_HELD_OUT, _MOST_HELD_OUT = 16, 512  # rows
_LONGEST, _LOOKED_AT = 320, 2000  # tokens of a row; examples whose lengths are looked at
_TOKENIZER_BYTES = 20_000_000


@dataclass(frozen=True)
class Material:
    """Examples of a task, apart.

    Attributes:
        task: With what the training rows have settled.
        train: Learned from.
        held_out: Rates and the best moment of a training are chosen by these; they come from the training rows.
        measured: Answered at the end; neither they nor their sources stand in the other two.
        names: Where they came from.
        notes: What was left out, in words.
    """

    task: Task
    train: list[TaskExample]
    held_out: list[TaskExample]
    measured: list[TaskExample]
    names: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        """Those that there are; none for a task that is answered in words of its own."""
        return [str(label) for label in getattr(self.task, "labels", None) or ()]


@dataclass(frozen=True)
class Encoded:
    """The same as ids.

    Attributes:
        tokenizer: Trained on the training rows.
        train: Rows of prompt and answer.
        held_out: The same, held out.
        prompts: What is read of each measured example; None where nothing of it fits.
        answer_tokens: How long an answer may be.
        context_length: How long a row may be.
        notes: What had to be cut, in words.
    """

    tokenizer: Tokenizer
    train: TokenRows
    held_out: TokenRows
    prompts: list[list[int] | None]
    answer_tokens: int
    context_length: int
    notes: tuple[str, ...]


def read_material(task: str | Task, data: Data, valid: Data, settings: CompareSettings) -> Material:
    """Read and part the examples; without measured rows of their own, a tenth of the rows is measured.

    Raises:
        UserError: The task does not fit all families, or there are too few rows.
    """
    made = make_task(task)
    given = examples_from(made, data, settings.fields, "training data")
    train, notes, names = given.examples, list(given.notes), list(given.names)
    _check_form(made, train)
    if [valid] if isinstance(valid, (str, Path)) else list(valid):
        asked = examples_from(made, valid, settings.fields, "measured data")
        measured, notes, names = asked.examples, [*notes, *asked.notes], [*names, *asked.names]
        known = {_source(e) for e in measured} | {_both(e) for e in measured}
        kept = [e for e in train if _source(e) not in known and _both(e) not in known]
        if len(kept) < len(train):
            notes.append(f"{len(train) - len(kept):,} training rows stand among the measured ones, and are left out.")
        train = kept
    else:
        measured = [e for e in train if _source(e) % _MEASURED == 0]
        known = {_both(e) for e in measured}  # the way back of a measured pair
        train = [e for e in train if _source(e) % _MEASURED and _both(e) not in known]
        notes.append(f"No measured rows were given: {len(measured):,}, a tenth by a hash of their text, are measured.")
    if len(train) < _LEAST_ROWS or len(measured) < _LEAST_MEASURED:
        what = f"{len(train)} rows to train on and {len(measured)} to measure are too few for a comparison"
        mend = f"Give at least {_LEAST_ROWS} and {_LEAST_MEASURED}; some hundreds of each before a figure says much."
        raise UserError(what, where=", ".join(names), mend=mend)
    held = [e for e in train if _source(e) // _MEASURED % _HELD_OUT == 0] or train[:1]
    apart = {_source(e) for e in held} | {_both(e) for e in held}
    train = [e for e in train if _source(e) not in apart and _both(e) not in apart]
    settled = made if getattr(made, "labels", None) else made.settled([*train, *held])
    unknown = sum(e.target not in labels for e in measured) if (labels := getattr(settled, "labels", None)) else 0
    if unknown:
        notes.append(f"{unknown:,} measured rows have a label that no training row has: nobody can find it.")
    return Material(
        settled, train, spread(held, _MOST_HELD_OUT), spread(measured, settings.limit), tuple(names), tuple(notes)
    )


def encode(material: Material, settings: CompareSettings) -> Encoded:
    """Train a tokenizer on the training rows, and make rows and prompts with it.

    Raises:
        UserError: No row fits the context.
    """
    tokenizer = _tokenizer(material.train, settings)
    looked_at = spread(material.train, _LOOKED_AT)
    whole = TaskRows(tokenizer, 2**20, "stop", _untold)
    lengths = [len(ids) for example in looked_at for ids, _ in whole.marked(example)]
    answers = [sum(marks) for example in looked_at for _, marks in whole.marked(example)]
    context = settings.context_length or _context(lengths)
    longest = max(answers) if material.labels else int(1.25 * np.quantile(answers, 0.99)) + 4
    room = max(1, min(longest, context // 2))
    cut: list[str] = []
    rows = TaskRows(tokenizer, context, "cut", _untold)
    held = int(_HELD_OUT_TOKENS * settings.minutes / min(context, float(np.mean(lengths))))
    held_out = rows.rows(spread(material.held_out, max(_LEAST_HELD_OUT, held)))
    rows.counts.clear()
    train = rows.rows(material.train)
    for kind, words in (("cut", "lose the end of their text"), ("left out", "do not fit and are left out")):
        if rows.counts[kind]:
            cut.append(f"{rows.counts[kind]:,} training rows {words}: the context has {context} tokens.")
    prompts = [fitting_prompt(example, tokenizer, context - room) for example in material.measured]
    shortened = sum(prompt.cut for prompt in prompts)
    if shortened:
        cut.append(f"{shortened:,} of {len(prompts):,} measured texts are shortened to fit it, for all families alike.")
    return Encoded(tokenizer, train, held_out, [p.ids for p in prompts], room, context, tuple(cut))


def _untold(_kind: str, /, **_facts: object) -> None:
    """What became of a row is counted, and told at the end."""


def _check_form(task: Task, examples: Sequence[TaskExample]) -> None:
    """One text in, one text or label out: else there is nothing for an encoder to read, or more than one answer."""
    odd = next((e for e in examples if len(e.messages) != 1 or not e.source or e.rejected), None)
    if odd is not None:
        raise UserError(
            f"the task {task.name!r} is no text in and one answer out, which is what all families can learn",
            where=odd.where,
            mend="Compare translation, summarization, classification, or a task of yours with one message.",
        )


def _context(lengths: Sequence[int]) -> int:
    """As long as 98 of 100 rows, in steps of 32."""
    wanted = 32 * -(-int(np.quantile(lengths, 0.98)) // 32)
    return max(64, min(_LONGEST, wanted))


def _tokenizer(examples: Sequence[TaskExample], settings: CompareSettings) -> Tokenizer:
    size = sum(len(e.messages[0]["content"]) + len(e.target) for e in examples)  # characters
    step = max(1, size // _TOKENIZER_BYTES)
    texts = (text for e in islice(examples, 0, None, step) for text in (e.messages[0]["content"], e.target))
    return Tokenizer.train(texts, settings.vocabulary(size))


def _source(example: TaskExample) -> int:
    """Of what is read: the same text, whatever is to be said to it, is on one side."""
    return _hash(example.source.strip())


def _both(example: TaskExample) -> int:
    """Of a pair, in whichever direction."""
    return _hash("\0".join(sorted((example.source.strip(), example.target.strip()))))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
