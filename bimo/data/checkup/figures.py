"""The figures of a report: facts about the data, in a dictionary that JSON can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bimo.data.checkup.languages import UNKNOWN
from bimo.data.checkup.sides import Side
from bimo.data.checkup.token_checks import summary

if TYPE_CHECKING:
    from bimo.data.checkup.examination import Examination


def figures_of(seen: Examination) -> dict[str, Any]:
    """Rows, bytes, fields, languages and lengths of each side; tokens; what was not read."""
    figures: dict[str, Any] = {"train": _side(seen.train)}
    if seen.valid.ledger.files:
        figures["valid"] = _side(seen.valid)
    tasks = sorted({f"{c.task.name} ({', '.join(c.task.fields)})" for c in seen.checkers.values()})
    figures["fields"] = tasks
    figures |= summary(seen.tokens, len(seen.train.ledger) + len(seen.valid.ledger)) if seen.tokens else {}
    if seen.stopped:
        figures["stopped"] = f"not everything was read: stopped {seen.stopped}"
    return figures


def _side(side: Side) -> dict[str, Any]:
    numbers, _ = side.duplicates
    columns = {}
    for column in side.columns.values():
        _, lengths, codes = column.lengths_and_languages()
        names = {code: name or "not judged" for name, code in column.guesser.codes.items()}
        counts = np.bincount(codes, minlength=1)
        shares = {names[code]: round(n / len(codes), 4) for code, n in enumerate(counts.tolist()) if n}
        quantiles = np.quantile(lengths, (0, 0.05, 0.5, 0.95, 1)).astype(int).tolist()
        columns[column.name or "text"] = {
            "languages": dict(sorted(shares.items(), key=lambda pair: (pair[0] == UNKNOWN, -pair[1]))),
            "characters": dict(zip(("least", "5%", "half", "95%", "most"), quantiles, strict=True)),
        }
    return {
        "files": len(side.ledger.files),
        "rows": len(side.ledger),
        "bytes": side.ledger.n_bytes,
        "duplicates": len(numbers),
        "columns": columns,
        "labels": {
            str(label): count.times for label, count in sorted(side.labels.items(), key=lambda p: -p[1].times)[:50]
        },
    }
