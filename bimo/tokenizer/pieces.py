"""SentencePiece's BPE by scores, as llama.cpp runs it, for vocabularies in which scores tie.

The pair whose token has the best score is merged first, the leftmost among equals. As long as all scores differ, a list
of merges in their order gives the same ids, and `tokenizers` encodes. Published vocabularies have ties (runs of spaces
in Llama 2), and no list of merges says "the leftmost of all these tokens": then the scores stand beside the merges in
`tokenizer.json`, where other tools do not look.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

SPACE = "▁"
_SPACES = tuple(" \t\n\v\f\r")
_LONGEST_KEPT = 64  # characters; longer words seldom come again


class ScoredPieces:
    """Encodes text with the scores of a `tokenizer.json` that was made from a GGUF file.

    Args:
        content: The parsed file; its model has scores.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        model = content["model"]
        vocab: dict[str, int] = model["vocab"]
        added: list[dict[str, Any]] = content.get("added_tokens") or []
        by_byte = [vocab.get(f"<0x{byte:02X}>") for byte in range(256)]
        barred = {token["content"] for token in added if token["special"]} | {f"<0x{byte:02X}>" for byte in range(256)}
        self._ids = {piece: i for piece, i in vocab.items() if piece not in barred}
        self._scores: dict[str, float] = {piece: -float(model["scores"][i]) for piece, i in self._ids.items()}
        self._bytes: list[int] = [i for i in by_byte if i is not None]
        self._unknown: int | None = vocab.get(model.get("unk_token"))
        self._ordinary = _longest_first(token for token in added if not token["special"])
        self._all = _longest_first(added)
        self._prefix = SPACE if "Prepend" in str(content.get("normalizer")) else ""
        # Where no token holds a space after other characters, none crosses the beginning of a word.
        crossing = any(SPACE in piece.lstrip(SPACE) for piece in self._ids)
        self._words = re.compile(f"(?s).+?(?<!{SPACE})(?={SPACE})|.+" if not crossing else "(?s).+")
        self._kept = lru_cache(maxsize=2**16)(self._cut)

    def encode(self, text: str, *, marked: bool = False) -> list[int]:
        """Ids of a text.

        Args:
            text: The text.
            marked: Whether control tokens may stand in it by name.
        """
        ids: list[int] = []
        for part in partition(text, self._all if marked else self._ordinary):
            if isinstance(part, int):
                ids.append(part)
                continue
            for word in self._words.findall(self._prefix + part.replace(" ", SPACE)):
                ids += self._kept(word) if len(word) <= _LONGEST_KEPT else self._cut(word)
        return ids

    def _cut(self, word: str) -> tuple[int, ...]:
        """Ids of a word: pieces grow together, the best pair first."""
        end_of = [*range(1, len(word) + 1), 0]  # of the piece that begins there; -1 inside of a piece
        before = list(range(-1, len(word)))
        waiting: list[tuple[float, int, int, int]] = []

        def consider(left: int) -> None:
            middle = end_of[left]
            if left < 0 or middle == len(word):
                return
            end = end_of[middle]
            score = self._scores.get(word[left:end])
            if score is not None:
                heapq.heappush(waiting, (score, left, middle, end))

        for left in range(len(word) - 1):
            consider(left)
        while waiting:
            _, left, middle, end = heapq.heappop(waiting)
            if end_of[left] == middle and end_of[middle] == end:
                end_of[left], end_of[middle] = end, -1
                before[end] = left
                consider(left)
                consider(before[left])
        return tuple(self._spelled(word, end_of))

    def _spelled(self, word: str, end_of: list[int]) -> Iterator[int]:
        """Ids of the pieces; what is no token is written byte by byte, or as unknown."""
        start, unknown = 0, False
        while start < len(word):
            piece = word[start : end_of[start]]
            start = end_of[start]
            if piece in self._ids:
                yield self._ids[piece]
            elif len(self._bytes) == 256:
                yield from (self._bytes[byte] for byte in piece.encode())
            elif self._unknown is not None and not unknown:
                yield self._unknown
            unknown = piece not in self._ids


def partition(text: str, tokens: Iterable[tuple[str, int, bool]]) -> list[str | int]:
    """A text cut at added tokens as llama.cpp does it: token by token, each wherever it stands in what is left.

    Args:
        text: The text.
        tokens: (name, id, whether it takes the spaces after it) in the order in which they are looked for.
    """
    parts: list[str | int] = [text] if text else []
    for token in tokens:
        if token[0] in text:
            parts = [piece for part in parts for piece in (_around(part, *token) if isinstance(part, str) else [part])]
    return parts


def _around(text: str, name: str, i: int, strips: bool) -> Iterator[str | int]:
    start = 0
    while (found := text.find(name, start)) >= 0:
        if found > start:
            yield text[start:found]
        yield i
        start = found + len(name)
        while strips and text[start : start + 1] in _SPACES:
            start += 1
    if start < len(text):
        yield text[start:]


def _longest_first(added: Iterable[Mapping[str, Any]]) -> list[tuple[str, int, bool]]:
    tokens = [(token["content"], token["id"], bool(token.get("rstrip"))) for token in added if token["content"]]
    return sorted(tokens, key=lambda token: len(token[0].encode()), reverse=True)
