"""A corpus as a dataset of Ray: its files in parts, and the documents of each part in blocks, in a stream."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from bimo.core.config import DataSettings
from bimo.core.errors import UserError
from bimo.data import Corpus, Document, Problem, read_documents
from bimo.data.addresses import name_of
from bimo.data.distinct import Distinct
from bimo.data.files import size_of
from bimo.data.prepare import Source

PART_BYTES = 2**27
"""Files on disk that one reader takes; a larger file is a part for itself."""
BLOCK_BYTES = 2**26
"""Text of a block, more or less."""
ORDINALS = 2**40
"""More documents than a part has: the place of a document is part x ORDINALS + its number in the part."""
_BATCH_CHARACTERS = 2**21

Rows = dict[str, Any]
"""A batch of Ray Data: columns by name."""


@dataclass(frozen=True)
class Part:
    """Some files of a source, read by one task.

    Attributes:
        number: Settles the order of the parts.
        source: Number of the source.
        paths: The files.
        settings: How they are read; where documents end is settled by all files together.
    """

    number: int
    source: int
    paths: list[str]
    settings: DataSettings


def corpus_of(source: Source) -> Corpus:
    """The files of a source."""
    documents = source.documents.documents if isinstance(source.documents, Distinct) else source.documents
    assert isinstance(documents, Corpus), "text on a cluster comes from files"
    return documents


def parts_of(sources: Sequence[Source], part_bytes: int = PART_BYTES) -> list[Part]:
    """The files of all sources in parts of bounded size, in their order."""
    parts: list[Part] = []
    for number, source in enumerate(sources):
        corpus = corpus_of(source)
        settings = replace(corpus.settings, documents=corpus.rule, paths=[], weights=[], validation_paths=[])
        waiting: list[str] = []
        size = 0
        for file in corpus.files:
            if waiting and size + size_of(file) > part_bytes:
                parts.append(Part(len(parts), number, waiting, settings))
                waiting, size = [], 0
            waiting.append(name_of(file))
            size += size_of(file)
        if waiting:
            parts.append(Part(len(parts), number, waiting, settings))
    return parts


def set_up(block_bytes: int = BLOCK_BYTES) -> None:
    """Ray Data's ways in this process: blocks of our size, and no bars and lines of its own."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.target_max_block_size = block_bytes
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def documents_of(parts: Sequence[Part], *, in_order: bool = False) -> Any:
    """All documents as a dataset with the columns of `_batch`."""
    from ray.data import DataContext, from_items

    DataContext.get_current().execution_options.preserve_order = in_order
    items = [{"part": json.dumps(asdict(part))} for part in parts]
    # Another share of a core than the next stage: Ray would make one task of both, and one would read a whole file.
    return from_items(items, override_num_blocks=len(items)).map_batches(_read, batch_size=1, num_cpus=0.5)


def texts(batch: Rows, left_out: np.ndarray) -> tuple[list[int], list[Document]]:
    """The documents of a batch and their places, without the problems and those at places that are left out."""
    kept = np.flatnonzero((batch["order"] >= 0) & ~np.isin(batch["order"], left_out))
    columns = [[batch[name][i] for i in kept] for name in ("order", "text", "file", "row")]
    documents = [Document(str(text), str(file), int(row)) for text, file, row in zip(*columns[1:], strict=True)]
    return [int(place) for place in columns[0]], documents


def _read(batch: Rows) -> Iterator[Rows]:
    """The documents of a part in batches; what cannot be read comes as a row with a problem and no text."""
    for text in batch["part"]:
        values = json.loads(str(text))
        part = Part(**{**values, "settings": DataSettings.from_dict(values["settings"])})
        problems: list[Problem] = []
        documents: list[Document] = []
        size = count = 0
        try:
            for document in read_documents(part.paths, part.settings, problems.append):
                documents.append(document)
                size += len(document.text)
                if size >= _BATCH_CHARACTERS:
                    yield _batch(part, count, documents, problems)
                    count += len(documents)
                    documents, problems[:], size = [], [], 0
        except UserError as error:
            if part.settings.on_broken == "stop":
                raise
            if not problems:  # a part without text; whether all text is empty, the shards will show
                problems.append(Problem(", ".join(part.paths), 0, error.what, error.mend))
        if documents or problems:
            yield _batch(part, count, documents, problems)


def _batch(part: Part, first: int, documents: list[Document], problems: list[Problem]) -> Rows:
    """Columns: the place of each document, its source, text, file, row; a problem in place of a text."""
    n, m = len(documents), len(problems)
    return {
        "order": np.array([part.number * ORDINALS + first + i for i in range(n)] + [-1] * m, np.int64),
        "source": np.full(n + m, part.source, np.int64),
        "text": [document.text for document in documents] + [""] * m,
        "file": [document.file for document in documents] + [""] * m,
        "row": np.array([document.row for document in documents] + [0] * m, np.int64),
        "problem": [""] * n + [json.dumps(asdict(problem)) for problem in problems],
    }
