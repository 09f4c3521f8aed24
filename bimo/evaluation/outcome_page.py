"""An evaluation as one page for a browser: no script, nothing from elsewhere, every text escaped."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from bimo.evaluation.answer import CUT, Answer
from bimo.evaluation.significance import Difference, Value, figure

if TYPE_CHECKING:
    from bimo.evaluation.judging import Contender
    from bimo.evaluation.outcome import Evaluation, Measure

_SHOWN, _LONGEST = 8, 600  # examples of each kind; characters of a text
_BAR, _LABEL, _ROW = 420, 170, 22  # pixels
_COLOURS = {"model": "#36c", "floor": "#bbb", "other model": "#c83"}
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def page_of(evaluation: Evaluation, *, title: str = "", verdict: str = "", beside: str = "") -> str:
    """The page, well-formed as HTML and as XML.

    Args:
        evaluation: What was found.
        title: What it is about; "": the model's name.
        verdict: The result in one sentence; "": the evaluation's own.
        beside: HTML that stands before the scores.
    """
    floors = [contender for contender in evaluation.contenders if contender.kind == "floor"]
    state = "ok" if floors and len(evaluation.beaten) == len(floors) else "open"
    versions = ", ".join(f"{name} {version}" for name, version in evaluation.versions.items())
    measures = "".join(
        f"<tr><td>{shown(m.name)}</td><td>{'higher' if m.higher_is_better else 'lower'} is better</td>"
        f"<td><code>{shown(m.signature)}</code></td></tr>"
        for m in evaluation.measures
    )
    notes = "".join(f"<li>{shown(note)}</li>" for note in evaluation.notes)
    return _PAGE.format(
        title=shown(title or evaluation.model),
        task=shown(evaluation.task),
        verdict=shown(verdict or evaluation.verdict),
        state=state,
        about=shown(f"{evaluation.created}; {versions}; {', '.join(evaluation.data)}"),
        notes=f"<ul>{notes}</ul>" if notes else "",
        beside=beside,
        scores=_scores(evaluation),
        charts="".join(_chart(evaluation, measure) for measure in evaluation.measures),
        groups="".join(_group(evaluation, group) for group in evaluation.sizes),
        worst=_examples(evaluation, evaluation.order[::-1][:_SHOWN]),
        best=_examples(evaluation, evaluation.order[:_SHOWN]),
        measures=measures,
    )


def shown(text: object) -> str:
    """A text that can stand anywhere in the page."""
    return html.escape(_UNWRITABLE.sub("\ufffd", str(text)))


def _scores(evaluation: Evaluation) -> str:
    """A row for each contender, a column for each metric."""
    head = "".join(f"<th>{shown(measure.name)}</th>" for measure in evaluation.measures)
    rows = []
    for contender in evaluation.contenders:
        cells = "".join(
            f"<td>{_value(contender.scores[m.name])}{_p(contender.differences.get(m.name))}</td>"
            for m in evaluation.measures
        )
        rows.append(f'<tr class="{contender.kind.split()[0]}"><td>{shown(contender.name)}</td>{cells}</tr>')
    return f"<table><tr><th>who</th>{head}</tr>{''.join(rows)}</table>"


def _value(value: Value) -> str:
    if math.isnan(value.low):
        return figure(value.value)
    return f"{figure(value.value)} <small>{figure(value.low)}…{figure(value.high)}</small>"


def _p(difference: Difference | None) -> str:
    if difference is None or math.isnan(difference.p):
        return ""
    p = f"p = {difference.p:.2g}" if difference.p >= 0.001 else "p &lt; 0.001"
    mark = "" if not difference.significant else "better" if difference.better else "worse"
    return f'<br/><small class="{mark or "open"}">{p}{", " * bool(mark)}{mark}</small>'


def _chart(evaluation: Evaluation, measure: Measure) -> str:
    """Bars with their intervals, drawn as SVG."""
    known = [c for c in evaluation.contenders if math.isfinite(c.scores[measure.name].value)]
    if len(known) < 2:
        return ""
    ends = [end for c in known for end in (c.scores[measure.name].value, c.scores[measure.name].high)]
    largest = max(end for end in ends if math.isfinite(end)) or 1.0
    bars = "".join(_bar(c, c.scores[measure.name], largest, place) for place, c in enumerate(known))
    height = _ROW * len(known)
    return (
        f"<figure><figcaption>{shown(measure.name)}</figcaption>"
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LABEL + _BAR + 60}" height="{height}">{bars}</svg></figure>'
    )


def _bar(contender: Contender, value: Value, largest: float, place: int) -> str:
    def x(number: float) -> float:
        return round(_LABEL + _BAR * max(0.0, number) / largest, 1)

    top = place * _ROW
    line = ""
    if math.isfinite(value.low):
        line = f'<path d="M{x(value.low)} {top + 10}H{x(value.high)}" stroke="#222" stroke-width="2"/>'
    name = contender.name if len(contender.name) <= 24 else contender.name[:11] + "…" + contender.name[-12:]
    end = max(x(value.value), x(value.high) if math.isfinite(value.high) else 0)
    return (
        f'<text x="{_LABEL - 8}" y="{top + 15}" text-anchor="end">{shown(name)}</text>'
        f'<rect fill="{_COLOURS[contender.kind]}" x="{_LABEL}" y="{top + 3}" height="15" '
        f'width="{round(x(value.value) - _LABEL, 1)}"/>{line}'
        f'<text x="{end + 6}" y="{top + 15}">{figure(value.value)}</text>'
    )


def _group(evaluation: Evaluation, group: str) -> str:
    """A table for one group: a row for each value, the deciding metric of each contender, then the model's others."""
    within = next(iter(evaluation.ours.groups[group].values()))
    first, *others = [measure for measure in evaluation.measures if measure.name in within]
    head = "".join(f"<th>{shown(c.name)}</th>" for c in evaluation.contenders)
    head += "".join(f"<th>{shown(m.name)}</th>" for m in others)
    name = first.name
    rows = []
    for value, size in evaluation.sizes[group].items():
        cells = [_of(c.groups[group][value], name) for c in evaluation.contenders]
        cells += [_of(evaluation.ours.groups[group][value], measure.name) for measure in others]
        rows.append(f"<tr><td>{shown(value)}</td><td>{size}</td>{''.join(cells)}</tr>")
    return (
        f"<h2>By {shown(group)}</h2><p>{shown(name)} of each; then the model's other figures.</p>"
        f"<table><tr><th>{shown(group)}</th><th>examples</th>{head}</tr>{''.join(rows)}</table>"
    )


