"""Depth that grows: the model is whole all the time, every layer is trained in the end, nothing else is disturbed."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bimo import GPT, ModelSpec, Trainer, TrainingSettings
from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.core.registry import register
from bimo.testing.callbacks import check_callback
from bimo.testing.runs import difference, weights_of
from bimo.training import (
    Callback,
    Checkpoints,
    Event,
    GrowingDepth,
    RateFinder,
    StepResult,
    TimeBudget,
    WeightAverage,
)
from bimo.training.callbacks.stopping import mean_cost
from bimo.training.resuming import restore, state_of
from bimo.training.state import copied
from bimo.training.streams import BatchStream

SPEC = ModelSpec(vocab_size=61, context_length=16, n_layers=4, d_model=32, n_heads=2, tied_embeddings=False)
SETTINGS = TrainingSettings(
    steps=40, batch_size=4, warmup_steps=2, evaluate_every=0, checkpoint_every=0, precision="fp32", device="cpu",
    threads=1,
)  # fmt: skip


def batch(number: int) -> Batch:
    ids = torch.randint(61, (4, 17), generator=torch.Generator().manual_seed(number))
    ids[:, 1::2] = ids[:, :-1:2]  # something to learn
    return Batch(ids[:, :-1], ids[:, 1:], torch.ones(4, 16))


def stream() -> BatchStream:
    return BatchStream(batch, 10**9, {"data": "numbers"})


def model(spec: ModelSpec = SPEC) -> GPT:
    gpt = GPT(spec)
    gpt.reset_parameters(torch.Generator().manual_seed(0))
    return gpt


def depth_of(trainer: Trainer) -> int:
    return len(list(trainer.model.blocks()))


class Seen(Callback):
    """Depths, losses and events of a run."""

    def __init__(self) -> None:
        self.depths: list[int] = []
        self.losses: list[float] = []
        self.events: list[Event] = []

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.depths.append(depth_of(trainer))
        self.losses.append(result.loss)

    def on_event(self, trainer: Trainer, event: Event) -> None:
        self.events.append(event)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if result.step == self.step:
            trainer.stop_requested = "far enough"


def run(*callbacks: Callback, gpt: GPT | None = None, folder: Path | None = None, **changes: Any) -> Trainer:
    """A run at its beginning."""
    return Trainer(gpt or model(), replace(SETTINGS, **changes), callbacks=callbacks, folder=folder)


def test_the_depth_doubles_until_all_layers_are_trained() -> None:
    seen = Seen()
    trainer = run(GrowingDepth(0.7), seen).fit(stream())
    assert sorted(set(seen.depths)) == [1, 2, 4], "from one layer to all"
    assert seen.depths == sorted(seen.depths), "it never shrinks"
    layers = [torch.cat([p.detach().flatten() for p in layer.parameters()]) for layer in trainer.model.layers]
    apart = [float((a - b).abs().max()) for i, a in enumerate(layers) for b in layers[:i]]
    assert min(apart) > 1e-3, "all went their way"
    assert [event.kind for event in seen.events if "grow" in event.kind] == ["grown", "grown"]


def test_a_stage_takes_its_share_of_the_time() -> None:
    seen = Seen()
    trainer = run(growing := GrowingDepth(0.6), seen, steps=400)
    costs = [growing.step_cost(trainer, (step + 0.5) / 400) for step in range(400)]
    shares = [sum(cost for cost in costs if math.isclose(cost, kind)) / sum(costs) for kind in sorted(set(costs))]
    assert shares == pytest.approx([0.3, 0.3, 0.4], abs=0.01), "two depths on the way, and all layers"
    assert costs[-1] == 1 > mean_cost(trainer) == pytest.approx(sum(costs) / 400, rel=0.02)


def test_while_layers_wait_the_whole_model_is_the_shallow_one() -> None:
    whole: list[float] = []

    class Compare(Callback):
        def on_settled(self, trainer: Trainer) -> None:
            gpt, ids = trainer.model, batch(99).ids
            with torch.no_grad():
                shallow, gpt.depth, depth = gpt(ids), None, gpt.depth
                whole.append(float((gpt(ids) - shallow).abs().max()))
                gpt.depth = depth

    trainer = run(GrowingDepth(0.7), Compare(), StopAt(30)).fit(stream())
    assert max(whole) == 0.0, "what is saved on the way is what was judged"
    assert depth_of(trainer) == 4, "afterwards all layers run"


def test_growing_starts_from_what_was_learned() -> None:
    seen = Seen()
    run(GrowingDepth(0.7), seen, steps=300).fit(stream())
    places = [i for i in range(1, 300) if seen.depths[i] > seen.depths[i - 1]]
    fresh = math.log(61)
    assert len(places) == 2
    for i in places:
        assert seen.losses[i] - seen.losses[i - 1] < 0.5 * (fresh - seen.losses[i - 1]), "not back to the beginning"


@pytest.mark.parametrize("at", [3, 22, 30, 36], ids=["one layer", "before it grows", "two layers", "all layers"])
def test_a_resumed_run_ends_like_the_unbroken_one(at: int, tmp_path: Path) -> None:
    whole = run(GrowingDepth(0.7)).fit(stream())
    run(GrowingDepth(0.7), StopAt(at), Checkpoints(), folder=tmp_path).fit(stream())
    rest = run(GrowingDepth(0.7))
    rest.resume(tmp_path / f"step-{at:08d}")
    rest.fit(stream())
    assert not difference(weights_of(whole.model), weights_of(rest.model))


def test_a_rollback_to_before_it_grew_grows_again() -> None:
    whole = run(GrowingDepth(0.7)).fit(stream())

    class GoBack(Callback):
        def __init__(self) -> None:
            self.kept: Any = None

        def on_settled(self, trainer: Trainer) -> None:
            if trainer.state.step == 5:
                self.kept = copied(state_of(trainer))
            if trainer.state.step == 38 and self.kept:
                tree, self.kept = self.kept, None
                restore(trainer, tree)

    seen = Seen()
    back = run(GrowingDepth(0.7), GoBack(), seen, watchdog=False).fit(stream())
    assert seen.depths.count(1) > 20, "it was shallow twice"
    assert not difference(weights_of(whole.model), weights_of(back.model))


def test_a_model_that_was_trained_keeps_its_layers() -> None:
    gpt = run().fit(stream()).model
    before = copied(weights_of(gpt))
    seen = Seen()
    run(GrowingDepth(0.7), seen, StopAt(1), gpt=gpt, learning_rate=1e-12, weight_decay=0.0).fit(stream())
    assert seen.depths == [4]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(before.values(), weights_of(gpt).values(), strict=True))
    assert "trained before" in str(seen.events[0])


def test_a_loaded_model_counts_as_trained() -> None:
    gpt = GPT(SPEC)
    assert gpt.untrained
    gpt.load_state_dict(run().fit(stream()).model.state_dict())
    assert not gpt.untrained


class Stubborn(nn.Module):
    """Adds something whatever its weights are."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.down_proj = nn.Linear(spec.d_model, spec.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(x) + x.sin()


