"""Which documents are held out for validation, settled by a hash of their text.

The side of a text depends on nothing but the text and the share: not on its file, its place, the machine or the other
documents. So duplicates always fall on one side, a corpus may grow without anything changing sides, and what a small
share holds out, a larger one holds out too.
"""

from __future__ import annotations

from hashlib import blake2b

from bimo.data.documents import Document


def is_validation(document: Document, share: float) -> bool:
    """Whether the document is held out, when a share (0 … 1) of all distinct documents is.

    The fingerprint is hashed once more under its own name, so that whoever samples documents by fingerprint (to train a
    tokenizer on some of them) draws independently of this split.
    """
    digest = blake2b(document.fingerprint.to_bytes(8, "big"), digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest, "big") < share * 2.0**64
