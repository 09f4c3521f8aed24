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
_MOST_GAPS, _MOST_STEPS = 2**16, 32
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
        _check(model, vocab, added)
        control = {token["content"]: token["id"] for token in added if token.get("special")}
        table = [b""] * (1 + max([*vocab.values(), *(token["id"] for token in added)]))
        steps = list(_steps(content.get("decoder")))
        if len(steps) > _MOST_STEPS:
            raise ValueError(f"a decoder of {len(steps)} steps")
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


def _check(model: dict[str, Any], vocab: dict[str, int], added: list[dict[str, Any]]) -> None:
    """Raise ValueError where names, ids and merges do not go together."""
    ids = dict(vocab)
    for token in added:
        name, i = token["content"], token["id"]
        if not isinstance(name, str) or ids.setdefault(name, i) != i:
            raise ValueError(f"the added token {name!r:.50} has another id in the vocabulary")
    most = 2 * len(ids) + _MOST_GAPS  # the table has a place for each
    odd = next((i for i in ids.values() if type(i) is not int or not 0 <= i < most), None)
    if odd is not None:
        raise ValueError(f"{odd!r:.50} is no id")
    if len({*ids.values()}) < len(ids):
        raise ValueError("two tokens have the same id")
    inner = model.get("continuing_subword_prefix") or ""  # of a right part, which the merged token lacks
    for merge in model.get("merges") or ():
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        whole = left + right[len(inner) :] if right.startswith(inner) else None
        if left not in vocab or right not in vocab or whole not in vocab:
            raise ValueError(f"the merge {left!r:.50} {right!r:.50} is of tokens that are not there")


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
        longest = 64 + 8 * len(piece)
        for old, new in pairs:
            if not old or len(piece) + piece.count(old) * len(new) > longest:
                raise ValueError("a decoder that makes tokens endlessly long")
            piece = piece.replace(old, new)
        return piece.encode()

    return spell


def _dropped(step: dict[str, Any]) -> str:
    if step["type"] == "Strip":
        return "space" if step.get("content") == " " and step.get("start", 0) > 0 else ""
    always = step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"
    return "spaces of the first token" if always else ""
