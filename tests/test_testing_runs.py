"""Callbacks and optimizers keep their contracts, and for each promise one that breaks just this one is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bimo.core.batch import Batch
from bimo.core.registry import REGISTRIES
from bimo.testing import ContractError, check_callback, check_optimizer
from bimo.testing.callbacks import CONTRACT as CALLBACKS
from bimo.testing.optimizers import CONTRACT as OPTIMIZERS
from bimo.testing.promises import Promise
from bimo.training import Callback, EarlyStopping, StepResult, Trainer, WeightAverage

WRITTEN = {
    "sampling": "sampling(prompts=['a'], every=2)",
    "rate_finder": "rate_finder(steps=20)",
    "time_budget": "time_budget(seconds=1000)",
}


def names(contract: tuple[Promise[Any], ...]) -> list[str]:
    return [promise.name for promise in contract]


def test_a_callback_that_keeps_its_contract_is_told_all_its_promises() -> None:
    assert check_callback("weight_average(decay=0.5)") == names(CALLBACKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", REGISTRIES["callback"].ours)
def test_every_callback_of_the_house_keeps_its_contract(name: str) -> None:
    skip = {"resume"} if name == "time_budget" else ()  # its number of steps depends on the clock
    assert check_callback(WRITTEN.get(name, name), skip=skip), "the promises are returned"


class Misspelt(Callback):
    def on_stp(self, trainer: Trainer, result: StepResult) -> None: ...


class OneArgument(Callback):
    def on_settled(self) -> None: ...  # type: ignore[override]


class Overwriting(Callback):
    def on_batch(self, trainer: Trainer, batch: Batch) -> Batch | None:
        batch.weights[0] = 0
        return None


class Drawing(Callback):
    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        torch.rand(1)


class Unsaved(EarlyStopping):
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Counting(Callback):
    """Changes the rate with every step, and does not say that it counts."""

    count = 0

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.count += 1
        trainer.state.rate_scale = 1 / self.count


class TooEarly(WeightAverage):
    """Puts the average in before the last checkpoint is written."""

    def on_end(self, trainer: Trainer) -> None:
        self.on_result(trainer)


BROKEN: list[tuple[str, Callable[[], Any], str]] = [
    ("made", dict, "it makes a dict"),
    ("methods", Misspelt, "on_stp is not called by anybody (did you mean 'on_step'?)"),
    ("arguments", OneArgument, "on_settled cannot be called with (trainer)"),
    ("run", Overwriting, "it changes batches in place"),
    ("chance", Drawing, "on_evaluation draws random numbers"),
    ("state", Unsaved, "after a checkpoint, /best in its state is another"),
    ("resume", Counting, "a resumed run ends with other weights"),
    ("resume", lambda: TooEarly(0.5), "a resumed run ends with other weights"),
]


@pytest.mark.parametrize(("promise", "part", "words"), BROKEN)
def test_what_breaks_one_promise_of_a_callback_is_caught(promise: str, part: Callable[[], Any], words: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_callback(part, skip=set(names(CALLBACKS)) - {promise})
    assert words in caught.value.broken[promise]


def test_every_promise_of_a_callback_has_a_control() -> None:
    assert {promise for promise, _, _ in BROKEN} == set(names(CALLBACKS))


def test_a_callback_that_needs_arguments_is_told_how_it_is_checked() -> None:
    class Needy(Callback):
        def __init__(self, size: int) -> None: ...

    with pytest.raises(ContractError, match="is checked as a function without any"):
        check_callback(Needy)
    assert check_callback(lambda: Needy(3), skip=set(names(CALLBACKS)) - {"made"}) == ["made"]


def test_an_optimizer_that_keeps_its_contract_is_told_all_its_promises() -> None:
    assert check_optimizer("adamw") == names(OPTIMIZERS)


@pytest.mark.slow
def test_an_optimizer_of_torch_keeps_the_contract() -> None:
    assert check_optimizer(lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9)) == names(OPTIMIZERS)


class RateOfItsOwn(torch.optim.SGD):
    """Reads no rate from its groups."""

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter -= 0.01 * parameter.grad


class Upwards(torch.optim.SGD):
    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1, maximize=True)


class Forgetful(torch.optim.SGD):
    """Keeps how far it has come where no checkpoint finds it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.count = 0

    def step(self, closure: Any = None) -> None:
        self.count += 1
        for group in self.param_groups:
            group["lr"] /= self.count
        super().step()


BAD: list[tuple[str, Callable[..., Any], str]] = [
    ("made", lambda parameters: list(parameters), "the optimizer is a list"),
    ("parameters", lambda parameters: torch.optim.SGD(list(parameters)[1:], lr=0.1), "is in its groups 0 times"),
    ("rates", RateOfItsOwn, "with a rate of 0"),
    ("learning", Upwards, "after 30 updates the loss is"),
    ("resume", Forgetful, "a resumed run ends with other weights"),
]


@pytest.mark.parametrize(("promise", "part", "words"), BAD)
def test_what_breaks_one_promise_of_an_optimizer_is_caught(promise: str, part: Callable[..., Any], words: str) -> None:
    with pytest.raises(ContractError) as caught:
        check_optimizer(part, skip=set(names(OPTIMIZERS)) - {promise})
    assert words in caught.value.broken[promise]


def test_every_promise_of_an_optimizer_has_a_control() -> None:
    assert {promise for promise, _, _ in BAD} == set(names(OPTIMIZERS))
