"""From examples to rows of ids: many texts at a time, and no more of them in memory than that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from bimo.core.errors import UserError
from bimo.examples.conversations import conversation_rows
from bimo.examples.fields import Content, Message
from bimo.tokenizer import Tokenizer
from bimo.training.rows import RowWriter, TokenRows

Example = tuple[str, Content]
_GROUP_CHARACTERS, _GROUP_EXAMPLES = 2**22, 2**14
_LONG = 2000  # characters; shorter texts are encoded sooner than they are handed to another thread


def encode_examples(examples: Iterable[Example], tokenizer: Tokenizer, writer: RowWriter) -> TokenRows:
    """Rows of all examples.

    Args:
        examples: (where, content), see `fields.Content`.
        tokenizer: Text to ids.
        writer: An empty one; it tells afterwards which examples were left out.

    Raises:
        UserError: A text cannot be encoded, or an answer does not fit into the context.
    """
    encoder = _Encoder(tokenizer, writer)
    for group in _grouped(examples):
        encoded = iter(_encoded([(where, text) for where, content in group for text in _texts(content)], tokenizer))
        for where, content in group:
            if isinstance(content, str):
                encoder.add_text(next(encoded), where)
            elif isinstance(content, tuple):
                encoder.add_pair(next(encoded), next(encoded), where)
            else:
                encoder.add_conversation(content, where)
    return writer.rows()


def _texts(content: Content) -> Sequence[str]:
    """What is encoded as ordinary text."""
    if isinstance(content, str):
        return (content,)
    return content if isinstance(content, tuple) else ()


class _Encoder:
    """Adds examples of each kind to the rows."""

    def __init__(self, tokenizer: Tokenizer, writer: RowWriter) -> None:
        self.tokenizer, self.writer = tokenizer, writer
        self.begin, self.end = (_ids([] if i is None else [i]) for i in (tokenizer.begin_id, tokenizer.end_id))
        self.prefix = _ids(tokenizer.prefix_ids)

    def add_text(self, ids: np.ndarray, where: str) -> None:
        """A document, begin and end included; every token is learned. An empty one would only teach to end."""
        whole = np.concatenate((self.begin, ids, self.end), dtype=np.int32, casting="unsafe") if len(ids) else ids
        self.writer.add(whole, b"\1" * len(whole), where)

    def add_pair(self, prompt: np.ndarray, answer: np.ndarray, where: str) -> None:
        """The prompt as generation reads it, and the answer with its end, which alone are learned."""
        n_read = len(self.prefix) + len(prompt)
        end = self.end if len(answer) else answer
        whole = np.concatenate((self.prefix, prompt, answer, end), dtype=np.int32, casting="unsafe")
        self.writer.add(whole, b"\0" * n_read + b"\1" * (len(whole) - n_read), where, whole=True)

    def add_conversation(self, messages: Sequence[Message], where: str) -> None:
        """A conversation, or each turn of it after what came before; see `conversation_rows`."""
        for ids, trained in conversation_rows(messages, self.tokenizer, where):
            self.writer.add(_ids(ids), trained, where, whole=True)


def _ids(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, np.int32)


def _grouped(examples: Iterable[Example]) -> Iterator[list[Example]]:
    group: list[Example] = []
    size = 0
    for example in examples:
        group.append(example)
        size += sum(map(len, _texts(example[1])))
        if size >= _GROUP_CHARACTERS or len(group) >= _GROUP_EXAMPLES:
            yield group
            group, size = [], 0
    yield group


def _encoded(texts: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Ids of texts with their places, in order."""
    plain = [text for _, text in texts]
    short = sum(map(len, plain)) < _LONG * len(plain)
    try:
        return [tokenizer.encode_array(text) for text in plain] if short else tokenizer.encode_batch(plain)
    except UserError:
        for where, text in texts:  # which one was it?
            try:
                tokenizer.encode_array(text)
            except UserError as error:
                raise UserError(error.what, where=where, mend=error.mend) from error
        raise
