"""A report as lines for people: the figures, then what was found, kind by kind, worst first, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from bimo.data.checkup.findings import Report

SHOWN = 5  # rows of each kind


def lines_of(report: Report, *, hint: bool = True) -> Iterator[str]:
    """All lines, without line ends; the last one has a hint how to mend what can be mended."""
    yield from _figures(report.figures)
    for (severity, kind), group in groupby(report.findings, key=lambda finding: (finding.severity, finding.kind)):
        findings = list(group)
        total = sum(finding.count for finding in findings)
        yield ""
        yield f"{severity}: {kind}, {total:,} time{'s' if total > 1 else ''}. {findings[0].mend}"
        for finding in findings[:SHOWN]:
            yield f"  {finding.where}: {finding.what}"
        rest = total - len(findings[:SHOWN])
        if rest:
            yield f"  and {rest:,} more"
    yield ""
    yield verdict(report, hint=hint)


def verdict(report: Report, *, hint: bool = True) -> str:
    """One sentence: is it fit to be trained on?"""
    errors, warnings = report.count("error"), report.count("warning")
    if not errors and not warnings:
        return "nothing is wrong with this data."
    counts = [f"{n:,} {name}{'s' if n > 1 else ''}" for n, name in ((errors, "error"), (warnings, "warning")) if n]
    return f"{' and '.join(counts)}." + (" A cleaned copy: the same command with --fix FOLDER" if hint else "")


def _figures(figures: dict[str, Any]) -> Iterator[str]:
    for name in ("train", "valid"):
        if name in figures:
            yield from _side(name, figures[name])
    for fields in figures.get("fields", []):
        yield f"fields: {fields}"
    if "share_cut_by_context" in figures:
        yield f"longer than the context: {figures['share_cut_by_context']:.1%} of the rows"
    if figures.get("tokens_per_byte"):
        yield "tokens per byte: " + ", ".join(f"{k} {v:.2f}" for k, v in figures["tokens_per_byte"].items())
    if "stopped" in figures:
        yield figures["stopped"]


def _side(name: str, side: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{name}: {side['rows']:,} rows in {side['files']:,} file{'s' if side['files'] != 1 else ''}, "
        f"{side['bytes'] / 1e6:,.1f} MB of text, {side['duplicates']:,} duplicates"
    )
    for column, facts in side["columns"].items():
        languages = ", ".join(f"{language} {share:.1%}" for language, share in list(facts["languages"].items())[:5])
        c = facts["characters"]
        lengths = f"{c['least']:,} to {c['most']:,}, half of them no more than {c['half']:,}"
        yield f"  {column}: characters {lengths}; {languages}"
    if side["labels"]:
        yield "  labels: " + ", ".join(f"{label} {n:,}" for label, n in list(side["labels"].items())[:12])
