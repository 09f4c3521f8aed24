"""Conversations as ids, of which only what the assistant says is trained.

What the assistant says is found by writing the conversation up to its turn, with the turn opened, and once more with
the turn in it: what is new is the turn. So it works with every chat template, and a turn is trained after exactly the
ids after which it is generated. A template that writes an earlier turn differently once more follow (some drop its
reasoning) gives one row per turn; one that opens a turn otherwise than it writes it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bimo.core.errors import UserError
from bimo.examples.fields import Message
from bimo.tokenizer import Tokenizer


def conversation_rows(
    messages: Sequence[Message], tokenizer: Tokenizer, where: str
) -> Iterator[tuple[list[int], bytes]]:
    """Ids, and for each a byte, 1 where the assistant says it (the token that ends its turn included).

    Args:
        messages: The conversation.
        tokenizer: Knows the chat format.
        where: What to name in errors.

    Raises:
        UserError: A message is malformed, or it cannot be seen which ids are the assistant's.
    """
    try:
        whole = tokenizer.encode_chat(messages, add_generation_prompt=False)
        spoken = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        turns = [_turn(messages, number, tokenizer, whole) for number in spoken]
    except UserError as error:
        raise UserError(
            error.what, where=f"{where}, {error.where}" if error.where else where, mend=error.mend
        ) from error
    if all(whole[: len(ids)] == ids for ids, _ in turns):
        marks = bytearray(len(whole))
        for ids, trained in turns:
            marks[: len(ids)] = bytes(a | b for a, b in zip(marks, trained, strict=False))
        yield whole, bytes(marks)
    else:
        yield from turns


def _turn(messages: Sequence[Message], number: int, tokenizer: Tokenizer, whole: list[int]) -> tuple[list[int], bytes]:
    """The conversation up to an assistant's message, and which ids are that message's; `whole`: all of it."""
    before = tokenizer.encode_chat(messages[:number], add_generation_prompt=True) if number else []
    last = number + 1 == len(messages)
    ids = whole if last else tokenizer.encode_chat(messages[: number + 1], add_generation_prompt=False)
    if not before or ids[: len(before)] != before:
        raise UserError(
            f"it cannot be seen which tokens are the assistant's in message {number + 1}: the chat template opens the "
            "turn otherwise than it writes it",
            mend="Begin with another role, and give the assistant's text without blank lines around it.",
        )
    ends = [place for place in range(len(before), len(ids)) if ids[place] in tokenizer.end_ids]
    end = ends[-1] + 1 if ends else len(ids)  # what follows the end of the turn is never generated
    return ids[:end], b"\0" * len(before) + b"\1" * (end - len(before))
