"""What a comparison of families found: a sentence of advice, the figures behind it, JSON and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bimo.core.artifacts import write_text
from bimo.core.json_files import finite
from bimo.evaluation.judging import Contender
from bimo.evaluation.outcome import Evaluation
from bimo.evaluation.outcome_page import page_of, shown
from bimo.evaluation.significance import difference_of, figure
from bimo.families.advice import Findings, Pair, advice, corrected
from bimo.tasks.task import Metric

JSON_NAME, PAGE_NAME = "compare.json", "compare.html"


@dataclass(frozen=True, slots=True)
class Member:
    """A family in a comparison: what it was, and what it got.

    Attributes:
        name: As tables show it.
        about: Its shape.
        parameters: Weights, embeddings among them, shared ones once.
        seconds: Of updates, trials of rates among them.
        trial_seconds: Of these, for trials.
        rate: The peak rate that it chose.
        tried: Held-out loss of each rate's trial.
        updates: That made the weights.
        examples: Rows that were read in them.
        tokens: The same in tokens.
        epochs: The same as passes over the training rows.
        held_out: Loss on the held-out rows, in nats per token or label.
        kept: After which share of its training time the weights were taken.
        answer_seconds: That its answers took.
        waited: Seconds that its threads waited for a core while it was trained, per second of training.
    """

    name: str
    about: str
    parameters: int
    seconds: float
    trial_seconds: float
    rate: float
    tried: Mapping[str, float]
    updates: int
    examples: int
    tokens: int
    epochs: float
    held_out: float
    kept: float
    answer_seconds: float
    waited: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that was found about the families.

    Attributes:
        evaluation: Scores of the families, then floors, on the same examples, with every answer.
        members: The families.
        findings: Differences between them, and to the floors, in the deciding metric.
        spent: Where the time went: stage → seconds.
        notes: What should be known beside the figures.
    """

    evaluation: Evaluation
    members: tuple[Member, ...]
    findings: Findings
    spent: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def advice(self) -> str:
        """The result in one sentence."""
        return advice(self.findings)

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Scores of each family and floor, by metric."""
        return {c.name: {name: v.value for name, v in c.scores.items()} for c in self.evaluation.contenders}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every answer among them."""
        found: dict[str, Any] = {"advice": self.advice, "families": [asdict(member) for member in self.members]}
        found |= {"pairs": [_plain(pair) for pair in self.findings.pairs]}
        found |= {"floor_pairs": [_plain(pair) for pair in self.findings.floors]}
        found |= {"spent_seconds": dict(self.spent), "notes": list(self.notes)}
        return found | {"evaluation": self.evaluation.to_dict()}

    def save(self, folder: str | Path) -> Path:
        """Write compare.json and compare.html into a folder, which is made; returns the page.

        Raises:
            UserError: The folder cannot be written to.
        """
        folder = Path(folder)
        write_text(folder / JSON_NAME, json.dumps(finite(self.to_dict()), indent=1, ensure_ascii=False) + "\n")
        page = page_of(self.evaluation, title=self._title, verdict=self.advice, beside=self._facts())
        write_text(folder / PAGE_NAME, page)
        return folder / PAGE_NAME

    @property
    def _title(self) -> str:
        return ", ".join(member.name for member in self.members)

    def _facts(self) -> str:
        """The families and the pairs as tables of a page."""
        rows = facts_of(self.members, len(self.evaluation.examples))
        head = "".join(f"<th>{shown(member.name)}</th>" for member in self.members)
        body = "".join(
            f"<tr><td>{shown(name)}</td>{''.join(f'<td>{shown(cell)}</td>' for cell in cells)}</tr>"
            for name, cells in rows
        )
        pairs = "".join(f"<li>{shown(line)}</li>" for line in pair_lines(self.findings))
        spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.spent.items())
        return (
            f"<h2>What each was and got</h2><table><tr><th></th>{head}</tr>{body}</table>"
            f"<p>{shown(f'The time: {spent}.')}</p><h2>Pairs</h2><ul>{pairs}</ul>"
        )


def findings_of(
    metric: Metric, contenders: Sequence[Contender], evaluation: Evaluation, rounds: int, seed: int
) -> Findings:
    """Differences between all families, and between each of them and each floor, on the same examples."""
    rows = {c.name: np.asarray(metric.rows(c.answers, evaluation.examples), float) for c in contenders}

    def pair(first: str, second: str) -> Any:
        return first, second, difference_of(metric, rows[first], rows[second], rounds=rounds, seed=seed)

    families = [c for c in contenders if c.kind != "floor"]
    floors = [c for c in contenders if c.kind == "floor"]
    names = [c.name for c in families]
    among = [pair(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    beside = [found for name in names for found in corrected([pair(name, floor.name) for floor in floors])]
    values = {c.name: c.scores[metric.name] for c in families}
    return Findings(metric.name, metric.higher_is_better, values, corrected(among), beside)


def facts_of(members: Sequence[Member], n_answers: int) -> list[tuple[str, list[str]]]:
    """What each family was and got, row by row."""
    speed = [n_answers / max(member.answer_seconds, 1e-9) for member in members]
    return [
        ("weights", [f"{m.parameters:,}" for m in members]),
        ("seconds", [f"{m.seconds:.1f}" for m in members]),
        ("updates", [f"{m.updates:,}" for m in members]),
        ("examples", [f"{m.examples:,}" for m in members]),
        ("epochs", [f"{m.epochs:.2g}" for m in members]),
        ("tokens", [f"{m.tokens:,}" for m in members]),
        ("rate", [f"{m.rate:.3g}" for m in members]),
        ("held-out loss", [figure(m.held_out) for m in members]),
        ("answers / s", [f"{value:.3g}" for value in speed]),
    ]


def pair_lines(findings: Findings) -> list[str]:
    """Each pair in one line."""
    lines = []
    for pair in findings.pairs:
        d = pair.difference
        state = "shown" if pair.shown else "not shown"
        size = f"{figure(d.value)} (95 %: {figure(d.low)} to {figure(d.high)}; p = {pair.p:.2g}): {state}"
        lines.append(f"{findings.measure} of {pair.first} less {pair.second}: {size}")
    return lines


def _plain(pair: Pair) -> dict[str, Any]:
    own = {"first": pair.first, "second": pair.second, "corrected_p": pair.p, "shown": pair.shown}
    return own | asdict(pair.difference)
