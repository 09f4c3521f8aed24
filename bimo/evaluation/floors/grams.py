"""Text goes on with the byte that followed most often: an n-gram model as a floor for completion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bimo.evaluation.answer import Answer, Circumstances, Foresight
from bimo.evaluation.floors.held_out import NGramModel, gram_codes
from bimo.tasks.task import TaskExample

_MOST_BYTES = 2**23  # that are counted: some five seconds
_LONGEST_ANSWER = 2**12  # bytes
_SYMBOLS = 257


class NextBytes:
    """Byte n-grams with Kneser-Ney smoothing, fitted on the first 8 MB; greedy, as long as targets are in the mean.

    Args:
        order: Bytes in a gram, the predicted one included; at most 7.
    """

    name = "n-gram"
    needs_training = True

    def __init__(self, order: int = 5) -> None:
        if not 2 <= order <= 7:
            raise ValueError(f"order must lie in 2 … 7, is {order}")
        self.order = order
        self.model = NGramModel([], order)
        self.length = 0
        self._next: dict[int, int] = {}  # context → likeliest byte; many texts come through the same

    def fit(self, examples: Sequence[TaskExample]) -> None:
        """Count the bytes of sources and targets."""
        documents, size = [], 0
        for example in examples:
            if size > _MOST_BYTES:
                break
            documents.append(_bytes(example.source + example.target))
            size += len(documents[-1])
        self.model, self._next = NGramModel(documents, self.order), {}
        lengths = [len(_bytes(example.target)) for example in examples]
        self.length = min(_LONGEST_ANSWER, round(sum(lengths) / max(1, len(lengths))))

    def answer(self, examples: Sequence[TaskExample]) -> list[Answer]:
        """The likeliest bytes, and how well the target was foreseen."""
        return [
            Answer(self._continued(_bytes(example.source)), Circumstances(foresight=self._seen(example)))
            for example in examples
        ]

    def _seen(self, example: TaskExample) -> Foresight:
        target = _bytes(example.target)
        grams = gram_codes(_bytes(example.source) + target, self.order)[-len(target) :] if target else np.empty(0)
        nats = -float(np.log(self.model.probabilities(grams)).sum()) if target else 0.0
        return Foresight(nats, len(target), len(target))

    def _continued(self, text: bytes) -> str:
        span = _SYMBOLS ** (self.order - 1)
        context = 0
        for byte in (*[256] * (self.order - 1), *text)[1 - self.order :]:
            context = context * _SYMBOLS + byte
        written = bytearray()
        for _ in range(self.length):
            byte = self._next_byte(context)
            written.append(byte)
            context = (context * _SYMBOLS + byte) % span
        return written.decode("utf-8", errors="ignore").strip()

    def _next_byte(self, context: int) -> int:
        if context not in self._next:
            grams = np.uint64(context * _SYMBOLS) + np.arange(256, dtype=np.uint64)
            self._next[context] = int(self.model.probabilities(grams).argmax())
        return self._next[context]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")  # half of a surrogate pair can stand in JSON
