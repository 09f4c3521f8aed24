"""The chat format: a control token opens each message, another ends it, and content can never forge either.

    <|begin|><|system|>…<|end_of_turn|><|user|>…<|end_of_turn|><|assistant|>…<|end_of_turn|>

`check_messages` and `encode` are what bimo uses: content is encoded as ordinary text. `TEMPLATE` is the same format as
a Jinja template for other tools. Conversations in the formats of other models come out of their own templates
(`template.py`) and keep the same promise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from bimo.core.errors import UserError, nearest
from bimo.tokenizer.special import BEGIN, END_OF_TURN

ROLES = ("system", "user", "assistant")

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + "
    "'<|end_of_turn|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Encoder(Protocol):
    """What a conversation needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Ids of an ordinary text."""

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text in which control tokens may stand by name."""


def encode(
    messages: Sequence[Mapping[str, str]],
    control: Mapping[str, int],
    encode_text: Callable[[str], list[int]],
    add_generation_prompt: bool,
) -> list[int]:
    """Ids of a conversation in bimo's own format.

    Args:
        messages: {"role": system, user or assistant, "content": text}, in order.
        control: Ids of the control tokens by name.
        encode_text: Ordinary text to ids.
        add_generation_prompt: Whether to open the assistant's next message.
    """
    ids = [control[BEGIN]]
    for message in messages:
        ids += [control[f"<|{message['role']}|>"], *encode_text(message["content"]), control[END_OF_TURN]]
    return [*ids, control["<|assistant|>"]] if add_generation_prompt else ids


def encode_rendered(pieces: Sequence[tuple[bool, str]], encoder: Encoder) -> list[int]:
    """Ids of a conversation that a template has rendered.

    Nearly always no content holds the name of a control token, and the text is encoded as a whole, exactly as other
    tools do. Where one does, it is encoded as the characters that it is.

    Args:
        pieces: The rendered text, cut around forged control tokens: (forged, text).
        encoder: The tokenizer.
    """
    ids = []
    for forged, text in pieces:
        ids += encoder.encode(text) if forged else encoder.encode_marked(text)
    return ids


def check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    """Raise a UserError that names the first message that is not well formed."""
    if not messages or isinstance(messages, (str, Mapping)):
        raise UserError("a chat is a list of messages", mend='For example [{"role": "user", "content": "Hello"}].')
    for number, message in enumerate(messages, start=1):
        where = f"message {number}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UserError("a message needs 'role' and 'content'", where=where, mend="Add what is missing.")
        role = message["role"]
        if role not in ROLES:
            raise UserError(f"unknown role {role!r}{nearest(str(role), ROLES)}", where=where, mend=f"Known: {ROLES}.")
        if role == "system" and number > 1:
            raise UserError("the system message must be the first", where=where, mend="Move it to the beginning.")
        if not isinstance(message["content"], str):
            raise UserError("content must be text", where=where, mend="Give a string.")
