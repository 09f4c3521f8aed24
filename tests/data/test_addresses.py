"""Text that lies at an address is read as if it lay here."""

from __future__ import annotations

import gzip
from pathlib import Path

import fsspec
import pytest

from bimo.core.config import DataSettings
from bimo.core.errors import UserError
from bimo.data import Corpus, Document, Problem, find_files, read_documents
from bimo.data.files import size_of


@pytest.fixture
def memory() -> fsspec.AbstractFileSystem:
    """A place that is no folder of this machine."""
    system = fsspec.filesystem("memory")
    for name, content in {
        "/corpus/a.txt": b"one\n\ntwo\n",
        "/corpus/deep/b.jsonl": b'{"text": "three"}\n{"text": 4}\n',
        "/corpus/c.txt.gz": gzip.compress("四\n".encode()),
        "/corpus/.hidden.txt": b"hidden\n",
        "/corpus/empty.txt": b"",
        "/corpus/picture.png": b"no text",
    }.items():
        system.pipe(name, content)
    return system


def read(*paths: str) -> tuple[list[Document], list[Problem]]:
    problems: list[Problem] = []
    return list(read_documents(paths, DataSettings(), problems.append)), problems


@pytest.mark.usefixtures("memory")
def test_a_folder_at_an_address_is_read_like_a_folder_here() -> None:
    documents, problems = read("memory://corpus")
    assert [d.text for d in documents] == ["one", "two", "四", "three"]
    assert documents[0].file == "memory://corpus/a.txt", "the place is an address"
    assert [str(p).startswith("memory://corpus/deep/b.jsonl, line 2") for p in problems] == [True]


@pytest.mark.usefixtures("memory")
def test_addresses_are_files_patterns_and_mix_with_paths(tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("here\n")
    documents, _ = read("memory://corpus/*.gz", str(tmp_path / "here.txt"), f"file://{tmp_path}/here.txt")
    assert [d.text for d in documents] == ["四", "here"], "a file that is named twice counts once"
    assert size_of(find_files(["memory://corpus/a.txt"])[0]) == 9


def test_a_corpus_at_an_address_is_another_when_its_content_is(memory: fsspec.AbstractFileSystem) -> None:
    before = Corpus(["memory://corpus/a.txt"], DataSettings(), lambda problem: None)
    assert before.total_bytes == 9
    same = Corpus(["memory://corpus/a.txt"], DataSettings(), lambda problem: None).fingerprint
    memory.pipe("/corpus/a.txt", b"one\n\ntoo\n")
    after = Corpus(["memory://corpus/a.txt"], DataSettings(), lambda problem: None).fingerprint
    assert before.paths == ["memory://corpus/a.txt"]
    assert same != after, "the content changed, not its size"


@pytest.mark.parametrize(
    ("address", "what"),
    [("memory://nowhere/x", "no such file"), ("memry://x/y", "did you mean 'memory'")],
)
def test_an_address_without_text_is_one_sentence(address: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        find_files([address])
