"""Training in turns: every family gets the same seconds of updates, the same batches, and a say in its learning rate.

The families take turns of a fifth of their time, so that what else the machine does in between meets all of them.
Only updates count, from the reading of a batch to the changed weights; looking at held-out rows does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bimo.core import machine
from bimo.core.batch import Batch
from bimo.core.config import TrainingSettings
from bimo.families.family import Family
from bimo.training.schedules import learning_rate
from bimo.training.streams import BatchStream

TURNS = 5
_TRIALS = 0.2  # of the time, for all rates together
_SCHEDULE = TrainingSettings(steps=1000, warmup_steps=20, learning_rate=1.0)
"""The trainer's own schedule, over the share of the time in place of steps."""
Tell = Callable[[str, float], None]


@dataclass
class Run:
    """How a family's training went.

    Attributes:
        family: Which one.
        rate: The peak rate that was chosen.
        tried: Held-out loss by rate, of short trainings.
        trial_seconds: What those took.
        seconds: Of the updates that made the weights.
        updates: How many.
        examples: Rows that were read in them.
        tokens: The same in tokens, without padding.
        losses: Held-out loss after each turn.
        best: The lowest of them.
        kept: After which share of the time the weights were taken: those with the lowest held-out loss.
        waited: Seconds that threads waited for a core in the updates, added up.
        diverged: Whether the loss became infinite, which ended the training.
    """

    family: Family
    rate: float = 0.0
    tried: dict[float, float] = field(default_factory=dict)
    trial_seconds: float = 0.0
    seconds: float = 0.0
    updates: int = 0
    examples: int = 0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    best: float = math.inf
    kept: float = 0.0
    waited: float = 0.0
    diverged: bool = False
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Lessons:
    """What is learned from, the same for all.

    Attributes:
        stream: Batch n is the same for every family.
        held_out: Rates and the best moment are chosen by these.
        seconds: Of updates, for each family.
        rates: Peak rates to try.
        pad: Id that fills rows, which is not counted.
        clock: Gives the time in seconds.
    """

    stream: BatchStream
    held_out: Sequence[Batch]
    seconds: float
    rates: Sequence[float]
    pad: int = -1
    clock: Callable[[], float] = time.perf_counter


def train_all(families: Sequence[Family], lessons: Lessons, tell: Tell) -> list[Run]:
    """Train all of them in turns; afterwards each has its best weights."""
    runs = [Run(family) for family in families]
    trial = _TRIALS * lessons.seconds / len(lessons.rates) if len(lessons.rates) > 1 else 0.0
    for number, rate in enumerate(lessons.rates if trial else ()):
        for place, run in enumerate(runs):
            done, every = number * len(runs) + place, len(lessons.rates) * len(runs)
            _try(run, rate, trial, lessons, _part(tell, f"{run.family.name}: trying a rate", done, every))
    for run in runs:
        run.rate = min(run.tried, key=lambda rate: run.tried[rate], default=lessons.rates[0])
        run.family.begin(run.rate)
    for turn in range(1, TURNS + 1):
        for place, run in enumerate(runs):
            done, every = (turn - 1) * len(runs) + place, TURNS * len(runs)
            _train(run, turn, lessons, _part(tell, f"{run.family.name}: training", done, every))
    for run in runs:
        if run.weights:
            run.family.put_back(run.weights)
            run.weights = {}
    tell("training", 1.0)
    return runs


def _part(tell: Tell, stage: str, done: int, every: int) -> Callable[[float], None]:
    """Tells of one of many parts of a stage, of which so many are done."""
    return lambda share: tell(stage, (done + min(share, 0.99)) / every)


def _try(run: Run, rate: float, seconds: float, lessons: Lessons, tell: Callable[[float], None]) -> None:
    """A short training, judged by the held-out loss."""
    found = Run(run.family)
    run.family.begin(rate)
    _update(found, seconds, (0.0, 1.0), lessons, tell)
    run.trial_seconds += found.seconds
    loss = math.inf if found.diverged else run.family.loss(lessons.held_out)
    run.tried[rate] = loss if math.isfinite(loss) else math.inf


def _train(run: Run, turn: int, lessons: Lessons, tell: Callable[[float], None]) -> None:
    """A turn, and a look at the held-out rows: the best weights are remembered."""
    _update(run, lessons.seconds - run.trial_seconds, ((turn - 1) / TURNS, turn / TURNS), lessons, tell)
    loss = run.family.loss(lessons.held_out)
    run.losses.append(loss)
    if loss < run.best:
        run.best, run.kept, run.weights = loss, turn / TURNS, run.family.weights()


def _update(
    run: Run, seconds: float, part: tuple[float, float], lessons: Lessons, tell: Callable[[float], None]
) -> None:
    """Updates from one share of the seconds until another one is used; at least one is made."""
    waited, (begin, end) = machine.waited_for_cores(), part
    while not run.diverged and (run.seconds < end * seconds or not run.updates):
        start = lessons.clock()
        batch = lessons.stream.make(run.updates)
        share = learning_rate(min(999, int(1000 * run.seconds / seconds)), _SCHEDULE)
        run.diverged = not math.isfinite(run.family.step(batch, share))
        run.seconds += lessons.clock() - start
        run.updates += 1
        run.examples += batch.n_rows
        run.tokens += int((batch.ids != lessons.pad).sum())
        tell((run.seconds / seconds - begin) / (end - begin))
    run.waited += machine.waited_for_cores() - waited
