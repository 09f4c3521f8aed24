"""Small rows of three tasks that tiny models learn in seconds."""

from __future__ import annotations

import random

import pytest

Rows = list[dict[str, str]]
WORDS = {
    "the": "der", "cat": "Kater", "saw": "sah", "an": "ein", "old": "alter", "tree": "Baum", "by": "bei",
    "water": "Wasser", "dog": "Hund", "and": "und", "ran": "lief", "small": "kleiner", "house": "Haus",
    "slept": "schlief",
}  # fmt: skip


def _texts(count: int) -> list[list[str]]:
    rng = random.Random(0)
    found = {tuple(rng.choices(list(WORDS), k=rng.randint(3, 7))) for _ in range(2 * count)}
    return [list(words) for words in sorted(found)][:count]


@pytest.fixture(scope="session")
def pairs() -> Rows:
    return [{"source": " ".join(t), "target": " ".join(WORDS[w] for w in t)} for t in _texts(400)]


@pytest.fixture(scope="session")
def summaries() -> Rows:
    return [{"document": " ".join(t) + ". It was so. They went home.", "summary": " ".join(t[:2])} for t in _texts(300)]


@pytest.fixture(scope="session")
def labelled() -> Rows:
    """The label is the animal that is in the text."""
    found = []
    for number, text in enumerate(_texts(400)):
        words = [word for word in text if word not in ("cat", "dog")]
        animal = ("cat", "dog")[number % 2]
        words.insert(number % (len(words) + 1), animal)
        found.append({"text": " ".join(words), "label": animal})
    return found
