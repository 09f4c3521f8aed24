"""What bytes each id of a `tokenizer.json` stands for, whatever library made it.

Three spellings cover the vocabularies of GPTs: GPT-2's letters for bytes, SentencePiece's ▁ for a space, and
SentencePiece's <0x0A> for a byte that no piece covers (Kudo & Richardson 2018).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

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

    table: Sequence[bytes]
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
        size = 1 + max([*vocab.values(), *(token["id"] for token in added)])
        steps = list(_steps(content.get("decoder")))
        if len(steps) > _MOST_STEPS:
            raise ValueError(f"a decoder of {len(steps)} steps")
        by_byte = any(step["type"] == "ByteLevel" for step in steps)
        texts: dict[int, bytes] = {}
        spell = _byte_level if by_byte else _sentence_piece(steps)
        for token in added:  # byte-level vocabularies hold them as they are
            text = token["content"].encode() if by_byte else spell(token["content"])
            texts[token["id"]] = b"" if token["content"] in control else text
        names = [""] * size
        for spelled, i in vocab.items():
            names[i] = spelled
        table: Sequence[bytes] = _Letters(names, texts)
        if by_byte:
            "".join(names).encode()  # half of a surrogate pair is no text, which has to be said now
        else:
            table = [texts[i] if i in texts else spell(name) if name else b"" for i, name in enumerate(names)]
        return cls(table, control, next(filter(None, map(_dropped, steps)), ""))


def _check(model: dict[str, Any], vocab: dict[str, int], added: list[dict[str, Any]]) -> None:
    """Raise ValueError where names, ids and merges do not go together."""
    ids = dict(vocab)
    for token in added:
        name, i = token["content"], token["id"]
        if not isinstance(name, str) or ids.setdefault(name, i) != i:
            raise ValueError(f"the added token {name!r:.50} has another id in the vocabulary")
    most, numbers = 2 * len(ids) + _MOST_GAPS, list(ids.values())  # the table has a place for each
    if {*map(type, numbers)} - {int} or min(numbers, default=0) < 0 or max(numbers, default=0) >= most:
        odd = next(i for i in numbers if type(i) is not int or not 0 <= i < most)
        raise ValueError(f"{odd!r:.50} is no id")
    if len({*numbers}) < len(ids):
        raise ValueError("two tokens have the same id")
    merges = model.get("merges") or ()
    inner = model.get("continuing_subword_prefix") or ""  # of a right part, which the merged token lacks
    lost = None if isinstance(merges, bpe.JoinedMerges) else bpe.lost_merge(merges, vocab, inner)
    if lost is not None:
        raise ValueError(f"the merge {lost[0]!r:.50} {lost[1]!r:.50} is of tokens that are not there")


class _Letters(Sequence[bytes]):
    """The bytes of tokens in GPT-2's letters, worked out when they are asked for: hardly any of them ever is.

    Args:
        names: The tokens by id, "" where there is none.
        texts: What some ids stand for whatever their names.
    """

    def __init__(self, names: list[str], texts: dict[int, bytes]) -> None:
        self._names, self._texts = names, texts

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> bytes: ...

    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...

    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        name = self._names[place]
        text = self._texts.get(place if place >= 0 else place + len(self))
        return _byte_level(name) if text is None else text


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
    try:
        return spelled.translate(bpe.latin_letters()).encode("latin-1")
    except UnicodeEncodeError:  # a letter that stands for no byte
        return spelled.encode()


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
