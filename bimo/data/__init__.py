"""From any file to batches: readers, token shards, packing, and a loader that can be resumed at any step."""

from bimo.data.documents import Document, Problem, is_validation
from bimo.data.readers import Reader, find_files

__all__ = ["Document", "Problem", "Reader", "find_files", "is_validation"]
