"""A task's messages as the ids that a model reads, whether or not its tokenizer knows conversations."""

from __future__ import annotations

from collections.abc import Sequence

from bimo.tasks.task import Message
from bimo.tokenizer import Tokenizer

_BREAK = "\n\n"


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """What stands before the answer.

    In the tokenizer's chat format; where it has none, the messages as plain text, an empty line after each. No messages
    at all: the beginning of a document.

    Raises:
        UserError: The chat format refuses the messages.
    """
    if not messages:
        return [] if tokenizer.begin_id is None else [tokenizer.begin_id]
    if tokenizer.has_chat_template:
        return tokenizer.encode_chat(messages, add_generation_prompt=True)
    return [*tokenizer.prefix_ids, *tokenizer.encode("".join(message["content"] + _BREAK for message in messages))]
