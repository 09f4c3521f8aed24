"""Decoding a stream of ids without ever splitting a character, in bytes or on the screen."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

_LONGEST_CLUSTER = 64  # code points; more marks than that on one letter are no script's habit


class IncrementalDecoder:
    """Turns ids into text one by one.

    A piece holds whole user-perceived characters (extended grapheme clusters, Unicode Standard Annex 29): the newest
    one is held back until the next begins, because a vowel sign, an accent or a second half of a flag may still follow.
    All pieces together are exactly the decoded text, with the space in front that `Tokenizer.decode` may drop: here the
    text goes on from another one.

    Args:
        token_bytes: The bytes of each id, b"" for control tokens.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self.token_bytes = token_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held = ""

    def push(self, token: int) -> str:
        """Take the next id; return the text that is certain, often ''."""
        self.held += self.decoder.decode(self.token_bytes[token])
        if not self.held:
            return ""
        last = _last_cluster(self.held)
        keep = 0 if last > _LONGEST_CLUSTER else last
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown

    def finish(self) -> str:
        """The rest; bytes that never became a character are shown as U+FFFD."""
        shown, self.held = self.held + self.decoder.decode(b"", final=True), ""
        return shown


def _last_cluster(text: str) -> int:
    """Length of the last user-perceived character."""
    if text.isascii():  # each character is one, but for this line break
        return 2 if text.endswith("\r\n") else 1
    import regex

    return len(regex.findall(r"\X", text)[-1])
