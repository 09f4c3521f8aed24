"""What bytes each id of a `tokenizer.json` stands for, whatever library made it.

Three spellings cover the vocabularies of GPTs: GPT-2's letters for bytes, SentencePiece's ▁ for a space, and
SentencePiece's <0x0A> for a byte that no piece covers (Kudo & Richardson 2018).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bimo.tokenizer import bpe

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_STEPS = ("ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip")


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a vocabulary is spelled.

    Attributes:
        table: The bytes of each id, b"" for control tokens and for ids without a token.
        control: Ids of control tokens by name.
        drops: What decoding drops at the very beginning: "space", "spaces of the first token", or "" for nothing.
    """

    table: list[bytes]
    control: dict[str, int]
    drops: str

    @classmethod
    def of(cls, content: dict[str, Any]) -> Spelling:
        """Read a `tokenizer.json`.

        Raises:
            ValueError: Its vocabulary is spelled in a way that is not known; other exceptions when it is malformed.
        """
        model = content["model"]
        kind = model.get("type", "BPE")
        if kind not in ("BPE", "Unigram"):
            raise ValueError(f"a {kind} vocabulary")
        if kind == "BPE":
            model["merges"]  # what is not there is said now and not in the middle of a text
        vocab: dict[str, int] = (
            model["vocab"] if kind == "BPE" else {piece: i for i, (piece, _) in enumerate(model["vocab"])}
        )
        added = content.get("added_tokens") or []
        control = {token["content"]: token["id"] for token in added if token.get("special")}
        table = [b""] * (1 + max([*vocab.values(), *(token["id"] for token in added)]))
        steps = list(_steps(content.get("decoder")))
        by_byte = any(step["type"] == "ByteLevel" for step in steps)
        spell = _byte_level if by_byte else _sentence_piece(steps)
        named = {token["content"] for token in added}
        for spelled, i in vocab.items():
            if spelled not in named:
                table[i] = spell(spelled)
        for token in added:  # byte-level vocabularies hold them as they are
            text = token["content"].encode() if by_byte else spell(token["content"])
            table[token["id"]] = b"" if token["content"] in control else text
        return cls(table, control, next(filter(None, map(_dropped, steps)), ""))


def _steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The decoder's steps, one after the other."""
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    elif decoder["type"] in _STEPS:
        yield decoder
    else:
        raise ValueError(f"a {decoder['type']} decoder")


def _byte_level(spelled: str) -> bytes:
    letters = bpe.letter_bytes()
    known = all(letter in letters for letter in spelled)
    return bytes(letters[letter] for letter in spelled) if known else spelled.encode()


def _sentence_piece(steps: list[dict[str, Any]]) -> Any:
    """A function that spells a piece as bytes."""
    spaces = {step.get("replacement", "▁") for step in steps if step["type"] == "Metaspace"}
    replaced = [step for step in steps if step["type"] == "Replace"]
    pairs = [(space, " ") for space in spaces] + [(step["pattern"]["String"], step["content"]) for step in replaced]
    by_byte = any(step["type"] == "ByteFallback" for step in steps)

    def spell(piece: str) -> bytes:
        byte = _BYTE.fullmatch(piece) if by_byte else None
        if byte:
            return bytes([int(byte[1], 16)])
        for old, new in pairs:
            piece = piece.replace(old, new)
        return piece.encode()

    return spell


def _dropped(step: dict[str, Any]) -> str:
    if step["type"] == "Strip":
        return "space" if step.get("content") == " " and step.get("start", 0) > 0 else ""
    always = step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"
    return "spaces of the first token" if always else ""
