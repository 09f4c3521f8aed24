"""The split into training and validation text depends on the text alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bimo.data.documents import Document
from bimo.data.split import is_validation

texts = st.text(st.characters(exclude_categories=("Cs",)))


@given(texts, st.floats(0, 1), st.integers(1))
def test_the_same_text_is_always_on_the_same_side(text: str, share: float, row: int) -> None:
    here, there = Document(text, "a.txt", 1), Document(text, "b.jsonl", row, {"text": text, "n": row})
    assert is_validation(here, share) == is_validation(there, share)


def test_the_split_never_changes_between_versions() -> None:
    held_out = [n for n in range(100) if is_validation(Document(f"document {n}", "a.txt", 1), 0.05)]
    assert held_out == [0, 6, 29, 30, 39]
    assert Document("document", "a.txt", 1).fingerprint == 0x32DEA9771A807342


@given(texts, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_what_a_smaller_one_held_out(text: str, one: float, other: float) -> None:
    document = Document(text, "a.txt", 1)
    assert is_validation(document, min(one, other)) <= is_validation(document, max(one, other))
    assert not is_validation(document, 0.0)
    assert is_validation(document, 1.0)


def test_the_share_is_kept_also_among_documents_with_small_fingerprints() -> None:
    documents = [Document(f"number {n}", "a.txt", n) for n in range(20_000)]
    sample = [document for document in documents if document.fingerprint < 2**63]
    for group in (documents, sample):
        held_out = sum(is_validation(document, 0.1) for document in group)
        assert abs(held_out / len(group) - 0.1) < 0.01
