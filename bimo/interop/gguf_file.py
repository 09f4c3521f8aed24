"""The layout of GGUF files (ggml's specification, versions 2 and 3): read with mistrust, written piece by piece.

Every count and length in a header is compared with the bytes that are left before anything is made of it, so that a
hostile file costs neither time nor memory. Tensors stay in the file, mapped privately: what is written to them does not
reach the disk.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bimo.core.errors import UserError
from bimo.model.formats import FORMATS

ALIGNMENT = 32
_AGAIN = "Download or export the file again."
_MOST_ENTRIES, _MOST_TENSORS = 2**16, 2**17
_LONGEST_HEADER = 2**26  # bytes; a vocabulary of 256,000 tokens with its merges needs some 16 MB
_LONGEST_NAME, _LONGEST_TEXT = 2**12, 2**20  # bytes
_MOST_MEMORY = 96_000_000  # bytes; 260,000 tokens with twice as many merges take 85 MB
_USUAL_TEXT = 16  # bytes of a token or a merge, or fewer, on average
_SHORT = 64  # bytes of a text that takes no more than _PER_TEXT
_PER_TEXT, _PER_NUMBER, _PER_TENSOR = 96, 40, 400  # bytes of memory, with what is mapped of the file
_LARGEST_TENSOR = 2**48  # numbers
_BY_NUMBER = {format.number: format for format in FORMATS.values()}
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        name: Its name.
        shape: Outermost dimension first.
        type: ggml's number of the type.
        offset: From the beginning of the data, in bytes.
        n_bytes: Its size.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    n_bytes: int


class GGUFFile:
    """A file whose header is sound.

    Attributes:
        path: The file.
        metadata: Its fields.
        tensors: Its tensors by name.
        start: Where their data begin, in bytes.
    """

    def __init__(self, path: Path, metadata: dict[str, Any], tensors: dict[str, TensorInfo], start: int) -> None:
        self.path, self.metadata, self.tensors, self.start = path, metadata, tensors, start
        self._bytes = np.memmap(path, dtype=np.uint8, mode="c")

    def data(self, name: str) -> np.ndarray:
        """The bytes of a tensor, uint8, mapped."""
        info = self.tensors[name]
        start = self.start + info.offset
        return self._bytes[start : start + info.n_bytes]


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a file; tensors are mapped and not read.

    Raises:
        UserError: There is no such file, or anything about it is not as it should be.
    """
    try:
        if not path.is_file():
            raise UserError("no such file", where=str(path), mend="Give a .gguf file.")
        size = path.stat().st_size
        if size < 24:
            raise UserError("not a GGUF file", where=str(path), mend="Give a file in llama.cpp's format.")
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), min(size, _LONGEST_HEADER), access=mmap.ACCESS_READ) as header,
        ):
            reader = _Header(header, path, size)
            n_tensors, n_entries = reader.opening()
            metadata = dict(reader.entries(n_entries))
            tensors = reader.tensors(n_tensors)
            start = reader.data_start(tensors.values(), metadata)
        return GGUFFile(path, metadata, tensors, start)
    except OSError as error:
        raise UserError(f"cannot be read ({error})", where=str(path), mend="Check the file.") from error