class Choosy(Stubborn):
    """Takes no short text."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] < 16:
            raise ValueError("too short")
        return self.down_proj(x)


register("feedforward", "stubborn_for_growth")(Stubborn)
register("feedforward", "choosy_for_growth")(Choosy)


@pytest.mark.parametrize("feedforward", ["stubborn_for_growth", "choosy_for_growth"])
def test_layers_that_cannot_be_made_to_wait_are_trained_from_the_beginning(feedforward: str) -> None:
    seen, gpt = Seen(), model(replace(SPEC, feedforward=feedforward))
    before = copied(weights_of(gpt))
    growing = GrowingDepth(0.7)
    trainer = run(growing, seen, gpt=gpt)
    growing.on_start(trainer)
    assert not difference(before, weights_of(gpt)), "what was tried has been put back"
    trainer.fit(stream())
    assert set(seen.depths) == {4}


KINDS = {
    "tied": replace(SPEC, tied_embeddings=True),
    "norms after the parts": replace(SPEC, norm_placement="post"),
    "parts side by side": replace(SPEC, parallel_blocks=True, biases="all"),
    "windows": replace(SPEC, window=4, full_layers=(1, 3)),
    "experts, but for the first layer": replace(SPEC, n_experts=4, n_experts_per_token=2, dense_layers=(0,)),
    "one layer": replace(SPEC, n_layers=1),
    "five layers": replace(SPEC, n_layers=5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_grows_under_the_watchdog(kind: str) -> None:
    seen = Seen()
    trainer = run(GrowingDepth(0.5), seen, gpt=model(KINDS[kind]), steps=100).fit(stream())
    assert {event.kind for event in seen.events} <= {"grown"}
    outputs = [
        p for name, p in trainer.model.named_parameters() if name.endswith(("o_proj.weight", "down_proj.weight"))
    ]
    assert seen.depths[-1] == len(trainer.model.layers)
    assert all(p.abs().sum() > 0 for p in outputs), "no layer is left behind"


def test_a_run_that_goes_on_without_it_trains_the_layers_that_waited(tmp_path: Path) -> None:
    run(GrowingDepth(0.7), StopAt(18), Checkpoints(), folder=tmp_path).fit(stream())
    seen = Seen()
    rest = run(seen)
    rest.resume(tmp_path / "step-00000018")
    rest.fit(stream())
    assert seen.depths[-1] == 4
    assert not {event.kind for event in seen.events} & {"went back", "gave up"}
    assert float(rest.model.layers[3].mlp.down_proj.weight.detach().norm()) > 0


def test_a_run_that_ends_while_layers_wait_says_so() -> None:
    seen = Seen()
    run(GrowingDepth(0.7), seen, StopAt(5)).fit(stream())
    assert "3 of 4 layers wait" in str(seen.events[-1])


def test_a_callback_that_is_used_again_looks_again() -> None:
    growing, seen = GrowingDepth(0.7), Seen()
    run(growing, StopAt(30)).fit(stream())
    trained = run().fit(stream()).model
    run(growing, seen, gpt=trained).fit(stream())
    assert set(seen.depths) == {4}


@pytest.mark.parametrize("told", [True, False], ids=["told", "control: not told"])
def test_the_watchdog_takes_growth_for_no_damage(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not told:
        monkeypatch.setattr(Trainer, "changed", Trainer.event)
    seen = Seen()
    with nullcontext() if told else pytest.raises(UserError, match="has jumped"):
        run(GrowingDepth(0.5), seen, steps=120, learning_rate=0.1, weight_decay=0.0).fit(stream())  # large weights
    assert ({e.kind for e in seen.events} == {"grown"}) == told


def test_an_average_begins_anew_when_the_model_has_grown() -> None:
    average, seen = WeightAverage(0.9), Seen()
    counts: list[int] = []

    class Count(Callback):
        def on_step(self, trainer: Trainer, result: StepResult) -> None:
            counts.append(average.count)

    run(GrowingDepth(0.7), average, Count(), seen).fit(stream())
    grown = [i for i in range(1, 40) if seen.depths[i] > seen.depths[i - 1]]
    assert [counts[i] for i in grown] == [1, 1]


@pytest.mark.parametrize("growing", [True, False], ids=["growing", "control"])
def test_a_budget_knows_that_deep_updates_take_longer(growing: bool) -> None:
    now = [0.0]
    steps: list[int] = []

    class Clock(Callback):
        def on_step(self, trainer: Trainer, result: StepResult) -> None:
            now[0] += 0.1 * (0.3 + 0.15 + depth_of(trainer))
            steps.append(trainer.settings.steps)

    class Unknown(GrowingDepth):
        def step_cost(self, trainer: Trainer, share: float) -> float:
            return 1.0

    grow = GrowingDepth(0.7) if growing else Unknown(0.7)
    budget = TimeBudget(100.0, clock=lambda: now[0])
    run(Clock(), grow, budget, steps=100).fit(stream())
    assert 95 <= now[0] <= 103
    spread = (max(steps[60:]) - min(steps[60:])) / steps[-1]
    assert (spread < 0.25) == growing, "the number of steps is foreseen, so that the schedule does not jump"


def test_a_search_for_the_rate_leaves_the_model_untrained() -> None:
    seen = Seen()
    gpt = model()
    trainer = run(RateFinder(steps=12), GrowingDepth(0.7), seen, gpt=gpt).fit(stream())
    assert sorted(set(seen.depths)) == [1, 2, 4]
    assert not trainer.model.untrained


def test_it_keeps_the_contract_of_a_callback() -> None:
    assert "resume" in check_callback("growing_depth")


@pytest.mark.parametrize("make", [lambda: GrowingDepth(1.0), lambda: GrowingDepth(least=0)])
def test_impossible_values_are_refused(make: Callable[[], GrowingDepth]) -> None:
    with pytest.raises(UserError, match="share must"):
        make()
