"""Translation word by word: a table of words out of aligned pairs, IBM's model 1 (Brown et al. 1993).

Each word of a target comes from one word of its source, or from none; expectation maximisation finds which. A text is
translated by putting the likeliest word in place of each; Chinese and other scripts without spaces go by characters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bimo.evaluation.answer import Answer
from bimo.evaluation.words import is_unspaced, pieces, spaced_pieces
from bimo.tasks.task import TaskExample

_MOST_LINKS = 8_000_000  # pairs of a source word and a target word in one example: bounds memory and time
_LONGEST = 100  # pieces of a text that are learned from
_NOWHERE = 0  # the source word of what no word stands for
Pair = tuple[list[str], list[str]]


class WordTable:
    """IBM-1 for each direction of translation among the examples.

    Args:
        rounds: Of expectation maximisation.
    """

    name = "word table"
    needs_training = True

    def __init__(self, rounds: int = 5) -> None:
        if not 1 <= rounds <= 100:
            raise ValueError(f"rounds must lie in 1 … 100, is {rounds}")
        self.rounds = rounds
        self.tables: dict[str, dict[str, str]] = {}

    def fit(self, examples: Sequence[TaskExample]) -> None:
        """Learn a table for each language that examples name."""
        pairs: dict[str, list[Pair]] = {}
        for example in examples:
            pair = pieces(example.source)[:_LONGEST], pieces(example.target)[:_LONGEST]
            pairs.setdefault(_way(example), []).append(pair)
        self.tables = {way: likeliest(found, self.rounds) for way, found in pairs.items()}

    def answer(self, examples: Sequence[TaskExample]) -> list[Answer]:
        """Each source word by word; unknown words stay."""
        return [Answer(_replaced(example.source, self.tables.get(_way(example), {}))) for example in examples]


def likeliest(pairs: Sequence[Pair], rounds: int) -> dict[str, str]:
    """The target word of the largest probability for each source word."""
    sources: dict[str, int] = {"": _NOWHERE}
    targets: dict[str, int] = {}
    links, steps, n_links = [], [], 0
    for source, target in pairs:
        if n_links > _MOST_LINKS:
            break
        if not target:
            continue
        own = np.array([_NOWHERE, *(sources.setdefault(word, len(sources)) for word in source)])
        other = np.array([targets.setdefault(word, len(targets)) for word in target])
        links.append((own[None, :] + (other[:, None] << 32)).ravel())  # a row for each target word
        steps.append(np.full(len(other), len(own)))
        n_links += len(links[-1])
    if not links:
        return {}
    kinds, kind_of_link = np.unique(np.concatenate(links), return_inverse=True)
    source_of, target_of = kinds & 0xFFFFFFFF, kinds >> 32
    probability = _maximised(kind_of_link, source_of, np.concatenate(steps), rounds)
    order = np.lexsort((target_of, -probability, source_of))  # the likeliest first; of equal ones the first seen
    first = order[np.unique(source_of[order], return_index=True)[1]]
    names, words = list(sources), list(targets)
    return {names[s]: words[t] for s, t in zip(source_of[first], target_of[first], strict=True) if s != _NOWHERE}


def _maximised(kind_of_link: np.ndarray, source_of: np.ndarray, steps: np.ndarray, rounds: int) -> np.ndarray:
    """Probability of the target word given the source word, for each kind of link.

    Args:
        kind_of_link: The links of one target word stand together, int64 (links,).
        source_of: Source word of each kind.
        steps: Links of each target word.
        rounds: Of expectation maximisation.
    """
    starts = np.concatenate(([0], np.cumsum(steps)[:-1]))
    probability = np.ones(len(source_of))
    for _ in range(rounds):
        shares = probability[kind_of_link]
        shares /= np.repeat(np.add.reduceat(shares, starts), steps)
        counts = np.bincount(kind_of_link, weights=shares, minlength=len(source_of))
        probability = counts / np.maximum(np.bincount(source_of, weights=counts)[source_of], 1e-300)
    return probability


def _replaced(text: str, table: dict[str, str]) -> str:
    """The text with every piece replaced; spaces as in the source, none within scripts that have none."""
    written, last = "", ""
    for gap, piece in spaced_pieces(text):
        word = table.get(piece) or table.get(piece.lower()) or piece
        if last and (is_unspaced(last[-1]) or is_unspaced(word[0])):
            gap = ""
        elif last and not gap and last[-1].isalnum() and word[0].isalnum():
            gap = " "
        written, last = written + gap + word, word
    return written.strip()


def _way(example: TaskExample) -> str:
    return example.group.get("language", "")
