"""An evaluation as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from bimo.evaluation.judging import Contender
from bimo.evaluation.outcome import Evaluation
from bimo.evaluation.significance import Value, figure

_MOST_VALUES = 8  # of a group; the page has more


def tables_of(evaluation: Evaluation) -> Iterator[Table]:
    """Scores of all contenders, then the deciding metric for each group."""
    yield _scores(evaluation)
    for group in evaluation.sizes:
        yield _group(evaluation, group)


def _scores(evaluation: Evaluation) -> Table:
    """A row for each metric, a column for each contender; then what chance says of the deciding one."""
    table = _table(evaluation, evaluation.task, [""])
    for measure in evaluation.measures:
        cells = [_shown(contender.scores[measure.name]) for contender in evaluation.contenders]
        table.add_row(*map(Text, [measure.name + ("" if measure.higher_is_better else " ↓"), *cells]))
    first = evaluation.measures[0].name
    table.add_row(*map(Text, [f"p ({first})", *(_p(contender, first) for contender in evaluation.contenders)]))
    return table


def _group(evaluation: Evaluation, group: str) -> Table:
    within = next(iter(evaluation.ours.groups[group].values()))
    name = next(measure.name for measure in evaluation.measures if measure.name in within)
    table = _table(evaluation, f"{name} by {group}", [group, "examples"])
    for value, size in list(evaluation.sizes[group].items())[:_MOST_VALUES]:
        cells = [_shown(contender.groups[group][value][name]) for contender in evaluation.contenders]
        table.add_row(*map(Text, [value, f"{size:,}", *cells]))
    return table


def _table(evaluation: Evaluation, title: str, heads: list[str]) -> Table:
    """Without rows: some columns, then one for each contender."""
    table = Table(title=Text(title), title_justify="left")
    for head in heads:
        table.add_column(Text(head), no_wrap=True)
    for contender in evaluation.contenders:
        style = "bold" if contender.kind == "model" else ""
        table.add_column(Text(contender.name), justify="right", style=style, overflow="fold")
    return table


def _shown(value: Value) -> str:
    """34.2 ±1.3: half the interval's width, in the digits of the value."""
    if math.isnan(value.low):
        return figure(value.value)
    digits = 1 if abs(value.value) >= 10 else 2
    return f"{figure(value.value)} ±{(value.high - value.low) / 2:.{digits}f}"


def _p(contender: Contender, name: str) -> str:
    found = contender.differences.get(name)
    if found is None or math.isnan(found.p):
        return ""
    return "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"
