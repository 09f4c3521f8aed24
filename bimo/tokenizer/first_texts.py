"""Ids of the first short texts, by the merges as they stand in the file: for a cold start.

`tokenizers` makes tables of all merges before it reads a word, some 60 ms and 15 MB for 49,000 of them, and a prompt
has few words. What is done here is what the library does, for ASCII alone, where letters, digits and spaces are the
same to everybody; anything else is left to it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bimo.tokenizer.bpe import JoinedMerges, byte_letters

_MOST, _LONGEST_PIECE = 2000, 64  # characters in all, then the library is faster; and of a word
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_CLASSES = {"L": "A-Za-z", "N": "0-9", "M": "", "P": r"!-#%-*,-/:;?@\[-\]_{}", "S": r"$+<=>\^`|~"}
_SYNTAX = re.compile(r"\\p\{(\w+)\}|\\.|(\[\^?)|(\])|([$^]|[+*?}]\+|&&)|.", re.DOTALL)
_PLAIN_MODEL = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
                "ignore_merges")  # fmt: skip


class FirstTexts:
    """Byte-level BPE of short ASCII texts.

    Args:
        content: A parsed `tokenizer.json`.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._vocab, self._merges = content["model"]["vocab"], content["model"].get("merges")
        self._added = {token["content"]: token for token in content.get("added_tokens") or []}
        self._stages = _stages(content)
        self._left = _MOST if self._stages else 0
        self._ranks: dict[str, int] = {}
        self._checked = False

    def encode(self, text: str, *, marked: bool) -> list[int] | None:
        """Ids of a text.

        Args:
            text: The text.
            marked: Whether control tokens may stand in it by name.

        Returns:
            None: the library has to be asked.
        """
        self._left -= len(text)
        if not self._stages or self._left < 0 or not text.isascii() or not self._sound():
            return None
        ids: list[int] = []
        for part in self._cut_out(text) if marked else [text]:
            token = self._added.get(part)
            if marked and token is not None:
                ids.append(token["id"])
                continue
            if any(name in part for name, token in self._added.items() if not token["special"]):
                return None
            found = self._ids(part)
            if found is None:
                return None
            ids += found
        return ids

    def _sound(self) -> bool:
        """Whether no text makes a control token by merges, and added tokens are looked for as they are."""
        if not self._checked:
            self._checked = True
            if self._merges.first_id < 0:
                self._ranks = {merge: rank for rank, merge in enumerate(self._merges)}
            flags = ("single_word", "lstrip", "rstrip", "normalized")
            names = [name for name, token in self._added.items() if token["special"]]
            none = len(self._merges)
            made = any(self._rank(name[:n], name[n:]) < none for name in names for n in range(1, len(name)))
            if made or any(token[flag] for token in self._added.values() for flag in flags):
                self._left = -1
        return self._left >= 0

    def _cut_out(self, text: str) -> list[str]:
        """A text cut around added tokens: from the left, the longest that begins there."""
        names = sorted((name for name in self._added if name in text), key=len, reverse=True)
        return re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]

    def _ids(self, text: str) -> list[int] | None:
        pieces = [text]
        for stage in self._stages:
            pieces = [part for piece in pieces for part in _isolated(stage, piece)]
        letters = byte_letters()
        if max(map(len, pieces), default=0) > _LONGEST_PIECE:
            return None
        parts = [part for piece in pieces for part in self._merged([letters[byte] for byte in piece.encode()])]
        ids = [self._vocab.get(part) for part in parts]
        return None if None in ids else ids  # a byte that is no token

    def _merged(self, parts: list[str]) -> list[str]:
        """Neighbours become one, the earliest merge first, of equals the one on the left."""
        none = len(self._merges)
        while len(parts) > 1:
            found = [self._rank(left, right) for left, right in itertools.pairwise(parts)]
            best = min(found)
            if best == none:
                break
            place = found.index(best)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return parts

    def _rank(self, left: str, right: str) -> int:
        """Which merge it is; the count of all when it is none."""
        merge, first, none = f"{left} {right}", self._merges.first_id, len(self._merges)
        if first < 0:
            return self._ranks.get(merge, none)
        rank = self._vocab.get(left + right, -1) - first  # a token is made by one merge, the one in its place
        return rank if 0 <= rank < none and self._merges[rank] == merge else none


def _isolated(stage: re.Pattern[str], text: str) -> Iterator[str]:
    """A text cut before and after each match."""
    end = 0
    for match in stage.finditer(text):
        if match.start() > end:
            yield text[end : match.start()]
        if match.end() > match.start():
            yield match[0]
        end = match.end()
    if end < len(text):
        yield text[end:]


def _stages(content: Mapping[str, Any]) -> list[re.Pattern[str]]:
    """How a text is cut into words, when merging words is all that is done to it; else nothing."""
    model, before = content["model"], content.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [])
    if not isinstance(model.get("merges"), JoinedMerges) or any(model.get(key) for key in _PLAIN_MODEL):
        return []
    if content.get("normalizer") is not None or _BYTE_LEVEL not in steps:
        return []
    # Behind the bytes, llama.cpp's rule cuts at those that are no tokens; a text with such a one is not for us.
    cuts = steps[: steps.index(_BYTE_LEVEL)]
    found = [_for_ascii(cut.get("pattern", {}).get("Regex", "$")) for cut in cuts]
    return [stage for stage in found if stage is not None] if all(found) else []


def _for_ascii(expression: str) -> re.Pattern[str] | None:
    """An expression of the library's for texts in ASCII; None where the two languages may differ."""
    parts, inside = [], False
    for match in _SYNTAX.finditer(expression):
        kind, opens, closes, odd = match.groups()
        if (odd and not inside) or (odd == "&&") or (opens and inside) or (kind and kind not in _CLASSES):
            return None
        inside = (inside or bool(opens)) and not closes
        letters = _CLASSES.get(kind or "", "")
        parts.append(match[0] if not kind else letters if inside else f"[{letters}]" if letters else "(?!)")
    return re.compile("".join(parts), re.ASCII)
