"""Checks that need all rows: duplicates, leaks, contradicting and misspelt labels, lengths, languages, lines."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bimo.core.config import CheckSettings
from bimo.data.checkup.columns import Column
from bimo.data.checkup.findings import NAMED_SINGLY, Finding
from bimo.data.checkup.kinds import KINDS, excerpt
from bimo.data.checkup.languages import UNKNOWN
from bimo.data.checkup.ledger import SHORT, Ledger, common, repeats
from bimo.data.checkup.sides import LabelCount, Side

MAIN_SHARE = 0.9  # of the texts whose language is known: from there on it is the main one
OUTLIERS = 0.05  # share of texts in one other language above which it is a mix and not some strays
LONG, SHORT_TEXT = 20_000, 3  # characters


def whole_findings(train: Side, valid: Side, settings: CheckSettings) -> None:
    """Report everything that only shows when all rows have been read."""
    for side in (train, valid):
        _duplicates(side)
        _labels(side)
        for column in side.columns.values():
            _lengths(side, column)
            _languages(side, column, settings.languages)
        _length_ratios(side)
        _boilerplate(side)
    _leaks(train, valid)
    _near(train, valid, settings.similarity)


def leaking_numbers(train: Ledger, valid: Ledger) -> tuple[np.ndarray, np.ndarray]:
    """Training rows that stand in the validation text too, but for case, spaces and punctuation; and where there."""
    numbers, others = common(train.folded, valid.folded)
    real = train.folded[numbers] != SHORT
    return numbers[real], others[real]


def contradicting_numbers(ledger: Ledger) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose text stood before with another label, and that earlier row."""
    labels = ledger.labels
    numbers, firsts = repeats(ledger.exact)
    differ = (labels[numbers] != labels[firsts]) & (labels[numbers] >= 0)
    return numbers[differ], firsts[differ]


def add_rows(side: Side, kind: str, numbers: np.ndarray, words: Callable[[int], str]) -> None:
    """Report rows of one kind, file by file: the first ones with their words, the others as numbers.

    Args:
        side: Whose rows.
        kind: Of the finding.
        numbers: Of the rows in the ledger.
        words: What is wrong, for the i-th of the numbers.
    """
    severity, mend = KINDS[kind]
    owners = side.ledger.file_numbers()[numbers]
    rows = side.ledger.rows[numbers]
    for owner in np.unique(owners).tolist():
        own = np.flatnonzero(owners == owner)
        file = side.ledger.files[owner]
        named = [Finding(kind, severity, file, int(rows[i]), words(i), mend) for i in own[:NAMED_SINGLY].tolist()]
        side.findings.add_rows(named, rows[own].tolist())


def _add_alike(side: Side, kind: str, numbers: np.ndarray, what: str) -> None:
    """The same words for all of these rows."""
    add_rows(side, kind, numbers, lambda i: what)


def _where(ledger: Ledger, number: int) -> str:
    file, row = ledger.place(int(number))
    return f"{'row' if '.parquet' in file.lower() else 'line'} {row} of {file}"


def _duplicates(side: Side) -> None:
    numbers, firsts = side.duplicates
    add_rows(side, "duplicate", numbers, lambda i: f"the same as {_where(side.ledger, firsts[i])}")
    folded = side.ledger.folded
    later, earlier = repeats(folded)
    near = (
        (folded[later] != SHORT) & ~np.isin(later, numbers) & (side.ledger.labels[later] == side.ledger.labels[earlier])
    )
    later, earlier = later[near], earlier[near]
    what = "the same as {} but for case, spaces or punctuation"
    add_rows(side, "near duplicate", later, lambda i: what.format(_where(side.ledger, earlier[i])))


def _leaks(train: Side, valid: Side) -> None:
    numbers, others = leaking_numbers(train.ledger, valid.ledger)
    _half_leaks(train, valid, numbers)
    add_rows(
        train, "leak", numbers, lambda i: f"it stands in the validation text too: {_where(valid.ledger, others[i])}"
    )


def _half_leaks(train: Side, valid: Side, leaks: np.ndarray) -> None:
    """Training rows whose question stands in the validation text, with another answer."""
    numbers, others = common(train.ledger.firsts, valid.ledger.firsts)
    new = (train.ledger.firsts[numbers] != 0) & ~np.isin(numbers, leaks)
    numbers, others = numbers[new], others[new]
    name = next(iter(train.columns), "")
    what = "its {!r} stands in the validation text too, with another answer: a half leak, see {}"
    add_rows(train, "near leak", numbers, lambda i: what.format(name, _where(valid.ledger, others[i])))


def _near(train: Side, valid: Side, similarity: float) -> None:
    """Rows that are nearly the same as an earlier one of their side, or as one of the validation text."""
    for side in (train, valid):
        if side.sketches:
            numbers, others, shares = side.sketches.pairs(similarity)
            new = side.ledger.folded[numbers] != side.ledger.folded[others]
            numbers, others, shares = numbers[new], others[new], shares[new]
            _say_near(side, "near duplicate", side.ledger, numbers, others, shares)
    if train.sketches and valid.sketches:
        numbers, others, shares = train.sketches.pairs(similarity, valid.sketches)
        new = train.ledger.folded[numbers] != valid.ledger.folded[others]
        _say_near(train, "near leak", valid.ledger, numbers[new], others[new], shares[new])


