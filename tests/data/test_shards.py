"""Token shards: whole or not there, checked when opened, read as one stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bimo import UserError
from bimo.data import shards as module
from bimo.data.shards import ShardWriter, TokenShards

TOKENIZER = "ab" * 32


def write(path: Path, documents: list[list[int]], vocab_size: int = 300) -> None:
    writer = ShardWriter(path, vocab_size, TOKENIZER)
    for ids in documents:
        writer.add(np.array(ids), n_text_bytes=2 * len(ids))
    writer.close()


@pytest.mark.parametrize("vocab_size", [300, 70_000])
def test_a_stream_across_shards_is_read_anywhere(tmp_path: Path, vocab_size: int) -> None:
    write(tmp_path / "a.tokens", [[1, 2, 3], [4]], vocab_size)
    write(tmp_path / "b.tokens", [[vocab_size - 1, 6], [7, 8, 9]], vocab_size)
    shards = TokenShards(tmp_path, TOKENIZER)
    whole = [1, 2, 3, 4, vocab_size - 1, 6, 7, 8, 9]
    for start in range(10):
        for stop in range(start, 10):
            assert shards.read(start, stop).tolist() == whole[start:stop], f"{start} … {stop}"
            starts = [place for place in (0, 3, 4, 6) if start <= place < stop]
            assert shards.document_starts(start, stop).tolist() == starts, f"starts in {start} … {stop}"
    assert (shards.n_tokens, shards.n_documents, shards.n_text_bytes) == (9, 4, 18), "counts of all shards"


@given(st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_a_damaged_shard_never_opens_with_other_sizes(
    tmp_path_factory: pytest.TempPathFactory, n: int, junk: bytes
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    write(folder / "a.tokens", [[1, 2, 3], [4]])
    content = (folder / "a.tokens").read_bytes()
    (folder / "a.tokens").write_bytes(content[: n % len(content)] if n % 2 else content + junk)
    with pytest.raises(UserError, match=r"a\.tokens"):
        TokenShards(folder, TOKENIZER)


def test_another_tokenizers_shards_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.tokens", [[1]])
    with pytest.raises(UserError, match="another tokenizer"):
        TokenShards(tmp_path, "cd" * 32)


def test_an_unfinished_shard_is_not_there(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a.tokens", 300, TOKENIZER)
    writer.add(np.array([1, 2]), 2)
    with pytest.raises(UserError, match="no token shards"):
        TokenShards(tmp_path, TOKENIZER)
    writer.drop()
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_pages_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading all over a large file must not keep it resident; the control reads without giving back."""

    def resident_after_reading(kept: int, folder: Path) -> int:
        monkeypatch.setattr(module, "_KEPT_PAGES", kept)
        shards = TokenShards(folder, TOKENIZER)
        before = mapped()
        for start in range(0, shards.n_tokens - 10, 4096):
            shards.read(start, start + 10)
        return mapped() - before

    def mapped() -> int:
        status = Path("/proc/self/status")
        if not status.exists():
            pytest.skip("this system does not say how much of a file is resident")
        line = next(line for line in status.read_text().splitlines() if line.startswith("RssFile"))
        return int(line.split()[1]) * 1024

    writer = ShardWriter(tmp_path / "a.tokens", 300, TOKENIZER)
    for _ in range(16):
        writer.add(np.ones(2**20, np.int64), 1)
    writer.close()
    size = 2 * 2**24
    assert resident_after_reading(2**40, tmp_path) > 0.7 * size, "the control: everything stays"
    assert resident_after_reading(2**22, tmp_path) < 0.3 * size, "pages are given back"