class _Header:
    """A cursor over the bytes of a header.

    Args:
        data: The beginning of the file.
        path: What to name in errors.
        size: Bytes of the whole file.
    """

    def __init__(self, data: mmap.mmap, path: Path, size: int) -> None:
        self.data, self.path, self.size, self.at = data, path, size, 0
        self.memory = 0

    def refuse(self, what: str, mend: str = _AGAIN) -> NoReturn:
        raise UserError(what if len(what) < 300 else what[:300] + " …", where=str(self.path), mend=mend)

    def hold(self, n_bytes: int) -> None:
        """Count memory before it is taken."""
        self.memory += n_bytes
        if self.memory > _MOST_MEMORY:
            self.refuse(f"its header would fill more than {_MOST_MEMORY // 10**6} MB of memory")

    def opening(self) -> tuple[int, int]:
        """Magic, version, and the counts of tensors and fields."""
        if self.take(4, "the magic") != b"GGUF":
            self.refuse("not a GGUF file", "Give a file in llama.cpp's format.")
        version = self.number("<I", "the version")
        if version in (2 << 24, 3 << 24):
            self.refuse("a GGUF file for big-endian machines", "Export it for little-endian ones.")
        if version not in (2, 3):
            self.refuse(f"GGUF version {version} is not supported", "Convert it to version 3.")
        n_tensors, n_entries = self.numbers("<QQ", "the count of tensors and fields")
        if n_tensors > _MOST_TENSORS or n_tensors * 24 > len(self.data):
            self.refuse(f"it claims {n_tensors} tensors, more than it can hold")
        if n_entries > _MOST_ENTRIES or n_entries * 13 > len(self.data):
            self.refuse(f"it claims {n_entries} fields, more than it can hold")
        self.hold(n_tensors * _PER_TENSOR)
        return n_tensors, n_entries

    def entries(self, count: int) -> Iterable[tuple[str, Any]]:
        """The fields."""
        seen: set[str] = set()
        for _ in range(count):
            key = self.text("the name of a field", _LONGEST_NAME)
            if key in seen:
                self.refuse(f"the field {key!r} stands twice")
            seen.add(key)
            yield key, self.value(self.number("<I", f"the type of {key!r}"), key)

    def value(self, kind: int, key: str) -> Any:
        """A field's value."""
        if kind == _STRING:
            return self.text(f"the field {key!r}")
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _NUMBERS:
            self.refuse(f"the field {key!r} has the unknown type {kind}")
        number = self.number(_NUMBERS[kind], f"the field {key!r}")
        return self.truth([number], key)[0] if kind == _BOOL else number

    def array(self, key: str) -> list[Any]:
        """A field's list of numbers or texts."""
        kind, count = self.numbers("<IQ", f"the length of {key!r}")
        item = 8 if kind == _STRING else np.dtype(_NUMBERS[kind]).itemsize if kind in _NUMBERS else 0
        if item == 0:
            self.refuse(f"the field {key!r} is a list of the type {kind}, which is not supported")
        if count * item > len(self.data) - self.at:
            self.refuse(f"the field {key!r} claims {count} items, more than the file holds")
        self.hold(count * (_PER_TEXT if kind == _STRING else _PER_NUMBER))
        if kind == _STRING:
            return self.texts(count, key)
        values = np.frombuffer(self.take(count * item, f"the field {key!r}"), dtype=_NUMBERS[kind]).tolist()
        return self.truth(values, key) if kind == _BOOL else values

    def truth(self, values: list[int], key: str) -> list[bool]:
        if any(value > 1 for value in values):
            self.refuse(f"the field {key!r} holds a truth value that is neither 0 nor 1")
        return [bool(value) for value in values]

    def texts(self, count: int, key: str) -> list[str]:
        """Many texts; those of a vocabulary nearly always come apart all at once, ten times as fast as one by one."""
        for size in (_USUAL_TEXT, _SHORT):
            at_once = self._come_apart(self.data[self.at : self.at + count * (8 + size)], count, key)
            if at_once is not None:
                return at_once
        data, at, limit, unpack = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        found = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + unpack(data, at)[0]
                if at > limit:
                    self.refuse(f"the field {key!r} is cut off")
                if at - start > _SHORT:
                    self.hold_long(at - start, f"a text in {key!r}")
                found.append(data[start:at].decode())
        except struct.error:
            self.refuse(f"the field {key!r} is cut off")
        except UnicodeDecodeError:
            # Vocabularies of bytes hold what is no text; it has no place in a tokenizer that is made of text.
            self.refuse(f"the field {key!r} holds a text that is not UTF-8")
        self.at = at
        return found

    def _come_apart(self, data: bytes, count: int, key: str) -> list[str] | None:
        """The texts at the beginning of some bytes, if the only zeros there are the last seven bytes of each length."""
        window = np.frombuffer(data, dtype=np.uint8)
        zeros = np.flatnonzero(window == 0)[: 7 * count]
        if not count or len(zeros) < 7 * count:
            return None
        first, last = zeros[::7], zeros[6::7]
        lengths = window[first - 1].astype(np.int64)
        ends = last + 1 + lengths  # where the next length has its first byte, if all is so
        if first[0] != 1 or (last - first != 6).any() or (ends[:-1] + 1 != first[1:]).any() or ends[-1] > len(window):
            return None
        kept = window[: ends[-1]] != 0
        if np.count_nonzero(kept) != len(kept) - 7 * count:  # the last text has one
            return None
        for length in lengths[lengths > _SHORT].tolist():
            self.hold_long(length, f"a text in {key!r}")
        kept[first - 1], kept[first] = False, True  # one zero stays of each length
        try:
            found = window[: ends[-1]][kept].tobytes().decode().split("\0")[1:]
        except UnicodeDecodeError:  # which it is, is said one by one
            return None
        self.at += int(ends[-1])
        return found

    def tensors(self, count: int) -> dict[str, TensorInfo]:
        """What the header says of the tensors."""
        found: dict[str, TensorInfo] = {}
        for _ in range(count):
            tensor = self.tensor()
            if tensor.name in found:
                self.refuse(f"the tensor {tensor.name!r} stands twice")
            found[tensor.name] = tensor
        return found

    def data_start(self, tensors: Iterable[TensorInfo], metadata: dict[str, Any]) -> int:
        """Where the data begin, behind the header; tensors are checked against each other and the end of the file."""
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment not in {2**n for n in range(3, 17)}:
            self.refuse(f"general.alignment is {alignment!r}, and must be a power of two from 8 to 65536")
        start = -(-self.at // alignment) * alignment
        end, before = 0, ""
        for tensor in sorted(tensors, key=attrgetter("offset")):
            if tensor.offset % alignment:
                self.refuse(f"the tensor {tensor.name!r} does not lie at a multiple of {alignment} bytes")
            if tensor.offset < end:
                self.refuse(f"the tensors {before!r} and {tensor.name!r} overlap")
            end, before = tensor.offset + tensor.n_bytes, tensor.name
            if start + end > self.size:
                self.refuse(f"the tensor {before!r} reaches beyond the end of the file: it is cut off or damaged")
        return start

    def tensor(self) -> TensorInfo:
        name = self.text("the name of a tensor", _LONGEST_NAME)
        what = f"the tensor {name!r}"
        n_dims = self.number("<I", what)
        if not 1 <= n_dims <= 4:
            self.refuse(f"{what} has {n_dims} dimensions")
        *sizes, kind, offset = self.numbers(f"<{n_dims}QIQ", what)
        n_numbers = math.prod(sizes)
        if n_numbers < 1 or n_numbers > _LARGEST_TENSOR:
            self.refuse(f"{what} has the impossible shape {' x '.join(map(str, sizes))}")
        format = _BY_NUMBER.get(kind)
        if format is None:
            self.refuse(
                f"{what} has the type {kind}, which is not supported", f"Quantise it as one of {', '.join(FORMATS)}."
            )
        if sizes[0] % format.block_size:
            self.refuse(f"{what} has rows of {sizes[0]} numbers, no whole blocks of {format.block_size}")
        n_bytes = n_numbers // format.block_size * format.block_bytes
        return TensorInfo(name, tuple(reversed(sizes)), kind, offset, n_bytes)

    def text(self, what: str, longest: int = _LONGEST_TEXT) -> str:
        length = self.number("<Q", what)
        if length > len(self.data) - self.at:
            self.refuse(f"{what} is cut off")
        self.hold_long(length, what, longest)
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            self.refuse(f"{what} is not UTF-8")

    def hold_long(self, length: int, what: str, longest: int = _LONGEST_TEXT) -> None:
        """Count the memory of a text: up to four bytes for each of its own, and what is mapped of the file."""
        if length > longest:
            self.refuse(f"{what} is {length} bytes long, too long")
        self.hold(_PER_TEXT + 5 * length)

    def number(self, format: str, what: str) -> Any:
        return self.numbers(format, what)[0]

    def numbers(self, format: str, what: str) -> tuple[Any, ...]:
        try:
            found = struct.unpack_from(format, self.data, self.at)
        except struct.error:
            self.refuse(f"{what} is cut off")
        self.at += struct.calcsize(format)
        return found

    def take(self, count: int, what: str) -> bytes:
        if count > len(self.data) - self.at:
            self.refuse(f"{what} is cut off")
        self.at += count
        return self.data[self.at - count : self.at]


def write_gguf(
    path: Path,
    metadata: dict[str, Any],
    tensors: list[tuple[str, tuple[int, ...], int]],
    data: Callable[[str], np.ndarray],
) -> None:
    """Write a file, one tensor after the other; it appears under its name when it is whole.

    Args:
        path: Where to; an existing file is replaced.
        metadata: Fields: bool, int, float, str, or a list of one of these.
        tensors: (name, shape with the outermost dimension first, ggml's number of the type).
        data: Gives a tensor's bytes by name, uint8.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    sizes = {}
    try:
        with part.open("wb") as file:
            file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
            for key, value in metadata.items():
                file.write(_text(key) + _value(value))
            offset = 0
            for name, shape, kind in tensors:
                format = _BY_NUMBER[kind]
                sizes[name] = format.row_bytes(shape[-1]) * int(np.prod(shape[:-1], dtype=np.int64))
                file.write(_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
                file.write(struct.pack("<IQ", kind, offset))
                offset += _padded(sizes[name])
            file.write(bytes(_padded(file.tell()) - file.tell()))
            for name, _, _ in tensors:
                content = data(name)
                assert content.nbytes == sizes[name], f"{name} has {content.nbytes} bytes, not {sizes[name]}"
                file.write(content.tobytes() if not content.flags.c_contiguous else content.data)
                file.write(bytes(_padded(sizes[name]) - sizes[name]))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot be written ({error})", where=str(path), mend="Check the folder.") from error
    finally:
        part.unlink(missing_ok=True)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Type and value of a field."""
    if isinstance(value, list):
        kind = 5 if value and isinstance(value[0], int) and not isinstance(value[0], bool) else _kind(value[:1])
        items = b"".join(map(_text, value)) if kind == _STRING else np.array(value, dtype=_NUMBERS[kind]).tobytes()
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + items
    kind = _kind([value])
    if kind == _STRING:
        return struct.pack("<I", kind) + _text(value)
    return struct.pack("<I", kind) + np.array(value, dtype=_NUMBERS[kind]).tobytes()


def _kind(values: list[Any]) -> int:
    """The type of the first value; of an empty list, text."""
    value = values[0] if values else ""
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return (4 if value < 2**32 else 10) if value >= 0 else 11
    return 6 if isinstance(value, float) else _STRING
