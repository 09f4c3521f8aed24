"""Preparation: documents to token shards on disk, once, on all cores, and from where it stopped when interrupted.

Every document becomes begin + ids + end. A journal is written after each finished shard; a new start with the same
text, tokenizer and settings skips what the journal holds, anything else starts afresh. The result is the same either
way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from bimo.core.artifacts import write_text
from bimo.core.errors import UserError
from bimo.data.documents import Document
from bimo.data.shards import ShardWriter, TokenShards
from bimo.data.split import is_validation

SHARD_TOKENS = 2**25
_GROUP_CHARACTERS = 2**21  # encoded at once, on all cores


class Encoder(Protocol):
    """What preparation needs of a tokenizer."""

    vocab_size: int

    @property
    def begin_id(self) -> int | None: ...

    @property
    def end_id(self) -> int | None: ...

    @property
    def fingerprint(self) -> str: ...

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class Source:
    """Text that is prepared, and drawn from, as one.

    Attributes:
        name: Name of its folder.
        documents: Can be iterated over again, with the same result.
        fingerprint: Changes when the text does.
        validation_share: Share of its documents that is held out; 1 makes all of it validation text.
    """

    name: str
    documents: Iterable[Document]
    fingerprint: str
    validation_share: float


@dataclass(frozen=True)
class Prepared:
    """Token shards of a run.

    Attributes:
        train: One per source that has training text, in order.
        valid: Held-out text of all sources.
    """

    train: list[TokenShards]
    valid: TokenShards


class Preparation:
    """Turns text into shards.

    Args:
        tokenizer: Encodes it.
        folder: Where the shards go.
        threads: Threads that encode; 0: one per core.
        shard_tokens: A shard is closed when it has this many ids.
        on_progress: Called now and then.
        on_overlap: Called with each training document that is left out, because it is validation text too.
    """

    def __init__(
        self,
        tokenizer: Encoder,
        folder: Path,
        *,
        threads: int = 0,
        shard_tokens: int = SHARD_TOKENS,
        on_progress: Callable[[], None] = lambda: None,
        on_overlap: Callable[[Document], None] = lambda document: None,
    ) -> None:
        self.tokenizer, self.folder, self.threads = tokenizer, folder, threads
        self.shard_tokens, self.on_progress, self.on_overlap = shard_tokens, on_progress, on_overlap
        self.held_out: frozenset[int] = frozenset()  # fingerprints of documents that only measure

    def run(self, sources: Sequence[Source]) -> Prepared:
        """Prepare the sources, or what is left of them.

        Raises:
            UserError: There is no training or no validation text.
        """
        fingerprint = [self.tokenizer.fingerprint, str(self.shard_tokens)]
        fingerprint += [f"{s.name} {s.fingerprint} {s.validation_share}" for s in sources]
        journal = _Journal(self.folder, fingerprint)
        measuring = [s.documents for s in sources if s.validation_share == 1 and len(sources) > 1]
        self.held_out = frozenset(document.fingerprint for documents in measuring for document in documents)
        for source in sources:
            if not journal.of(source.name).done:
                self._prepare(source, journal)
        trained = [self.folder / "train" / source.name for source in sources]
        trained = [folder for folder in trained if list(folder.glob("*.tokens"))]
        if not trained:
            raise UserError("there is no text to train on", mend="Give files that hold text.")
        if not list((self.folder / "valid").glob("*.tokens")):
            raise UserError(
                "no document was held out, so nothing could be measured",
                mend="Give more documents, raise --data.validation_share (0.1 holds out a tenth of them), or name "
                "--data.validation_paths.",
            )
        tokenizer = self.tokenizer.fingerprint
        return Prepared([TokenShards(f, tokenizer) for f in trained], TokenShards(self.folder / "valid", tokenizer))

    def _prepare(self, source: Source, journal: _Journal) -> None:
        """Encode one source from where the journal stands."""
        progress = journal.of(source.name)
        shard = _OpenShard(self, source, progress.shards)
        try:
            for group in _groups(source.documents, skip=progress.documents):
                shard.encode(group)
                self.on_progress()
                if shard.n_tokens >= self.shard_tokens:
                    shard.close()
                    progress = replace(
                        progress, documents=progress.documents + shard.n_documents, shards=shard.number + 1
                    )
                    journal.write(source.name, progress)
                    shard = _OpenShard(self, source, progress.shards)
            shard.close()
        except BaseException:  # also Ctrl-C: what was not finished must not stay
            shard.drop()
            raise
        journal.write(source.name, replace(progress, documents=progress.documents + shard.n_documents, done=True))


@dataclass(frozen=True)
class _Progress:
    """How far a source is: documents and shards that are finished."""

    documents: int = 0
    shards: int = 0
    done: bool = False


class _Journal:
    """The progress of every source, on disk; it starts afresh when anything that settles the result has changed."""

    def __init__(self, folder: Path, fingerprint: list[str]) -> None:
        self.path, self.fingerprint = folder / "journal.json", fingerprint
        self.progress: dict[str, _Progress] = {}
        try:
            saved = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            saved = {}
        if saved.get("fingerprint") == fingerprint:
            self.progress = {name: _Progress(**values) for name, values in saved["sources"].items()}
        elif folder.exists():
            shutil.rmtree(folder)

    def of(self, source: str) -> _Progress:
        return self.progress.get(source, _Progress())

    def write(self, source: str, progress: _Progress) -> None:
        self.progress[source] = progress
        sources = {name: asdict(values) for name, values in self.progress.items()}
        write_text(self.path, json.dumps({"fingerprint": self.fingerprint, "sources": sources}, indent=1))


class _OpenShard:
    """The shard of a source that is being written, one file for training and one for held-out text."""

    def __init__(self, preparation: Preparation, source: Source, number: int) -> None:
        self.preparation, self.source, self.number = preparation, source, number
        self.writers: dict[str, ShardWriter] = {}
        self.n_tokens = self.n_documents = 0

    def encode(self, group: list[Document]) -> None:
        tokenizer = self.preparation.tokenizer
        self.n_documents += len(group)
        group = [document for document in group if not self._overlaps(document)]
        encoded = tokenizer.encode_batch([document.text for document in group], self.preparation.threads)
        for document, ids in zip(group, encoded, strict=True):
            begin, end = ([] if i is None else [i] for i in (tokenizer.begin_id, tokenizer.end_id))
            whole = np.concatenate((begin, ids, end)).astype(ids.dtype)
            split = "valid" if is_validation(document, self.source.validation_share) else "train"
            self._writer(split).add(whole, len(document.text.encode()))
            self.n_tokens += len(whole)

    def _overlaps(self, document: Document) -> bool:
        """Whether training on this document would make the held-out figures better than they are."""
        held_out = self.preparation.held_out
        overlaps = bool(held_out) and self.source.validation_share < 1 and document.fingerprint in held_out
        if overlaps:
            self.preparation.on_overlap(document)
        return overlaps

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()

    def drop(self) -> None:
        for writer in self.writers.values():
            writer.drop()

    def _writer(self, split: str) -> ShardWriter:
        if split not in self.writers:
            name = f"{self.source.name}-{self.number:05d}.tokens"
            folder = self.preparation.folder / split
            path = (folder / self.source.name if split == "train" else folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            tokenizer = self.preparation.tokenizer
            self.writers[split] = ShardWriter(path, tokenizer.vocab_size, tokenizer.fingerprint)
        return self.writers[split]


def _groups(documents: Iterable[Document], skip: int) -> Iterator[list[Document]]:
    """Documents in groups of bounded size, without the first `skip`."""
    group: list[Document] = []
    size = 0
    for document in islice(documents, skip, None):
        group.append(document)
        size += len(document.text)
        if size >= _GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group
