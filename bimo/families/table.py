"""A comparison of families as one table for a terminal."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from bimo.evaluation.significance import Value, figure
from bimo.families.comparison import Comparison, facts_of


def table_of(comparison: Comparison) -> Table:
    """A column for each family, then for each floor: scores with their 95 % intervals, and what the families got."""
    evaluation, members = comparison.evaluation, comparison.members
    title = f"{evaluation.task}, {len(evaluation.examples):,} examples, 95 % intervals"
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("", no_wrap=True)
    for contender in evaluation.contenders:
        style = "" if contender.kind == "floor" else "bold"
        table.add_column(Text(contender.name.replace("-", "-\n")), justify="right", style=style, overflow="fold")
    for measure in evaluation.measures:
        cells = [_cell(contender.scores[measure.name]) for contender in evaluation.contenders]
        table.add_row(*map(Text, [measure.name + ("" if measure.higher_is_better else " ↓"), *cells]))
    table.add_section()
    for name, cells in facts_of(members, len(evaluation.examples)):
        table.add_row(*map(Text, [name, *cells, *[""] * (len(evaluation.contenders) - len(members))]))
    return table


def _cell(value: Value) -> str:
    if math.isnan(value.low):
        return figure(value.value)
    return f"{figure(value.value)}\n{_short(value.low)}–{_short(value.high)}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else figure(value)
