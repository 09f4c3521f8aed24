"""One sentence of advice, out of scores, differences and p-values alone; it says no more than they show.

A difference is shown when its 95 % interval leaves out 0 and its p-value, corrected for the number of pairs (Holm
1979), lies below 0.05. A family is recommended only above every floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bimo.evaluation.outcome import listed
from bimo.evaluation.significance import Difference, Value, figure

_ALPHA = 0.05
_OURS = "GPT"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two contenders on the same examples.

    Attributes:
        first: Name of one.
        second: Name of the other.
        difference: Score of the first less that of the second.
        p: Its p-value, corrected for the number of pairs.
    """

    first: str
    second: str
    difference: Difference
    p: float

    @property
    def shown(self) -> bool:
        """Whether it is more than chance."""
        return self.p < _ALPHA and (self.difference.low > 0 or self.difference.high < 0)

    @property
    def winner(self) -> str:
        """Who is better, whether it is shown or not."""
        return self.first if self.difference.better else self.second

    def of(self, name: str, other: str) -> bool:
        """Whether it is about these two."""
        return {self.first, self.second} == {name, other}


def corrected(pairs: Sequence[tuple[str, str, Difference]]) -> list[Pair]:
    """Pairs with their p-values after Holm: the smallest times the number of pairs, the next times one less, …"""
    order = sorted(range(len(pairs)), key=lambda place: (math.isnan(pairs[place][2].p), pairs[place][2].p))
    adjusted, largest = [math.nan] * len(pairs), 0.0
    for rank, place in enumerate(order):
        p = pairs[place][2].p
        if not math.isnan(p):
            largest = max(largest, min(1.0, p * (len(pairs) - rank)))
            adjusted[place] = largest
    return [Pair(*pair, p) for pair, p in zip(pairs, adjusted, strict=True)]


@dataclass(frozen=True, slots=True)
class Findings:
    """What the advice is made of.

    Attributes:
        measure: Name of the deciding metric.
        higher_is_better: Which way is up.
        values: Of each family.
        pairs: Of families.
        floors: Of each family and each floor, the family first.
    """

    measure: str
    higher_is_better: bool
    values: Mapping[str, Value]
    pairs: Sequence[Pair]
    floors: Sequence[Pair]

    @property
    def leader(self) -> str:
        """The family with the best score, shown or not; '' where none is known."""
        known = {name: value.value for name, value in self.values.items() if math.isfinite(value.value)}
        if len(known) < len(self.values):
            return ""
        return (max if self.higher_is_better else min)(known, key=lambda name: known[name])

    def rivals(self) -> list[str]:
        """Families that are not shown to be behind the leader."""
        behind = {other for other in self.values if any(p.of(self.leader, other) and p.shown for p in self.pairs)}
        return [name for name in self.values if name != self.leader and name not in behind]


def advice(found: Findings) -> str:
    """The sentence."""
    if not found.leader:
        return f"{found.measure} cannot be computed of these answers: nothing can be advised."
    return f"{_finding(found)}: {_choice(found)}."


def _finding(found: Findings) -> str:
    rivals, leader = found.rivals(), found.leader
    behind = [pair for pair in found.pairs if pair.shown and leader in (pair.first, pair.second)]
    if rivals:
        open_pairs = [next(p for p in found.pairs if p.of(leader, rival)) for rival in rivals]
        start = f"on these data and in this time no difference in {found.measure} is shown between the {leader} and "
        named = zip(rivals, open_pairs, strict=True)
        start += " or ".join(f"the {name} ({_apart(pair, leader)})" for name, pair in named)
    else:
        start = f"on these data and in this time the {leader} leads in {found.measure}"
    clauses = [f"{_size(pair)} ahead of the {_other(pair, leader)} ({_interval(pair, leader)})" for pair in behind]
    joint = f"; the {leader} is " if rivals else ", "
    return _capital(start + (joint + " and ".join(clauses) if clauses else ""))


def _choice(found: Findings) -> str:
    """What to do, by the best family's place among the floors, then by who is not shown to be worse."""
    own = [pair for pair in found.floors if pair.first == found.leader]
    ahead = [pair.second for pair in own if pair.shown and pair.winner == pair.second]
    level = [pair.second for pair in own if not pair.shown]
    if ahead:
        return (
            f"but {listed(ahead)} {'do' if len(ahead) > 1 else 'does'} better without learning a model, so take "
            "none of them as they are; give more minutes or data, or a pretrained base, and compare again"
        )
    if level:
        return (
            f"but it is not shown to beat {listed(level)}, so the choice is open; give more minutes or data, and "
            "compare again"
        )
    equals = [found.leader, *found.rivals()]
    if _OURS in equals:
        why = (
            "" if equals == [_OURS] else ", for no other one is shown to be better, and one GPT can also do other tasks"
        )
        return f"take the {_OURS}{why}"
    return f"take the {' or the '.join(equals)}, unless one model shall also do other tasks"


def _other(pair: Pair, name: str) -> str:
    return pair.second if pair.first == name else pair.first


def _size(pair: Pair) -> str:
    return figure(abs(pair.difference.value))


def _signed(pair: Pair, name: str) -> tuple[float, float, float]:
    """Difference and interval, seen from this side."""
    d = pair.difference
    return (d.value, d.low, d.high) if pair.first == name else (-d.value, -d.high, -d.low)


def _interval(pair: Pair, name: str) -> str:
    _, low, high = _signed(pair, name)
    p = "p < 0.001" if pair.p < 0.001 else f"p = {pair.p:.2g}"
    return f"95 %: {figure(low)} to {figure(high)}, {p}"


def _apart(pair: Pair, name: str) -> str:
    value, low, high = _signed(pair, name)
    p = "p unknown" if math.isnan(pair.p) else f"p = {pair.p:.2g}"
    return f"{figure(value)} apart, 95 %: {figure(low)} to {figure(high)}, {p}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
