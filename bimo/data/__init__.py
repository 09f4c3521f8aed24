"""From any file to batches: readers, token shards, packing, and a loader that can be resumed at any step."""

from bimo.data.corpus import Corpus
from bimo.data.documents import Document, Problem
from bimo.data.readers import find_files, read_documents
from bimo.data.split import is_validation

__all__ = ["Corpus", "Document", "Problem", "find_files", "is_validation", "read_documents"]