def _of(scores: Mapping[str, Value], name: str) -> str:
    return f"<td>{_value(scores[name])}</td>"


def _examples(evaluation: Evaluation, places: Iterable[int]) -> str:
    """The source, the target and what each contender answered."""
    return "".join(_example(evaluation, place) for place in places) or "<p>None.</p>"


def _example(evaluation: Evaluation, place: int) -> str:
    example = evaluation.examples[place]
    rows = [("source", _text(example.source)), ("target", _text(example.target))]
    rows += [(contender.name, _answer(contender.answers[place])) for contender in evaluation.contenders]
    lines = "".join(f"<tr><th>{shown(name)}</th><td>{text}</td></tr>" for name, text in rows)
    return f'<table class="example"><caption>{shown(example.where)}</caption>{lines}</table>'


def _answer(answer: Answer) -> str:
    reason = answer.how.finish_reason
    note = "cut off" if reason in CUT else "could not be answered" if reason == "error" else ""
    sure = answer.how.probabilities.get(str(answer))
    notes = [note] * bool(note) + ["of a shortened prompt"] * answer.how.shortened
    notes += [f"{sure:.0%} sure"] if sure is not None else []
    text = _text(answer) if answer else "<i>nothing</i>"
    return text + (f" <small>({shown(', '.join(notes))})</small>" if notes else "")


def _text(text: str) -> str:
    return shown(text if len(text) <= _LONGEST else text[:_LONGEST] + " …")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"/><title>{title}: {task}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; width: 100%; margin: 1em 0 }}
td, th {{ text-align: left; padding: .3em .6em; border-bottom: 1px solid #ddd; vertical-align: top }}
tr.model td {{ font-weight: 600 }} small {{ color: #666; font-weight: 400; white-space: nowrap }}
small.better {{ color: #060 }} small.worse {{ color: #a00 }}
p.verdict {{ padding: 1em; border-radius: .4em }} p.ok {{ background: #dfd }} p.open {{ background: #fe9 }}
figure {{ display: inline-block; margin: .5em 1em .5em 0 }} figcaption {{ font-weight: 600 }}
svg text {{ font-size: 12px }}
table.example {{ border: 1px solid #ddd }} table.example th {{ width: 10em; font-weight: 600 }}
table.example td {{ white-space: pre-wrap; overflow-wrap: anywhere }} caption {{ text-align: left; color: #666 }}
code {{ font-size: 12px; word-break: break-all }}
</style></head><body>
<h1>{title}</h1><p><code>{task}</code></p><p class="verdict {state}">{verdict}</p><p>{about}</p>{notes}{beside}
<h2>Scores</h2><p>With the 95 % interval; p: how often chance alone makes a difference
to the model as large; better, worse: the model than this one.</p>
{scores}{charts}{groups}
<h2>The worst answers</h2>{worst}
<h2>The best answers</h2>{best}
<h2>How it was scored</h2><table><tr><th>metric</th><th></th><th>signature</th></tr>{measures}</table>
</body></html>
"""
