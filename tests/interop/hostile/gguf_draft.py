"""A small sound GGUF file in which anything can be changed, and the changes that tests make to it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bimo import LM
from bimo.interop.gguf_file import read_gguf

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_SIZES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


@dataclass
class Piece:
    """A tensor as a header describes it: dimensions innermost first, the offset from the beginning of the data."""

    name: str
    dims: list[int]
    kind: int
    offset: int


@dataclass
class Draft:
    """A GGUF file that can be written with anything changed.

    Attributes:
        fields: Key to value, or to its bytes (type and value).
        pieces: The tensors.
        data: What follows the header.
        version: The version's number; `counts`: tensors and fields, where they are not to be counted.
        repeated: Fields once more at the end of the list.
    """

    fields: dict[str, Any]
    pieces: list[Piece]
    data: bytes
    version: int = 3
    counts: tuple[int | None, int | None] = (None, None)
    alignment: int = 32
    repeated: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, lm: LM, path: Path) -> Draft:
        """The draft of a model's sound file, which is written to `path`."""
        lm.export(path, "Q8_0")
        file = read_gguf(path)
        pieces = [Piece(t.name, [*t.shape[::-1]], t.type, t.offset) for t in file.tensors.values()]
        return cls(dict(file.metadata), pieces, path.read_bytes()[file.start :])

    def piece(self, name: str) -> Piece:
        return next(piece for piece in self.pieces if piece.name == name)

    def header(self) -> bytes:
        keys = [*self.fields, *self.repeated]
        n_pieces, n_fields = self.counts
        parts = [b"GGUF", struct.pack("<I", self.version)]
        parts.append(struct.pack("<QQ", len(self.pieces) if n_pieces is None else n_pieces, n_fields or len(keys)))
        parts += [text(key) + value(self.fields[key]) for key in keys]
        for piece in self.pieces:
            dims = struct.pack(f"<I{len(piece.dims)}Q", len(piece.dims), *piece.dims)
            parts.append(text(piece.name) + dims + struct.pack("<IQ", piece.kind, piece.offset))
        return b"".join(parts)

    def bytes(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data


def text(content: str | bytes) -> bytes:
    data = content if isinstance(content, bytes) else content.encode()
    return struct.pack("<Q", len(data)) + data


def number(kind: int, content: Any) -> bytes:
    """A field's type and value."""
    return struct.pack(f"<I{_SIZES[kind]}", kind, content)


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    """A field's type and value: a list that claims `count` items."""
    return struct.pack("<IIQ", ARRAY, kind, count) + items


def value(content: Any) -> bytes:
    """A field's type and value as other tools write them; bytes stay as they are."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, bool):
        return number(BOOL, content)
    if isinstance(content, str):
        return struct.pack("<I", STRING) + text(content)
    if isinstance(content, list):
        if all(isinstance(item, str) for item in content):
            return array(STRING, len(content), b"".join(map(text, content)))
        kind = F32 if any(isinstance(item, float) for item in content) else I32
        return array(kind, len(content), struct.pack(f"<{len(content)}{_SIZES[kind]}", *content))
    return number(F32, content) if isinstance(content, float) else number(U32 if 0 <= content < 2**32 else I64, content)


Change = Callable[[Draft], "bytes | None"]
"""Changes a draft, or gives the bytes of the file itself."""


def put(key: str, content: Any) -> Change:
    """One field says something else."""
    return lambda draft: draft.fields.update({key: content})


def lack(key: str) -> Change:
    """One field is missing."""

    def change(draft: Draft) -> None:
        del draft.fields[key]

    return change


def make(**changes: Any) -> Change:
    """The draft's own attributes are other ones."""

    def change(draft: Draft) -> None:
        for name, content in changes.items():
            setattr(draft, name, content)

    return change


def tensor(which: str, **changes: Any) -> Change:
    """One tensor is described otherwise."""

    def change(draft: Draft) -> None:
        piece = draft.piece(which)
        for key, content in changes.items():
            setattr(piece, key, content)

    return change


def cut(share: float) -> Change:
    """The file ends early: at this share of its header."""
    return lambda draft: draft.bytes()[: int(len(draft.header()) * share)]


def both(*changes: Change) -> Change:
    """One change after the other."""

    def change(draft: Draft) -> None:
        for one in changes:
            one(draft)

    return change


def more(name: str) -> Change:
    """One tensor too many, with room of its own."""

    def change(draft: Draft) -> None:
        draft.pieces.append(Piece(name, [32], 0, len(draft.data)))
        draft.data += bytes(128)

    return change


def renamed(architecture: str) -> Change:
    """The file says that it holds another architecture."""

    def change(draft: Draft) -> None:
        old = draft.fields["general.architecture"]
        draft.fields = {key.replace(f"{old}.", f"{architecture}."): draft.fields[key] for key in draft.fields}
        draft.fields["general.architecture"] = architecture

    return change


def scaling(kind: str, factor: Any) -> Change:
    """The file stretches rotary positions."""

    def change(draft: Draft) -> None:
        words = f"{draft.fields['general.architecture']}.rope.scaling."
        draft.fields |= {f"{words}type": kind, f"{words}factor": factor, f"{words}original_context_length": 32}

    return change


def many(count: int, *, twice: bool) -> Change:
    """A hundred thousand tensors of one number each."""

    def change(draft: Draft) -> None:
        draft.pieces = [Piece(f"t{i}", [1], 0, 32 * i) for i in range(count)]
        if twice:
            draft.pieces[-1].name = "t7"
        draft.data = bytes(32 * count)

    return change


def items(key: str, place: int, content: Any) -> Change:
    """One item of a list is another one."""

    def change(draft: Draft) -> None:
        draft.fields[key] = [*draft.fields[key]]
        draft.fields[key][place] = content

    return change


def longer(key: str, by: int) -> Change:
    """A list has more or fewer items."""

    def change(draft: Draft) -> None:
        old = draft.fields[key]
        draft.fields[key] = old[:by] if by < 0 else [*old, *old[:by]]

    return change


def pieces(**changes: Any) -> Change:
    """A SentencePiece vocabulary, with some of its fields changed; None takes a field away."""

    def change(draft: Draft) -> None:
        n = len(draft.fields["tokenizer.ggml.tokens"])
        names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        names += [chr(0x4E00 + i) for i in range(n - len(names))]
        kinds = [2, 3, 3, *[6] * 256, *[1] * (n - 259)]
        sound = {"model": "llama", "tokens": names, "token_type": kinds, "scores": [-float(i) for i in range(n)]}
        for key, content in {**sound, "merges": None, "pre": "default", **changes}.items():
            content = content(sound[key]) if callable(content) else content
            draft.fields[f"tokenizer.ggml.{key}"] = content
            if content is None:
                del draft.fields[f"tokenizer.ggml.{key}"]

    return change
