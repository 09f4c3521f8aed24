"""Contenders in turn over the same works, round by round, so that noise of the machine hits all of them."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bimo.core.errors import UserError
from bimo.evaluation.apart import Apart
from bimo.evaluation.contenders import Run, Work

_CALM_S = 0.05  # until the threads of the one before have stopped spinning


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a work.

    Attributes:
        streams: Prompts at once.
        length: Of each prompt, in tokens.
        new_tokens: For each prompt.
        shared: Tokens that all prompts begin with.
    """

    streams: int
    length: int
    new_tokens: int
    shared: int = 0

    def work(self, vocab_size: int, seed: int) -> Work:
        """Random ids: every seed gives texts that no cache has seen."""
        rng = random.Random(seed)
        shared = rng.choices(range(vocab_size), k=self.shared)
        rests = [rng.choices(range(vocab_size), k=self.length - self.shared) for _ in range(self.streams)]
        return Work(tuple((*shared, *rest) for rest in rests), self.new_tokens)


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure, and the work that it is of.

    Attributes:
        name: What is measured, for a person.
        unit: For example tokens/s.
        shape: The work.
        figure: The figure of a run.
        only: Contenders that take part; none: all.
    """

    name: str
    unit: str
    shape: Shape
    figure: Callable[[Run], float]
    only: tuple[str, ...] = ()


def decode_speed(run: Run) -> float:
    """Tokens per second after the first."""
    return run.decode_per_s


def total_speed(run: Run) -> float:
    """New tokens per second, reading the prompts included."""
    return run.total_per_s


def first_ms(run: Run) -> float:
    """Milliseconds until a prompt has its first token, the mean over all."""
    return statistics.fmean(run.first_s) * 1e3


@dataclass(frozen=True, slots=True)
class PrefillSpeed:
    """Prompt tokens per second of one prompt until its first token.

    Attributes:
        length: Of the prompt.
    """

    length: int

    def __call__(self, run: Run) -> float:
        return self.length / run.first_s[0]


@dataclass(slots=True)
class Results:
    """What came of it.

    Attributes:
        figures: By measure and contender, a figure for each round.
        left_out: Why something has no figure, by what it is.
    """

    figures: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def median(self, measure: str, contender: str) -> float | None:
        """The middle of its rounds; None: there is none."""
        found = self.figures.get((measure, contender))
        return statistics.median(found) if found else None

    def spread(self, measure: str, contender: str) -> float:
        """(largest - smallest) / median of its rounds."""
        found = self.figures[measure, contender]
        return (max(found) - min(found)) / statistics.median(found)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long it may take.

    Attributes:
        rounds: At most.
        seconds: After which nothing new begins.
    """

    rounds: int
    seconds: float


def race(
    contenders: Mapping[str, Apart],
    measures: Sequence[Measure],
    vocab_size: int,
    effort: Effort,
    on_round: Callable[[int], None] = lambda number: None,
) -> Results:
    """Measure them in turn.

    Args:
        contenders: By name; whoever fails is out, with the reason.
        measures: In the order of their weight: the last are left out when the time is short.
        vocab_size: Of the model.
        effort: Rounds and time.
        on_round: Told the number of each round that is done.
    """
    results, racing = Results(), dict(contenders)
    until, longest = time.perf_counter() + effort.seconds, 0.0
    missed: dict[str, list[str]] = {}
    for name in list(racing):
        _try(racing, name, Shape(1, 4, 2).work(vocab_size, 0), results)  # whatever is settled at the first use
    for number in range(effort.rounds):
        begun = time.perf_counter()
        if number and begun + longest > until:
            break
        for measure, name in _turns(measures, racing, number):
            if time.perf_counter() > until:
                if not number:
                    missed.setdefault(measure.name, []).append(name)
                continue
            time.sleep(_CALM_S)
            seed = hash((number, measure.shape)) % 2**32
            run = _try(racing, name, measure.shape.work(vocab_size, seed), results)
            if run is not None:
                results.figures.setdefault((measure.name, name), []).append(measure.figure(run))
        longest = max(longest, time.perf_counter() - begun)
        on_round(number)
    results.left_out |= {name: f"no time was left for {', '.join(who)}" for name, who in missed.items()}
    return results


def _turns(measures: Sequence[Measure], racing: Mapping[str, Apart], number: int) -> Iterator[tuple[Measure, str]]:
    """Each measure with each contender; who begins changes from round to round."""
    for measure in measures:
        names = [name for name in racing if not measure.only or name in measure.only]
        first = number % max(1, len(names))
        yield from ((measure, name) for name in names[first:] + names[:first] if name in racing)


def _try(racing: dict[str, Apart], name: str, work: Work, results: Results) -> Run | None:
    """A run; None: it failed, and the contender is out."""
    try:
        run: Run = racing[name].call("run", work)
    except UserError as error:
        results.left_out[name] = error.what
        del racing[name]
        return None
    return run
