"""All families answer the same examples: portion by portion, until all are answered or the time is over."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bimo.evaluation.answer import Answer, Circumstances
from bimo.families.family import Family
from bimo.families.turns import Tell

_PORTION = 64
_MOST_PORTIONS = 16


@dataclass(frozen=True)
class Answers:
    """What was answered.

    Attributes:
        places: Of the examples that all families answered, ascending.
        by_family: The answers to these, in the order of the families.
        seconds: Of answering, for each family.
    """

    places: list[int]
    by_family: list[list[Answer]]
    seconds: list[float]


def ask_all(
    families: Sequence[Family],
    prompts: Sequence[list[int] | None],
    deadline: float,
    tell: Tell,
    clock: Callable[[], float] = time.perf_counter,
) -> Answers:
    """The answers of all families; each portion is spread over all examples, and answered by all.

    Args:
        families: Trained.
        prompts: Of each example; None where nothing of it fits: the answer is empty, with the reason "error".
        deadline: By the clock; no portion begins after it, but the first.
        tell: Told of progress.
        clock: Gives the time in seconds.
    """
    portions = min(_MOST_PORTIONS, max(1, len(prompts) // _PORTION))
    found: list[dict[int, Answer]] = [{} for _ in families]
    seconds = [0.0] * len(families)
    for portion in range(portions):
        if portion and clock() > deadline:
            break
        places = range(portion, len(prompts), portions)
        known = [(place, prompt) for place in places if (prompt := prompts[place]) is not None]
        for number, family in enumerate(families):
            tell(f"{family.name}: answering", (portion + number / len(families)) / portions)
            start = clock()
            answers = family.answer([prompt for _, prompt in known])
            seconds[number] += clock() - start
            found[number] |= dict.fromkeys(places, Answer("", Circumstances("error")))
            found[number] |= {place: answer for (place, _), answer in zip(known, answers, strict=True)}
    tell("answering", 1.0)
    answered = sorted(found[0])
    return Answers(answered, [[own[place] for place in answered] for own in found], seconds)
