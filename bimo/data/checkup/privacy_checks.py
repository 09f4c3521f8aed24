"""Checks for personal data and secrets: only around an '@', a cluster of digits, or the marker of a key."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bimo.core import pii
from bimo.data.checkup.character_checks import Spot
from bimo.data.checkup.characters import Block, marked

_AT, _DOT, _ZERO = 64, 46, 48


def secret_spots(block: Block) -> Iterator[Spot]:
    """Keys and passwords, the first of each document."""
    before = -1
    for place, kind, value in sorted([*_tokens(block), *_passwords(block)]):
        document = block.document_at(place)
        if document != before:
            before = document
            shown = value[:27] if kind == "private key" else pii.shown(value)
            level = "possible secret" if kind == "password" else "secret"
            yield level, document, place - int(block.starts[document]), f"a secret ({kind}): {shown}"


def _tokens(block: Block) -> Iterator[tuple[int, str, str]]:
    """Place, kind and value of keys among the long words, which are looked at as one text."""
    gaps = np.flatnonzero(block.word_lengths >= pii.TOKEN_LENGTH)
    starts, ends = (block.breaks[gaps] + 1).tolist(), block.breaks[gaps + 1].tolist()
    words = [block.joined[start:end] for start, end in zip(starts, ends, strict=True)]
    text = "\n".join(words)
    for hit in pii.secrets(text):
        number = text.count("\n", 0, hit.start)
        place = starts[number] + hit.start - sum(len(word) + 1 for word in words[:number])
        yield place, hit.kind, text[hit.start : hit.end]


def _passwords(block: Block) -> Iterator[tuple[int, str, str]]:
    """Place, kind and value of what stands behind a marker."""
    for place in marked(block.joined, pii.PASSWORD_MARKERS):
        hit = pii.password_at(block.joined, place)
        if hit:
            yield hit.start, hit.kind, block.joined[hit.start : hit.end]


def personal_spots(block: Block) -> Iterator[Spot]:
    """E-mail addresses, phone, card, account and identity numbers; IP addresses as facts."""
    found: dict[tuple[int, str], list[str]] = {}
    first: dict[tuple[int, str], int] = {}
    for places, around, find in ((_at_signs(block), 80, pii.addresses), (_clusters(block), 36, pii.numbers)):
        for start, window in pii.windows(block.joined, places.tolist(), around):
            for hit in find(window):
                document = block.document_at(start + hit.start)
                key = (document, hit.kind)
                first.setdefault(key, start + hit.start - int(block.starts[document]))
                found.setdefault(key, []).append(window[hit.start : hit.end])
    for (document, name), values in found.items():
        kind = "IP address" if name == "IP address" else "personal data"
        more = f", and {len(values) - 1} more in it" if len(values) > 1 else ""
        place = first[document, name]
        yield (
            kind,
            document,
            place,
            f"{'an' if name[0] in 'eI' else 'a'} {name}: {pii.shown(' '.join(values[0].split()))}{more}",
        )


def _at_signs(block: Block) -> np.ndarray:
    return np.flatnonzero(block.codes == _AT) if "@" in block.joined else np.zeros(0, np.int64)


def _clusters(block: Block) -> np.ndarray:
    """Where numbers of persons may be: at seven digits within 15 characters, at three dots between digits."""
    codes = block.codes
    digit = (codes - codes.dtype.type(_ZERO)) < 10  # unsigned: what lies below '0' wraps around to large numbers
    digits = np.flatnonzero(digit)
    close = digits[:-6][digits[6:] - digits[:-6] <= 14]
    dots = digits[:-1][(digits[1:] - digits[:-1] == 2) & (codes[digits[:-1] + 1] == _DOT)]
    dotted = dots[:-2][dots[2:] - dots[:-2] <= 8]
    return np.sort(np.concatenate([close, dotted]))
