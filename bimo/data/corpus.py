"""A corpus: some paths as documents that can be read again and again, with the progress of the current pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from bimo.core.config import DataSettings
from bimo.data.addresses import facts_of, is_address
from bimo.data.documents import Document, ProblemHandler
from bimo.data.files import STANDARD_INPUT, ReadProgress, find_files, size_of
from bimo.data.readers import document_rule, read_documents


class Corpus:
    """Documents of files, folders and globs.

    Args:
        paths: What to read.
        settings: How documents end, which field holds the text.
        on_problem: Told, in every pass, of everything that could not be read.

    Attributes:
        files: What was found, in order.
        total_bytes: Size of all files on disk.
        reason: Where documents end in plain text, and why.
    """

    def __init__(self, paths: Sequence[str], settings: DataSettings, on_problem: ProblemHandler) -> None:
        self.paths, self.settings, self.on_problem = list(paths), settings, on_problem
        self.files = find_files(self.paths)
        self.total_bytes = sum(map(size_of, self.files))
        self.rule, self.reason = document_rule(self.files, settings)
        self.progress = ReadProgress()

    def __iter__(self) -> Iterator[Document]:
        self.progress = ReadProgress()
        return read_documents(self.paths, self.settings, self.on_problem, self.progress)

    @property
    def fingerprint(self) -> str:
        """Changes when a file, or a setting that shapes its documents, does."""
        facts = [self.rule, self.settings.text_field]
        for file in self.files:
            facts.append(f"{file} {size_of(file)} {_changed(file)}")
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _changed(file: Path) -> int | str:
    """What is another when a file was written again."""
    if is_address(file):
        return facts_of(file)[1]
    return 0 if file == STANDARD_INPUT else file.stat().st_mtime_ns
