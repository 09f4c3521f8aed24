"""Token shards: documents as ids on disk, memory-mapped, with an index of where each begins.

One file is: a header (magic, version, bytes per id, counts, the tokenizer's fingerprint), the ids, and the start of
every document. A folder of such files is read as one long stream of ids. Pages that were read count as the process's
memory until they are given back, so the reader gives them back every few megabytes: five gigabytes of text train in
one.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from array import array
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from bimo.core.errors import UserError

MAGIC, VERSION = b"BIMOTOK\0", 1
_HEADER = struct.Struct("<8sIIQQQ32s")  # magic, version, bytes per id, ids, documents, bytes of text, tokenizer
_KEPT_PAGES = 2**26  # bytes of mapped pages after which they are given back
_HASHED_IDS = 2**12  # at each place that the fingerprint looks at
_PAGES_PER_READ = 2**16  # what the kernel maps around one fault


class ShardWriter:
    """Writes one shard; it appears under its name when `close` has synced it.

    Args:
        path: The file.
        vocab_size: Settles whether an id takes two bytes or four.
        tokenizer: sha256 of the tokenizer, hexadecimal.
    """

    def __init__(self, path: Path, vocab_size: int, tokenizer: str) -> None:
        self.path, self.tokenizer = path, bytes.fromhex(tokenizer)
        self.dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<u4")
        self.aside = path.with_name(f".{path.name}.part")
        self.file = self.aside.open("wb")
        self.file.write(b"\0" * _HEADER.size)
        self.n_tokens = self.n_text_bytes = 0
        self.starts = array("Q")

    def add(self, ids: np.ndarray, n_text_bytes: int) -> None:
        """Append a document: its ids, begin and end included, and the size of its text."""
        self.starts.append(self.n_tokens)
        self.file.write(ids.astype(self.dtype, copy=False).tobytes())
        self.n_tokens += len(ids)
        self.n_text_bytes += n_text_bytes

    def close(self) -> None:
        """Write index and header, sync, and put the file in its place."""
        padding = -self.file.tell() % 8
        self.file.write(b"\0" * padding + np.array(self.starts, dtype="<u8").tobytes())
        self.file.seek(0)
        counts = (self.n_tokens, len(self.starts), self.n_text_bytes)
        self.file.write(_HEADER.pack(MAGIC, VERSION, self.dtype.itemsize, *counts, self.tokenizer))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.aside, self.path)

    def drop(self) -> None:
        """Leave nothing behind."""
        self.file.close()
        self.aside.unlink(missing_ok=True)


class _Shard:
    """One mapped file."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            size = path.stat().st_size
            if len(header) < _HEADER.size or not header.startswith(MAGIC):
                raise _damaged(path, "not a token shard")
            _, version, width, self.n_tokens, self.n_documents, self.n_text_bytes, tokenizer = _HEADER.unpack(header)
            index = _HEADER.size + self.n_tokens * width
            index += -index % 8
            if version != VERSION or width not in (2, 4):
                raise _damaged(path, f"format version {version} is not {VERSION}")
            if index + 8 * self.n_documents != size:
                raise _damaged(path, f"{size} bytes long, its header says {index + 8 * self.n_documents}")
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            self.map.madvise(mmap.MADV_RANDOM)
        self.tokenizer, self.header = tokenizer.hex(), header
        self.ids = np.frombuffer(self.map, f"<u{width}", self.n_tokens, _HEADER.size)
        self.starts = np.frombuffer(self.map, "<u8", self.n_documents, index)

    def give_back(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            self.map.madvise(mmap.MADV_DONTNEED)


class TokenShards:
    """All shards of a folder as one stream of ids.

    Args:
        folder: Holds `*.tokens` files, read in the order of their names.
        tokenizer: Fingerprint that they must have been made with.

    Raises:
        UserError: There are none, one is damaged, or it was made with another tokenizer.
    """

    def __init__(self, folder: Path, tokenizer: str) -> None:
        paths = sorted(folder.glob("*.tokens"))
        if not paths:
            raise UserError("no token shards here", where=str(folder), mend="Prepare the text again.")
        self._shards = [_Shard(path) for path in paths]
        for path, shard in zip(paths, self._shards, strict=True):
            if shard.tokenizer != tokenizer:
                raise UserError("made with another tokenizer", where=str(path), mend="Prepare the text again.")
        self._ends = list(accumulate(shard.n_tokens for shard in self._shards))
        self.n_tokens = self._ends[-1]
        self.n_documents = sum(shard.n_documents for shard in self._shards)
        self.n_text_bytes = sum(shard.n_text_bytes for shard in self._shards)
        self._touched = 0

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the ids do: a hash of all headers and of up to 64 places in each shard, spread evenly."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self._shards:
            digest.update(shard.header)
            width = min(shard.n_tokens, _HASHED_IDS)
            for place in np.linspace(0, shard.n_tokens - width, 64).astype(int):
                digest.update(shard.ids[place : place + width].tobytes())
            shard.give_back()
        return digest.hexdigest()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids start … stop-1 of the stream, int64 (stop - start,)."""
        return self._gather(start, stop, starts=False)

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Places in start … stop-1 at which a document begins, int64, ascending."""
        return self._gather(start, stop, starts=True)

    def _gather(self, start: int, stop: int, *, starts: bool) -> np.ndarray:
        assert 0 <= start <= stop <= self.n_tokens, f"{start} … {stop} is not within 0 … {self.n_tokens}"
        parts = []
        number = bisect_right(self._ends, start)
        while start < stop:
            shard = self._shards[number]
            offset = self._ends[number] - shard.n_tokens
            end = min(stop, self._ends[number])
            if starts:
                low, high = np.searchsorted(shard.starts, (start - offset, end - offset))
                parts.append(shard.starts[low:high].astype(np.int64) + offset)
            else:
                parts.append(shard.ids[start - offset : end - offset].astype(np.int64))
            start, number = end, number + 1
            self._count_pages(parts[-1].nbytes)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _count_pages(self, n_bytes: int) -> None:
        """Give mapped pages back to the system from time to time."""
        self._touched += n_bytes + _PAGES_PER_READ
        if self._touched > _KEPT_PAGES:
            self._touched = 0
            for shard in self._shards:
                shard.give_back()


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"damaged ({what})", where=str(path), mend="Delete its folder and prepare the text again.")
