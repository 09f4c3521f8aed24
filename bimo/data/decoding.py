"""Bytes to text, strictly and in a stream: what cannot be decoded is marked and described, never replaced in silence.

A bad place becomes the character `BAD` in the text. It is a lone surrogate, which no encoding yields, so whoever cuts
the text into documents sees at once which of them hold one, drops those, and takes the description from `take_bad`.
"""

from __future__ import annotations

import codecs
import io
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bimo.data.documents import UnreadableError
from bimo.data.encodings import CONTROL, Encoding

BAD = "\udc00"
"""Stands in the text for bytes that could not be decoded, and for control characters."""

MOST_BAD = 2000
"""Bad places in one chunk of bytes above which it is something else than a text with a few damaged places."""


@dataclass
class _BadPlace:
    what: str
    line: int = 0


class TextStream:
    """The text of a file in blocks, with line feeds as the only line ends.

    Args:
        chunks: The bytes of the file; each chunk gives one block of text.
        encoding: How to decode them.
        keep_controls: Leave control characters in the text, for those who want to see or to mend it as it stands.
    """

    def __init__(self, chunks: Iterable[bytes], encoding: Encoding, *, keep_controls: bool = False) -> None:
        self.chunks = chunks
        self.encoding = encoding
        self.keep_controls = keep_controls
        self.line = 1
        """The line, from 1, at which the next block begins."""
        self._decoder = codecs.getincrementaldecoder(encoding.codec)("strict")
        self._offset = 0  # bytes taken in so far
        self._found = 0  # bad places in this block
        self._bad: deque[_BadPlace] = deque()

    def __iter__(self) -> Iterator[str]:
        newlines = io.IncrementalNewlineDecoder(None, translate=True)
        skip = self.encoding.skip
        for chunk in self.chunks:
            self._offset += skip
            yield self._block(newlines.decode(self._decode(chunk[skip:], final=False)))
            skip = 0
        yield self._block(newlines.decode(self._decode(b"", final=True), final=True))

    def take_bad(self, last_line: int) -> str:
        """What is wrong up to and with this line, one clause; each bad place is told once."""
        taken = []
        while self._bad and self._bad[0].line <= last_line:
            taken.append(self._bad.popleft())
        if not taken:
            return "bytes that cannot be decoded, on a line that was already reported"
        return taken[0].what + (f", and {len(taken) - 1} more such places" if len(taken) > 1 else "")

    def _block(self, text: str) -> str:
        """Settle the lines of the bad places in this block, and move on by its lines."""
        place = -1
        for bad in (bad for bad in self._bad if bad.line == 0):
            place = text.index(BAD, place + 1)
            bad.line = self.line + text.count("\n", 0, place)
        self.line += text.count("\n")
        return text

    def _decode(self, chunk: bytes, final: bool) -> str:
        parts = []
        self._found = 0
        while True:
            start = self._offset - len(self._decoder.getstate()[0])  # of the bytes that the decoder still holds
            try:
                parts.append(self._without_controls(self._decoder.decode(chunk, final), start))
                self._offset += len(chunk)
                return "".join(parts)
            except UnicodeDecodeError as error:
                data = error.object
                good, wrong, chunk = data[: error.start], data[error.start : error.end], data[error.end :]
                parts += [self._without_controls(good.decode(self.encoding.codec), start), BAD]
                name = f"{'byte' if len(wrong) == 1 else 'bytes'} 0x{wrong.hex()}"
                self._add_bad(f"{name} at offset {start + error.start} is not {self.encoding.label}")
                self._offset = start + error.end
                self._decoder.reset()

    def _without_controls(self, text: str, offset: int) -> str:
        """The text with a bad place for each control character; `offset` is where its bytes begin."""
        if self.keep_controls or not CONTROL.search(text):
            return text
        done = 0
        for match in CONTROL.finditer(text):
            offset += len(text[done : match.start()].encode(self.encoding.codec))
            done = match.start()
            self._add_bad(f"control character U+{ord(match[0]):04X} at byte offset {offset}")
        return CONTROL.sub(BAD, text)

    def _add_bad(self, what: str) -> None:
        self._bad.append(_BadPlace(what))
        self._found += 1
        if self._found > MOST_BAD:
            raise UnreadableError(f"from here on it is not {self.encoding.label}; the rest is left out", row=self.line)
