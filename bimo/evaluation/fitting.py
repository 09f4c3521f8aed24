"""Prompts that fit a model's context: what is read is shortened as it is in training, never the instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bimo.core.errors import UserError
from bimo.tasks.prompts import prompt_ids
from bimo.tasks.task import Message, TaskExample
from bimo.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class FittingPrompt:
    """What a model reads.

    Attributes:
        ids: Of the prompt; None where nothing of it fits, or the chat format refuses it.
        cut: Whether something had to go.
    """

    ids: list[int] | None
    cut: bool = False


def fitting_prompt(example: TaskExample, tokenizer: Tokenizer, room: int) -> FittingPrompt:
    """The prompt of an example in at most so many ids: old turns of a conversation go first, then the end of its text.

    Args:
        example: What is asked.
        tokenizer: The model's.
        room: Ids that a prompt may have.
    """
    messages = list(example.messages)
    try:
        ids = prompt_ids(messages, tokenizer)
        if len(ids) <= room or not messages:
            return FittingPrompt(ids)
        system = messages[:1] if messages[0]["role"] == "system" else []
        turns = messages[len(system) :]
        while len(turns) > 2:
            turns = turns[2:]  # a question and its answer: roles must go on in turn
            ids = prompt_ids([*system, *turns], tokenizer)
            if len(ids) <= room:
                return FittingPrompt(ids, cut=True)
        return FittingPrompt(_shortened([*system, *turns], example, tokenizer, room), cut=True)
    except UserError:  # the chat format refuses; the answer is counted as an error
        return FittingPrompt(None)


def _shortened(messages: Sequence[Message], example: TaskExample, tokenizer: Tokenizer, room: int) -> list[int] | None:
    """With the longest beginning of the last message that fits; None where that is not more than the instruction."""
    *before, last = messages
    text = last["content"]
    least, most = max(0, len(text) - len(example.source)), len(text)
    found: list[int] | None = None
    while least < most:
        middle = (least + most + 1) // 2
        ids = prompt_ids([*before, {**last, "content": text[:middle]}], tokenizer)
        if len(ids) <= room:
            least, found = middle, ids
        else:
            most = middle - 1
    return found
