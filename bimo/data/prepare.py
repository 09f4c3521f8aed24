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
from typing import Any, Protocol

import numpy as np

from bimo.core.artifacts import write_text
from bimo.core.errors import UserError
from bimo.data.documents import Document, Problem
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
class Counts:
    """What a piece of shared-out work came to.

    Attributes:
        documents: Read; those that are left out are counted too.
        tokens: Written.
        paths: The shards.
    """

    documents: int
    tokens: int
    paths: list[Path]


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
        journal = _Journal(self.folder, self._fingerprint(sources))
        self.held_out = frozenset(document.fingerprint for s in measuring(sources) for document in s.documents)
        for source in sources:
            if not journal.of(source.name).done:
                self._prepare(source, journal)
        return open_prepared(self.folder, sources, self.tokenizer.fingerprint)

    def begin_shared(self, sources: Sequence[Source]) -> bool:
        """Begin, or go on with, work that is shared out; False when all of it was prepared before.

        Until `mark_done` the journal is one that only shared-out work goes on with.
        """
        fingerprint = self._fingerprint(sources)
        if _Journal.saved(self.folder).get("fingerprint") == fingerprint:
            journal = _Journal(self.folder, fingerprint)
            if all(journal.of(source.name).done for source in sources):
                return False
        _Journal(self.folder, [*fingerprint, "shared out"]).save()
        return True

    def write_shard(self, source: Source, name: str, documents: Iterable[Document]) -> Counts:
        """A shard of these documents alone, for work that is shared out; `mark_done` ends it.

        Args:
            source: Where they come from.
            name: Of the shard; the same documents must get the same one, because a piece of work may be done twice.
            documents: In their order.
        """
        shard = _OpenShard(self, source, name)
        try:
            for group in _groups(documents, skip=0):
                shard.encode(group)
            shard.close()
        except BaseException:
            shard.drop()
            raise
        return Counts(shard.n_documents, shard.n_tokens, shard.paths())

    def mark_done(self, sources: Sequence[Source], documents: dict[str, int]) -> None:
        """Work that was shared out is whole: documents by source."""
        journal = _Journal(self.folder, [*self._fingerprint(sources), "shared out"])
        journal.fingerprint = self._fingerprint(sources)
        journal.progress = {s.name: _Progress(documents.get(s.name, 0), 0, done=True) for s in sources}
        journal.save()

    def _fingerprint(self, sources: Sequence[Source]) -> list[str]:
        """All that settles the result."""
        fingerprint = [self.tokenizer.fingerprint, str(self.shard_tokens)]
        return fingerprint + [f"{s.name} {s.fingerprint} {s.validation_share}" for s in sources]

    def _prepare(self, source: Source, journal: _Journal) -> None:
        """Encode one source from where the journal stands."""
        progress = journal.of(source.name)
        shard = _OpenShard(self, source, f"{progress.shards:05d}")
        try:
            for group in _groups(source.documents, skip=progress.documents):
                shard.encode(group)
                self.on_progress()
                if shard.n_tokens >= self.shard_tokens:
                    shard.close()
                    progress = replace(
                        progress, documents=progress.documents + shard.n_documents, shards=progress.shards + 1
                    )
                    journal.write(source.name, progress)
                    shard = _OpenShard(self, source, f"{progress.shards:05d}")
            shard.close()
        except BaseException:  # also Ctrl-C: what was not finished must not stay
            shard.drop()
            raise
        journal.write(source.name, replace(progress, documents=progress.documents + shard.n_documents, done=True))


def open_prepared(folder: Path, sources: Sequence[Source], tokenizer: str) -> Prepared:
    """The shards of sources that were prepared in a folder.

    Raises:
        UserError: There is no training or no validation text.
    """
    trained = [folder / "train" / source.name for source in sources]
    trained = [place for place in trained if list(place.glob("*.tokens"))]
    if not trained:
        raise UserError("there is no text to train on", mend="Give files that hold text.")
    if not list((folder / "valid").glob("*.tokens")):
        raise UserError(
            "no document was held out, so nothing could be measured",
            mend="Give more documents, raise --data.validation_share (0.1 holds out a tenth of them), or name "
            "--data.validation_paths.",
        )
    return Prepared([TokenShards(place, tokenizer) for place in trained], TokenShards(folder / "valid", tokenizer))


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
        saved = self.saved(folder)
        if saved.get("fingerprint") == fingerprint:
            self.progress = {name: _Progress(**values) for name, values in saved["sources"].items()}
        elif folder.exists():
            shutil.rmtree(folder)

    @staticmethod
    def saved(folder: Path) -> dict[str, Any]:
        """What lies on disk; nothing where it cannot be read."""
        try:
            return json.loads((folder / "journal.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def of(self, source: str) -> _Progress:
        return self.progress.get(source, _Progress())

    def write(self, source: str, progress: _Progress) -> None:
        self.progress[source] = progress
        self.save()

    def save(self) -> None:
        sources = {name: asdict(values) for name, values in self.progress.items()}
        write_text(self.path, json.dumps({"fingerprint": self.fingerprint, "sources": sources}, indent=1))


class _OpenShard:
    """The shard of a source that is being written, one file for training and one for held-out text."""

    def __init__(self, preparation: Preparation, source: Source, name: str) -> None:
        self.preparation, self.source, self.name = preparation, source, name
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

    def paths(self) -> list[Path]:
        return [writer.path for writer in self.writers.values()]

    def _writer(self, split: str) -> ShardWriter:
        if split not in self.writers:
            name = f"{self.source.name}-{self.name}.tokens"
            folder = self.preparation.folder / split
            path = (folder / self.source.name if split == "train" else folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            tokenizer = self.preparation.tokenizer
            self.writers[split] = ShardWriter(path, tokenizer.vocab_size, tokenizer.fingerprint)
        return self.writers[split]


def measuring(sources: Sequence[Source]) -> list[Source]:
    """The sources that only measure; their documents are not trained on, wherever else they stand."""
    return [s for s in sources if s.validation_share == 1 and len(sources) > 1]


def overlap_problem(document: Document) -> Problem:
    """What is said of a training document that would make the held-out figures better than they are."""
    what = "this document is in the validation text too, and is not trained on"
    return Problem(document.file, document.row, what, "Remove it from one of the two.")


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
