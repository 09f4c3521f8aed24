"""What looks like a fault and is none, and what should be told without being one."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
from faults.injection import SETTINGS, SPEC, Once, batch_at, final_loss, make_run

from bimo import UserError
from bimo.core.batch import Batch
from bimo.training import Fault, Gradient
from bimo.training.watchdog.normal import Normal
from bimo.training.watchdog.senses import STILL, Senses

SHORT = replace(SETTINGS, steps=40, warmup_steps=5)
TINY = replace(SPEC, context_length=4, n_layers=1)


@pytest.mark.parametrize(("fall", "alarm"), [(0.8, False), (1.0, True)])
def test_a_gradient_that_fades_to_nothing_is_no_dead_layer(fall: float, alarm: bool) -> None:
    """A model that knows its text by heart: gradients of 1e-6 vary a thousandfold, and become zero in float32."""
    senses, faults = Senses(), []
    batch = Batch(torch.zeros(8, 64), torch.zeros(8, 64), torch.ones(8, 64))
    for step, wild in enumerate([1.0] * 60 + [300.0, 0.0]):
        norm = fall**step * wild
        gradient = Gradient(batch, 5 * fall**step, norm, [norm], ["layers.0.mlp.up_proj.weight"])
        try:
            senses.look_at_gradient(gradient, step)
            senses.add(gradient)
        except Fault as fault:
            faults.append(fault.kind)
    assert faults == ["gradient spike", "no gradient"] * alarm, "where gradients are what they were, it is a fault"


def sharp(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    nats = torch.nn.functional.cross_entropy(8 * logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (nats * weights.flatten()).sum() / weights.sum()


@pytest.mark.parametrize(("tokens", "alarm"), [(1, False), (512, True)])
def test_the_loss_of_a_few_tokens_may_rise_more(tokens: int, alarm: bool) -> None:
    run = make_run(0, settings=SHORT)

    def spoil(number: int, batch: Batch) -> Batch:
        weights = torch.zeros(batch.ids.numel())
        weights[torch.randperm(len(weights), generator=torch.Generator().manual_seed(number))[:tokens]] = 1.0
        worse = (batch.targets + 1) % 512 if number == 35 else batch.targets
        return replace(batch, targets=worse, weights=weights.view_as(batch.weights))

    run.text.spoil = spoil
    run.trainer.loss = lambda logits, t, w: sharp(logits / 8, t, w) + 1.5 * (run.trainer.state.step == 35)
    final_loss(run)
    assert bool(run.watch.faults) == alarm, f"a rise of some nats in {tokens} tokens: {run.watch.faults}"


@pytest.mark.parametrize("broken", [True, False])
def test_updates_that_change_nothing_are_told_once(broken: bool) -> None:
    run = make_run(0, settings=SHORT)
    if broken:
        run.trainer.callbacks.insert(0, Once(20, lambda: setattr(run.trainer.optimizer, "step", lambda: None)))
    final_loss(run)
    kinds = [event.kind for event in run.watch.events]
    assert kinds == ["weights stand still"] * broken, f"after {STILL} such updates, and in no other run"


def test_an_evaluation_that_is_no_number_is_told() -> None:
    for figure, told in ((math.nan, 2), (5.0, 0)):
        run = make_run(0, settings=replace(SHORT, evaluate_every=20))
        run.trainer.evaluate_fn = lambda _, figure=figure: {"loss": figure}  # type: ignore[misc]
        final_loss(run)
        assert [event.kind for event in run.watch.events] == ["bad evaluation"] * told, "each time, and only then"


def test_memory_for_one_row_of_many_is_found_by_halving_however_often() -> None:
    run = make_run(0, settings=replace(SHORT, steps=1, batch_size=512, micro_batch_size=512), spec=TINY)
    inner = run.trainer.loss_sum

    def loss_sum(batch: Batch) -> torch.Tensor:
        if batch.n_rows > 1:
            raise MemoryError("no memory")
        return inner(batch)

    run.trainer.loss_sum = loss_sum  # type: ignore[method-assign]
    final_loss(run)
    assert run.trainer.state.most_rows == 1, "nine times half of it"


@pytest.mark.parametrize("watchdog", [True, False])
def test_ids_that_are_no_whole_numbers_are_set_aside(watchdog: bool) -> None:
    run = make_run(0, settings=replace(SHORT, steps=3, watchdog=watchdog), spec=TINY)
    run.at = 1
    batch_at(run, lambda batch: replace(batch, ids=batch.ids.float()))
    if watchdog:
        final_loss(run)
        assert [event.kind for event in run.watch.events] == ["batch set aside"], "as every batch that cannot be read"
    else:
        with pytest.raises(UserError, match="step 2 has ids or targets that are no whole numbers"):
            final_loss(run)


@pytest.mark.parametrize("resumable", [True, False])
def test_batches_that_are_lost_when_the_run_goes_back_are_told(resumable: bool) -> None:
    run = make_run(0, settings=SHORT)
    run.trainer.callbacks.insert(0, Once(30, lambda: run.parameters["embed_tokens.weight"].data.mul_(1e6)))
    stream = run.text.stream() if resumable else map(run.text.batch, itertools.count())
    run.trainer.fit(stream)
    event = next(event for event in run.watch.events if event.kind == "went back")
    assert ("cannot be read again" in str(event)) != resumable, "a plain iterator does not go back"


@pytest.mark.parametrize(("depth", "alarm"), [(math.log(1000.0), False), (math.inf, True)])
def test_below_a_thousandth_of_what_it_was_a_figure_may_vary(depth: float, alarm: bool) -> None:
    rng = random.Random(0)
    normal = Normal(sigmas=10.0, least=math.log(20.0), depth=depth)
    for step in range(300):
        normal.add(-step / 20 + rng.gauss(0, 0.1))
    assert normal.stands_out(-9.0) == alarm, "fifteen below the highest, then nine: both are next to nothing"
    assert normal.stands_out(-1.0), "what would matter is still seen"