def _say_near(
    side: Side, kind: str, ledger: Ledger, numbers: np.ndarray, others: np.ndarray, shares: np.ndarray
) -> None:
    what = "nearly the same as {} (they share {:.0%} of their phrases)"
    add_rows(side, kind, numbers, lambda i: what.format(_where(ledger, others[i]), shares[i]))


def _labels(side: Side) -> None:
    numbers, firsts = contradicting_numbers(side.ledger)
    add_rows(
        side,
        "contradiction",
        numbers,
        lambda i: f"the same text as {_where(side.ledger, firsts[i])} with another label",
    )
    for label, count in side.labels.items():
        right = slip_for(side.labels, label)
        if right is not None:
            what = f"the label {label!r} looks like a slip for {right!r}"
            _add_alike(side, "label", np.array(count.numbers), what)
    for label, count in side.labels.items():
        if is_strange(side.labels, label):
            what = f"the label {str(label)[:40]!r} is like none of the others"
            _add_alike(side, "label", np.array(count.numbers), what)


def is_strange(labels: Mapping[object, LabelCount], label: object) -> bool:
    """Whether a label that comes once is far longer than all that come often: a text, by its looks."""
    if label not in labels or labels[label].times > 1 or len(str(label)) <= 20:
        return False
    usual = [len(str(other)) for other, count in labels.items() if count.times >= 10]
    return bool(usual) and len(str(label)) > 3 * max(usual)


def slip_for(labels: Mapping[object, LabelCount], label: object) -> object | None:
    """The frequent label that a rare one was meant to be; None when it is right as it is."""
    times = labels[label].times if label in labels else 0
    for other, count in labels.items():
        if other != label and count.times >= max(10, 20 * times) and _alike(str(label), str(other)):
            return other
    return None


def _alike(label: str, other: str) -> bool:
    """Whether one label is the other with a slip: letters swapped, left out or doubled, another case, a space."""
    if label.strip().casefold() == other.strip().casefold():
        return True
    if min(len(label), len(other)) < 4 or any(c.isdigit() for c in label + other):
        return False
    return difflib.SequenceMatcher(None, label.casefold(), other.casefold()).ratio() >= 0.8


def _lengths(side: Side, column: Column) -> None:
    numbers, lengths, _ = column.lengths_and_languages()
    if len(lengths) < 10:
        return
    middle = float(np.median(lengths))
    long = lengths > max(LONG, 50 * middle)
    long[1:] &= ~long[:-1]  # one that follows is mostly the rest of it: documents are cut at 64 Ki characters
    what = "a text of {:,} characters, where half of them have no more than {:,.0f}"
    add_rows(side, "too long", numbers[long], lambda i: what.format(lengths[long][i], middle))
    short = (lengths <= SHORT_TEXT) & (middle >= 60)
    what_short = "a text of {} characters, where half of them have {:,.0f} or more"
    add_rows(side, "too short", numbers[short], lambda i: what_short.format(lengths[short][i], middle))


def _languages(side: Side, column: Column, expected: Sequence[str]) -> None:
    numbers, _, codes = column.lengths_and_languages()
    once = ~np.isin(numbers, side.duplicates[0])  # copies say nothing about the main language
    names = {code: name for name, code in column.guesser.codes.items()}
    counts = {names[code]: n for code, n in enumerate(np.bincount(codes[once]).tolist()) if code in names and n}
    known = sum(n for name, n in counts.items() if name != UNKNOWN)
    if known < 10:
        return
    main = [name for name, n in counts.items() if name != UNKNOWN and n >= MAIN_SHARE * known]
    belongs = list(expected) or main
    if not belongs:
        return
    field = f" in {column.name!r}" if len(side.columns) > 1 else ""
    for code, name in names.items():
        few = counts.get(name, 0) <= max(3, OUTLIERS * known)
        if name not in (*belongs, UNKNOWN) and counts.get(name) and (few or expected):
            strays = numbers[(codes == code) & once]
            usual = " or ".join(belongs)
            if name == "traditional Chinese" and usual == "Chinese":
                usual = "simplified Chinese"
            what = f"{name}{field}, where nearly all is {usual}"
            _add_alike(side, "language", strays, what)


def _length_ratios(side: Side) -> None:
    """Pairs of which one side is far longer than it should be for the other."""
    if len(side.columns) != 2 or set(side.tasks) - {"translation", "summaries"}:
        return
    (first, a, _), (second, b, _) = (column.lengths_and_languages() for column in side.columns.values())
    if len(a) != len(b) or len(a) < 20 or (first != second).any():
        return
    ratios = np.log((b + 8) / (a + 8))  # a few characters more or less mean nothing in short texts
    overlong = (b > 1.5 * a + 20) & (b > 60)
    odd = overlong if "summaries" in side.tasks else np.abs(ratios - np.median(ratios)) > np.log(5)
    names = list(side.columns)
    what = "{!r} has {:,} characters and {!r} has {:,}"
    add_rows(side, "length ratio", first[odd], lambda i: what.format(names[0], a[odd][i], names[1], b[odd][i]))


def _boilerplate(side: Side) -> None:
    for line in side.lines.repeated():
        what = f"the line {excerpt(line.text, 0, min(len(line.text), 50), 0)} stands {line.times:,} times in the text"
        _add_alike(side, "boilerplate", np.unique(line.numbers[:5]), what)
