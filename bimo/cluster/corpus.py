"""Text to token shards on Ray Data, for corpora that are larger than a machine.

Files are read as a stream of blocks of documents, and each block becomes a shard, wherever there is room; no process
holds more than some blocks. Documents, fingerprints, sides of the split and shards are those that a single machine
makes, in another order of shards, and the journal says that the text is prepared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bimo.cluster.reading import ORDINALS, Part, Rows, documents_of, texts
from bimo.core.config import CheckSettings
from bimo.data import Document, Problem
from bimo.data.checkup import Finding, Report, quick_check
from bimo.data.prepare import Counts, Preparation, Source, measuring, overlap_problem
from bimo.tokenizer import Tokenizer


@dataclass
class Encoded:
    """What the encoding came to.

    Attributes:
        documents: By source.
        problems: What could not be read, or was left out.
        shards: Files that were written.
    """

    documents: dict[str, int]
    problems: list[Problem]
    shards: int = 0


@dataclass(frozen=True)
class _Work:
    """What every block needs to become a shard; the documents of the sources are not in it."""

    tokenizer: str
    fingerprint: str
    folder: str
    sources: list[tuple[str, float]]
    held_out: frozenset[int]
    left_out: np.ndarray


def encode(
    ray: Any, sources: Sequence[Source], parts: Sequence[Part], tokenizer_file: Path, folder: Path, left_out: np.ndarray
) -> Encoded:
    """Write the shards of all sources, and the journal.

    Args:
        ray: Connected.
        sources: Names and sides.
        parts: Their files.
        tokenizer_file: Encodes them; it lies where every machine can read it.
        folder: Where the shards go; every machine can write there.
        left_out: Places of duplicates.
    """
    tokenizer = Tokenizer.load(tokenizer_file)
    preparation = Preparation(tokenizer, folder)
    if not preparation.begin_shared(sources):
        return Encoded({}, [])
    outlines = [(source.name, source.validation_share) for source in sources]
    held_out = _held_out(parts, [sources.index(source) for source in measuring(sources)])
    work = _Work(str(tokenizer_file), tokenizer.fingerprint, str(folder), outlines, held_out, left_out)
    arguments = {"work": ray.put(work)}
    encoded, written = Encoded({}, []), set()
    blocks = documents_of(parts).map_batches(_encode_block, batch_size=None, fn_kwargs=arguments, num_cpus=1)
    for row in blocks.iter_rows():
        name = sources[row["source"]].name
        encoded.documents[name] = encoded.documents.get(name, 0) + row["documents"]
        encoded.problems += [Problem(**values) for values in json.loads(row["problems"])]
        written |= set(json.loads(row["paths"]))
    for left in {str(path) for path in folder.rglob("*.tokens")} - written:  # of a start that was broken off
        Path(left).unlink()
    encoded.shards = len(written)
    preparation.mark_done(sources, encoded.documents)
    return encoded


class Sampled:
    """The documents of a source that a tokenizer is trained on, chosen by their hash, in their order.

    Args:
        parts: The files of the source.
        share: Of the documents, 0 … 1.
        left_out: Places of duplicates.
    """

    def __init__(self, parts: Sequence[Part], share: float, left_out: np.ndarray) -> None:
        self.parts, self.share, self.left_out = parts, share, left_out

    def __iter__(self) -> Iterator[Document]:
        arguments = {"share": self.share, "left_out": self.left_out}
        chosen = documents_of(self.parts, in_order=True).map_batches(_sample, batch_size=None, fn_kwargs=arguments)
        for row in chosen.iter_rows():
            yield Document(row["text"], row["file"], int(row["row"]))


def look(parts: Sequence[Part], wanted: CheckSettings) -> Report:
    """The checkup before a run, of every part for itself: at most 20 seconds each, all at once where there is room."""
    from ray.data import from_items

    items = [{"paths": json.dumps(part.paths), "settings": json.dumps(wanted.to_dict())} for part in parts]
    rows = from_items(items, override_num_blocks=len(items)).map(_look, num_cpus=1).take_all()
    reports = [json.loads(row["report"]) for row in rows]
    worst = ["error", "warning", "note"]
    findings = [Finding(**finding) for report in reports for finding in report["findings"]]
    findings.sort(key=lambda finding: worst.index(finding.severity))
    return Report(findings, {"parts": [report["figures"] for report in reports]})


def _look(row: dict[str, Any]) -> dict[str, Any]:
    wanted = CheckSettings.from_dict(json.loads(row["settings"]))
    report = quick_check(json.loads(row["paths"]), [], wanted)
    return {"report": json.dumps({"findings": [asdict(f) for f in report.findings], "figures": report.figures})}


def _encode_block(batch: Rows, work: Any) -> Rows:
    """A block of documents to a shard; gives one row of counts."""
    import ray

    work = ray.get(work) if isinstance(work, ray.ObjectRef) else work
    problems = [json.loads(str(problem)) for problem in batch["problem"] if problem]
    source_number = int(batch["source"][0])
    name, share = work.sources[source_number]
    counts = Counts(0, 0, [])
    places, documents = texts(batch, work.left_out)
    if documents:
        preparation = Preparation(
            _tokenizer(work.tokenizer, work.fingerprint), Path(work.folder), threads=1,
            on_overlap=lambda document: problems.append(asdict(overlap_problem(document))),
        )  # fmt: skip
        preparation.held_out = work.held_out
        part, ordinal = divmod(places[0], ORDINALS)
        counts = preparation.write_shard(Source(name, (), "", share), f"{part:05d}-{ordinal:09d}", documents)
    return {
        "source": [source_number],
        "documents": [counts.documents],
        "problems": [json.dumps(problems)],
        "paths": [json.dumps([str(path) for path in counts.paths])],
    }


def _sample(batch: Rows, share: float, left_out: np.ndarray) -> Rows:
    """The rows that a share of all hashes takes, as `preparing` chooses them."""
    _, documents = texts(batch, left_out)
    chosen = [document for document in documents if (document.fingerprint & 0xFFFFFFFF) < share * 2**32]
    return {
        "text": [document.text for document in chosen],
        "file": [document.file for document in chosen],
        "row": np.array([document.row for document in chosen], np.int64),
    }


@cache
def _tokenizer(path: str, fingerprint: str) -> Tokenizer:
    """The tokenizer, read once by each worker."""
    tokenizer = Tokenizer.load(path)
    assert tokenizer.fingerprint == fingerprint, f"{path} has changed while it was used"
    return tokenizer


def _held_out(parts: Sequence[Part], measuring_sources: list[int]) -> frozenset[int]:
    """Fingerprints of the documents that only measure."""
    chosen = [part for part in parts if part.source in measuring_sources]
    if not chosen:
        return frozenset()
    found = documents_of(chosen).map_batches(_fingerprints, batch_size=None, num_cpus=1)
    return frozenset(int(row["fingerprint"]) for row in found.iter_rows())


def _fingerprints(batch: Rows) -> Rows:
    _, documents = texts(batch, np.empty(0, np.int64))
    return {"fingerprint": np.array([document.fingerprint for document in documents], np.uint64)}
