"""The contract of a callback, so that a run with it resumes exactly: `check_callback(MyCallback)`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from bimo.testing.promises import Promise, check
from bimo.testing.runs import Run, a_run, batches, difference, weights_of
from bimo.testing.subjects import name_of
from bimo.training import Callback, Trainer
from bimo.training.callbacks import callback_by_name
from bimo.training.callbacks.naming import METHODS, uncallable_method, uncalled_method
from bimo.training.randomness import random_state
from bimo.training.state import copied, read, write

HAPPENINGS = [name for name in METHODS if name.startswith("on_")]


@dataclass(frozen=True, slots=True)
class Subject:
    """A callback and the run that it is put into.

    Attributes:
        make: Makes it anew.
        run: With a small GPT.
    """

    make: Callable[[], Callback]
    run: Run


def check_callback(callback: str | Callable[[], Callback], *, skip: Collection[str] = ()) -> list[str]:
    """Whether a callback keeps its contract, so that a run with it that is resumed ends like the unbroken one.

    Args:
        callback: Its class, a function that makes it, or its name as settings have it: `early_stopping(patience=5)`.
        skip: Names of promises that shall not be looked at, for example "resume" for one that goes by the clock.

    Returns:
        The names of the promises that it keeps.

    Raises:
        ContractError: It breaks some; each is told with how to mend it.
    """
    with a_run() as run:

        def make() -> Callback:
            if not isinstance(callback, str):
                return callback()
            return callback_by_name(callback, {"folder": run.folder / "run", "generate": lambda _, prompt: "a text"})

        return check(name_of(callback), CONTRACT, {"a run of six steps": Subject(make, run)}, skip)


def made(subject: Subject) -> str:
    """'' when it makes a callback, a new one each time."""
    first, second = subject.make(), subject.make()
    if not isinstance(first, Callback):
        return f"it makes a {type(first).__name__}"
    return "it makes the same object again" if first is second else ""


def methods(subject: Subject) -> str:
    """'' when every method that looks like one of the protocol is one; a misspelt one is never called."""
    return uncalled_method(subject.make())


def arguments(subject: Subject) -> str:
    """'' when its methods take what the loop hands over."""
    return uncallable_method(subject.make())


def runs(subject: Subject) -> str:
    """'' when a run with it comes to its end and leaves the data as they were."""
    data = batches()
    subject.run.trainer([subject.make()]).fit(data)
    for batch, before in zip(data, batches(), strict=True):
        if difference([batch.ids, batch.targets, batch.weights], [before.ids, before.targets, before.weights]):
            return "it changes batches in place, which are read again in the next epoch"
    return ""


def chance(subject: Subject) -> str:
    """'' when no call of it moves a random generator."""
    before: list[Any] = []
    moved: list[str] = []

    def compare(name: str) -> None:
        if difference(before[-1], random_state()):
            moved.append(name)

    first, last = _witness(lambda _: before.append(random_state())), _witness(compare)
    subject.run.whole([first, subject.make(), last])
    return f"{moved[0]} draws random numbers, so that the training is another one with it" if moved else ""


def state(subject: Subject) -> str:
    """'' when its state survives a checkpoint on disk."""
    callback = subject.make()
    subject.run.whole([callback])
    saved = copied(callback.state_dict())
    write(subject.run.folder / "state", {"callback": saved})
    other = subject.make()
    other.load_state_dict(read(subject.run.folder / "state")["callback"])
    place = difference(saved, other.state_dict())
    return f"after a checkpoint, {place} in its state is another" if place else ""


def resume(subject: Subject) -> str:
    """'' when a run with it that is resumed in the middle is the unbroken one."""
    whole, halves = subject.make(), subject.make()
    expected = weights_of(subject.run.whole([whole]).model)
    middle = subject.run.half([subject.make()])
    found = subject.run.other_half([halves], middle)
    place = difference(expected, weights_of(found.model))
    if place:
        return f"a resumed run ends with other weights ({place})"
    place = difference(whole.state_dict(), halves.state_dict())
    return f"after a resumed run, {place} in its state is another" if place else ""


def _witness(look: Callable[[str], object]) -> Callback:
    """A callback that looks at something in every call."""

    def method(name: str) -> Callable[..., None]:
        def heard(_self: Callback, _trainer: Trainer, *_arguments: object) -> None:
            look(name)

        return heard

    witness: Callback = type("Witness", (Callback,), {name: method(name) for name in HAPPENINGS})()
    return witness


CONTRACT: tuple[Promise[Subject], ...] = (
    Promise("made", made, "Inherit from bimo.Callback; what needs arguments is checked as a function without any."),
    Promise("methods", methods, "Use the names of bimo.Callback, and a leading _ for your own.", needs=("made",)),
    Promise("arguments", arguments, "Take the arguments of bimo.Callback.", needs=("made",)),
    Promise(
        "run",
        runs,
        "Return another batch from on_batch in place of changing it.",
        needs=("made", "methods", "arguments"),
    ),
    Promise("chance", chance, "Draw from a generator of your own, or inside trainer.looking().", needs=("run",)),
    Promise("state", state, "Give plain values and tensors in state_dict, and take all of them back.", needs=("run",)),
    Promise(
        "resume",
        resume,
        "Put all that it remembers into state_dict, and change the weights that a run hands over in on_result.",
        needs=("run", "chance", "state"),
    ),
)
