"""A contract is a list of promises. Each is looked at on several subjects, and all that are broken are told at once."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from bimo.core.errors import UserError, nearest

Subject = TypeVar("Subject")
_NOT_THE_AUTHORS = (f"{Path(__file__).parents[1]}/", "/torch/")  # places of code that the author did not write


class ContractError(AssertionError):
    """A part breaks its contract.

    Attributes:
        broken: Name of each promise that it breaks → what is wrong, and how to mend it.
        kept: Names of the promises that it keeps.
        untried: Names of the promises that build on a broken one.
    """

    def __init__(self, part: str, broken: Mapping[str, str], kept: Sequence[str], untried: Sequence[str]) -> None:
        self.broken, self.kept, self.untried = dict(broken), list(kept), list(untried)
        lines = [f"{part} breaks its contract.", *(f"- {name}: {text}" for name, text in broken.items())]
        lines += [f"Not tried, because they build on it: {', '.join(untried)}."] if untried else []
        lines += [f"It keeps: {', '.join(kept)}."] if kept else []
        super().__init__("\n".join(lines))


@dataclass(frozen=True, slots=True)
class Promise(Generic[Subject]):
    """One thing that a part promises.

    Attributes:
        name: In a word or two.
        problem: '' when a subject keeps it, else what is wrong, as a clause; an exception is a problem, too.
        mend: What its author should do, as a sentence.
        needs: Promises without which this one says nothing.
    """

    name: str
    problem: Callable[[Subject], str]
    mend: str
    needs: tuple[str, ...] = ()


def check(
    part: str, promises: Sequence[Promise[Subject]], subjects: Mapping[str, Subject], skip: Collection[str] = ()
) -> list[str]:
    """Look at every promise on every subject.

    Args:
        part: The part's name, for the error.
        promises: What is promised; those that others need come first.
        subjects: Where each is looked at, by a few words that say what is special there.
        skip: Names of promises that shall not be looked at.

    Returns:
        The names of the promises that hold.

    Raises:
        ContractError: Some do not.
    """
    names = [promise.name for promise in promises]
    for name in skip:
        if name not in names:
            raise UserError(f"no promise {name!r}{nearest(name, names)}", where="skip", mend=f"Known: {names}.")
    broken: dict[str, str] = {}
    kept, untried, first = [], [], None
    for promise in promises:
        if promise.name in skip:
            continue
        if any(need in broken or need in untried for need in promise.needs):
            untried.append(promise.name)
            continue
        problem, error = _problem(promise, subjects)
        if problem:
            broken[promise.name] = problem
            first = first or error
        else:
            kept.append(promise.name)
    if broken:
        raise ContractError(part, broken, kept, untried) from first
    return kept


def _problem(promise: Promise[Subject], subjects: Mapping[str, Subject]) -> tuple[str, Exception | None]:
    """What is wrong on the first subject on which something is, and the exception that said so."""
    for special, subject in subjects.items():
        error = None
        try:
            problem = promise.problem(subject)
        except Exception as raised:  # whatever the part raises, its author gets it, as the cause of the ContractError
            problem, error = _told(raised), raised
        if problem:
            return f"{problem} ({special}). {promise.mend}", error
    return "", None


def _told(error: Exception) -> str:
    """An exception with the last place in the author's code, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(place in frame.filename for place in _NOT_THE_AUTHORS)]
    where = f", {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""
    what = " ".join(str(error).split())
    return f"{type(error).__name__}: {what[:300]}{where}" if what else f"{type(error).__name__}{where}"
