"""Finding and Report: what the checkup says, in plain words with file, row and mend.

Long lists are summarised: the first rows of a kind in a file are named singly, the others are counted in one finding;
`Report.rows` keeps their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bimo.core.artifacts import write_text

Severity = Literal["error", "warning", "note"]
WORST_FIRST: tuple[Severity, ...] = ("error", "warning", "note")

NAMED_SINGLY = 20  # rows of one kind in one file
MOST_ROWS = 100_000  # of one kind in one file that the report keeps


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or worth knowing."""

    kind: str
    """A stable name: 'encoding', 'duplicate', 'leak', …; see docs/data.md."""
    severity: Severity
    """error: training on it would fail or mislead; warning: look at it; note: a fact."""
    file: str
    row: int
    """1-based line or row; 0 means the whole file."""
    what: str
    """One clause without a full stop."""
    mend: str
    count: int = 1
    """How many places of this kind in this file are meant by it, its own row included."""

    @property
    def where(self) -> str:
        """'notes.txt, line 812', or only the file."""
        rows = ".parquet" in self.file.lower()
        return f"{self.file}, {'row' if rows else 'line'} {self.row}" if self.row else self.file

    def __str__(self) -> str:
        more = f" (and {self.count - 1:,} more)" if self.count > 1 else ""
        return f"{self.where}: {self.what}{more}. {self.mend}"


@dataclass(frozen=True)
class Report:
    """All that was found, worst first."""

    findings: list[Finding]
    figures: dict[str, Any]
    """Facts: documents, bytes, scripts, languages, lengths, tokens per byte, share of rows that the context cuts."""
    rows: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """All rows of each kind, by kind and file, up to 100,000 each."""

    @property
    def ok(self) -> bool:
        """Whether no error was found."""
        return not any(finding.severity == "error" for finding in self.findings)

    def count(self, severity: Severity) -> int:
        """How many places have findings of this severity."""
        return sum(finding.count for finding in self.findings if finding.severity == severity)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        findings = [asdict(finding) for finding in self.findings]
        return {"ok": self.ok, "figures": self.figures, "findings": findings, "rows": self.rows}

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_text(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n")


class Findings:
    """Collects findings; the memory stays bounded however much is wrong."""

    def __init__(self) -> None:
        self._named: dict[tuple[str, str, Severity], list[Finding]] = {}
        self._rows: dict[tuple[str, str], list[int]] = {}
        self._counts: dict[tuple[str, str, Severity], int] = {}

    def add(self, finding: Finding) -> None:
        """Note one; the same kind and row of a file counts once."""
        key = (finding.kind, finding.file, finding.severity)
        named = self._named.setdefault(key, [])
        rows = self._rows.setdefault((finding.kind, finding.file), [])
        if named and finding.row == rows[-1] and finding.severity == named[-1].severity:
            return
        self._counts[key] = self._counts.get(key, 0) + finding.count
        if len(rows) < MOST_ROWS:
            rows.append(finding.row)
        if len(named) < NAMED_SINGLY:
            named.append(finding)

    def add_rows(self, first: Iterable[Finding], rows: list[int]) -> None:
        """Note many of one kind in one file at once: some with their words, and the rows of all."""
        findings = list(first)
        if not findings:
            return
        key = (findings[0].kind, findings[0].file, findings[0].severity)
        self._named.setdefault(key, []).extend(findings[:NAMED_SINGLY])
        kept = self._rows.setdefault((key[0], key[1]), [])
        kept.extend(rows[: MOST_ROWS - len(kept)])
        self._counts[key] = self._counts.get(key, 0) + len(rows)

    def report(self, figures: dict[str, Any]) -> Report:
        """Everything, worst first, the kinds that hit most rows first within that."""
        groups = sorted(
            self._named, key=lambda key: (WORST_FIRST.index(key[2]), -self._total(key[0], key[2]), key[0], key[1])
        )
        findings: list[Finding] = []
        for key in groups:
            named = sorted(self._named[key], key=lambda finding: finding.row)
            left = self._counts[key] - sum(finding.count for finding in named)
            if left > 0:
                named[-1] = replace(named[-1], count=named[-1].count + left)
            findings += named
        rows: dict[str, dict[str, list[int]]] = {}
        for (kind, file), numbers in self._rows.items():
            rows.setdefault(kind, {})[file] = sorted(set(numbers))
        return Report(findings, figures, rows)

    def _total(self, kind: str, severity: Severity) -> int:
        return sum(n for (k, _, s), n in self._counts.items() if k == kind and s == severity)
