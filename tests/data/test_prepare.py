"""Preparation: the same shards whether it ran through or was killed, and made again when anything changed."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bimo import Tokenizer, UserError
from bimo.data import Document, is_validation
from bimo.data.prepare import Preparation, Prepared, Source


def documents(count: int = 400) -> list[Document]:
    return [Document(f"document {i} the cat sat on a mat 猫 " * (1 + i % 7), "a.txt", i + 1) for i in range(count)]


def prepare(folder: Path, tokenizer: Tokenizer, sources: list[Source], shard_tokens: int = 2000) -> Prepared:
    return Preparation(tokenizer, folder, shard_tokens=shard_tokens).run(sources)


def content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bimo.data.prepare._GROUP_CHARACTERS", 2000)


def test_every_document_is_begin_text_end_in_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = prepare(tmp_path / "tokens", tokenizer, [Source("a", documents(), "1", 0.1)])
    train = made.train[0]
    starts = [*train.document_starts(0, train.n_tokens).tolist(), train.n_tokens]
    expected = [d for d in documents() if not is_validation(d, 0.1)]
    assert train.n_documents == len(expected), "those that are not held out"
    for start, stop, document in zip(starts, starts[1:], expected, strict=False):
        ids = [tokenizer.begin_id, *tokenizer.encode(document.text), tokenizer.end_id]
        assert train.read(start, stop).tolist() == ids, document.text
    assert train.n_text_bytes == sum(len(d.text.encode()) for d in expected), "bytes are counted"


def test_an_interrupted_preparation_ends_in_the_same_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    class Broken:
        """Documents that stop with Ctrl-C after a while, once."""

        def __init__(self, after: int) -> None:
            self.after: int | None = after
            self.read = 0

        def __iter__(self) -> Iterator[Document]:
            self.read = 0
            for document in documents():
                if self.after is not None and self.read == self.after:
                    self.after = None
                    raise KeyboardInterrupt
                self.read += 1
                yield document

    prepare(tmp_path / "whole", tokenizer, [Source("a", documents(), "1", 0.1)])
    for after in (0, 57, 150, 399):
        source = Source("a", Broken(after), "1", 0.1)
        folder = tmp_path / f"broken-{after}"
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, tokenizer, [source])
        assert not list(folder.rglob(".*.part")), "no half file is left"
        prepare(folder, tokenizer, [source])
        assert content(folder) == content(tmp_path / "whole"), f"interrupted after {after} documents"


def test_a_killed_preparation_ends_in_the_same_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    script = tmp_path / "prepare.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from bimo import Tokenizer\n"
        "from bimo.data import Document, prepare\n"
        "prepare._GROUP_CHARACTERS = 2000\n"
        "documents = [Document(f'document {i} the cat ' * (1 + i % 7), 'a.txt', i + 1) for i in range(3000)]\n"
        "made = prepare.Preparation(Tokenizer.load(sys.argv[1]), Path(sys.argv[2]), shard_tokens=2000,\n"
        "                           on_progress=lambda: time.sleep(0.002))\n"
        "print('started', flush=True)\n"
        "made.run([prepare.Source('a', documents, '1', 0.1)])\n"
    )
    command = [sys.executable, str(script), str(tmp_path)]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    killed = 0
    for delay in (0.05, 0.15, 0.3):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.PIPE)
        assert process.stdout is not None, "the process says when it starts"
        process.stdout.readline()
        time.sleep(delay)  # a random moment of the work
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert killed, "at least one attempt must be killed in the middle"
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    whole = content(tmp_path / "whole")
    left = {name: digest for name, digest in content(tmp_path / "killed").items() if not name.endswith(".part")}
    assert left == whole, "the same bytes"


def test_finished_shards_are_used_again_and_changed_text_is_not(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "tokens"
    source = Source("a", documents(), "1", 0.1)
    prepare(folder, tokenizer, [source])

    class Unreadable:
        def __iter__(self) -> Iterator[Document]:
            raise AssertionError("finished text must not be read again")

    prepare(folder, tokenizer, [replace(source, documents=Unreadable())])
    changed = prepare(folder, tokenizer, [Source("a", documents(100), "2", 0.1)])
    assert changed.train[0].n_documents < 101, "another fingerprint makes it anew"


def test_several_sources_keep_their_own_folders(tmp_path: Path, tokenizer: Tokenizer) -> None:
    sources = [
        Source("a", documents(50), "1", 0.0),
        Source("b", documents(80), "1", 0.0),
        Source("v", documents(89)[80:], "1", 1.0),
    ]
    made = prepare(tmp_path / "tokens", tokenizer, sources)
    assert [shards.n_documents for shards in made.train] == [50, 80], "training text by source"
    assert made.valid.n_documents == 9, "all of the third is held out"


def test_training_documents_that_are_validation_text_too_are_left_out_and_told(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    told: list[Document] = []
    sources = [Source("a", documents(50), "1", 0.0), Source("v", documents(9), "1", 1.0)]
    made = Preparation(tokenizer, tmp_path / "tokens", on_overlap=told.append).run(sources)
    assert [shards.n_documents for shards in made.train] == [41], "what measures is not trained on"
    assert [document.row for document in told] == list(range(1, 10)), "each is named"
    apart = [Source("a", documents(50), "1", 0.0), Source("v", documents(59)[50:], "1", 1.0)]
    again = Preparation(tokenizer, tmp_path / "other", on_overlap=told.append).run(apart)
    assert again.train[0].n_documents == 50, "the control: other validation text takes nothing away"


@pytest.mark.parametrize(
    ("given", "share", "message"), [([], 0.1, "no text to train on"), (documents(5), 0.0, "validation_share")]
)
def test_nothing_to_train_or_measure_on_is_said(
    tmp_path: Path, tokenizer: Tokenizer, given: list[Document], share: float, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "tokens", tokenizer, [Source("a", given, "1", share)])
