"""Faults in real runs: seen before the weights change, mended, and the run ends where a clean one ends."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults.injection import (
    KINDS,
    SETTINGS,
    SPEC,
    VOCAB,
    Once,
    Run,
    Text,
    Watch,
    batch_at,
    clean_loss,
    final_loss,
    garbage,
    gradient_once,
    loss_on_marked,
    make_run,
    seen_in_time,
    weights_once,
)

from bimo import GPT, ModelSpec, Trainer, UserError
from bimo.core.batch import Batch
from bimo.training import Callback, Checkpoints, FlightRecorder, Watchdog
from bimo.training.watchdog.normal import Normal

SHORT = replace(SETTINGS, steps=70, warmup_steps=5)
QUICK = ("NaN loss, of one batch", "random ids", "a weight becomes 1e30", "memory for two rows only")


def struck(kind: str, seed: int = 0) -> tuple[Run, float]:
    run = make_run(seed, settings=SHORT)
    run.at = 45
    KINDS[kind](run)
    return run, final_loss(run)


@pytest.mark.parametrize("kind", QUICK)
def test_a_fault_is_seen_in_time_and_the_run_goes_on(kind: str) -> None:
    run, loss = struck(kind)
    assert seen_in_time(run), f"seen before the update: {run.watch.faults}"
    assert run.trainer.state.step == SHORT.steps, "the run came to its end"
    assert math.isfinite(loss), "with a model that can be used"


@pytest.mark.slow
def test_fifteen_kinds_of_fault_and_more_are_seen_in_time_and_end_like_clean_runs() -> None:
    seen, near, total, missed = 0, 0, 0, []
    for kind, seed in itertools.product(KINDS, range(10)):
        run = make_run(seed)
        KINDS[kind](run)
        loss = final_loss(run)
        in_time, close = seen_in_time(run), abs(loss / clean_loss(seed) - 1) <= 0.01
        total, seen, near = total + 1, seen + in_time, near + close
        if not (in_time and close):
            missed.append((kind, seed, in_time, round(loss / clean_loss(seed), 4)))
    assert seen >= 0.98 * total, f"{seen} of {total} seen in time: {missed}"
    assert near >= 0.95 * total, f"{near} of {total} within 1 % of the clean loss: {missed}"


def clean_run(number: int) -> Run:
    """A run of some size and rate, like people start them."""
    rng = random.Random(number)
    heads, rate = rng.choice([1, 2, 4]), rng.choice([1e-4, 5e-4, 1e-3, 3e-3, 1e-2, 3e-2])
    spec = ModelSpec(
        vocab_size=VOCAB,
        context_length=rng.choice([16, 32, 64, 128]),
        n_layers=rng.choice([1, 2, 3]),
        n_heads=heads,
        d_model=heads * rng.choice([16, 24]),
        dropout=rng.choice([0.0, 0.1]),
        feedforward=rng.choice(["swiglu", "relu"]),
    )
    settings = replace(
        SETTINGS,
        steps=rng.choice([100, 200, 300]),
        batch_size=rng.choice([1, 2, 4, 8, 16]),
        learning_rate=rate,
        min_learning_rate=rate / 10,
        schedule=rng.choice(["cosine", "wsd", "constant"]),
        warmup_steps=rng.choice([0, 5, 20]),
        grad_clip=rng.choice([0.0, 1.0]),
    )
    return make_run(1000 + number, settings=settings, spec=spec)


@pytest.mark.slow
def test_fifty_clean_runs_of_all_sizes_and_rates_raise_no_alarm() -> None:
    alarms = {}
    for number in range(50):
        run = clean_run(number)
        final_loss(run)
        if run.watch.faults or run.watch.events:
            alarms[number] = [str(event) for event in run.watch.events] or run.watch.faults
    assert not alarms, "normal training is left alone"


def test_without_the_watchdog_the_first_fault_ends_the_run() -> None:
    """The control."""
    run = make_run(0, settings=replace(SHORT, watchdog=False))
    run.at = 5
    loss_on_marked(run, float("nan"))
    with pytest.raises(UserError, match="step 6"):
        final_loss(run)


@pytest.mark.parametrize("watchdog", [True, False])
def test_random_ids_reach_the_weights_only_without_the_watchdog(watchdog: bool) -> None:
    run = make_run(0, settings=replace(SHORT, steps=47, watchdog=watchdog))
    clean = make_run(0, settings=replace(SHORT, steps=46, watchdog=False))
    run.at = 45
    batch_at(run, garbage)
    clean.text.spoil = lambda number, batch: clean.text.batch(46) if number == 45 else batch
    for one in (run, clean):
        one.trainer.settings = replace(one.trainer.settings, steps=46, schedule="constant")
        one.trainer.model.train()
        final_loss(one)
    same = all(torch.equal(a, b) for a, b in zip(run.parameters.values(), clean.parameters.values(), strict=True))
    assert same == watchdog, "the 46th update is made of the next batch, as if the bad one had never been read"


def test_a_step_that_is_tried_again_gives_the_same_weights_as_a_clean_run() -> None:
    clean, run = make_run(3, settings=SHORT), make_run(3, settings=SHORT)
    run.at = 30
    gradient_once(run, [run.any_matrix()], lambda g: g * float("nan"))
    final_loss(clean), final_loss(run)
    assert [event.kind for event in run.watch.events] == ["trying again", "passed"], "one fault of the machine"
    for a, b in zip(clean.parameters.values(), run.parameters.values(), strict=True):
        assert torch.equal(a, b), "nothing is lost, dropout included"


def test_weights_that_were_damaged_come_back_bit_for_bit() -> None:
    clean, run = make_run(4, settings=SHORT), make_run(4, settings=SHORT)
    run.at = 60
    weights_once(run, lambda w: w.mul_(1e6))
    final_loss(clean), final_loss(run)
    assert [event.kind for event in run.watch.events] == ["went back"], "to the state of step 50"
    for a, b in zip(clean.parameters.values(), run.parameters.values(), strict=True):
        assert torch.equal(a, b), "the steps since then were made again, exactly"


def test_a_fault_that_comes_back_lowers_the_rate() -> None:
    run = make_run(0, settings=SHORT)

    class Careless(Callback):
        """Ruins the weights at step 40 as long as the rate is the planned one."""

        def on_batch(self, trainer: Trainer, batch: Batch) -> None:
            if trainer.state.step == 40 and trainer.state.rate_scale == 1:
                with torch.no_grad():
                    trainer.model.layers[0].mlp.up_proj.weight.mul_(1e6)

    run.trainer.callbacks.insert(0, Careless())
    final_loss(run)
    assert [event.kind for event in run.watch.events] == ["went back", "went back"], "twice"
    assert run.trainer.state.rate_scale == 0.5, "the second time with half the rate"


def test_it_gives_up_with_a_report_after_a_bounded_number_of_tries() -> None:
    run = make_run(0, settings=SHORT)
    run.trainer.loss = lambda logits, targets, weights: logits.sum() * float("nan")
    before = {name: p.clone() for name, p in run.parameters.items()}
    with pytest.raises(UserError, match=r"gives up at step 1: .*non-finite loss \(") as error:
        final_loss(run)
    assert "The weights are those of the last good state" in str(error.value), "so says the mend"
    assert len(run.watch.faults) < 30, "bounded"
    assert all(torch.equal(before[name], p) for name, p in run.parameters.items()), "and so it is"


def test_a_batch_is_set_aside_with_its_text(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path / "set_aside", decode=lambda ids: f"text of {len(ids)} ids")
    run = make_run(0, settings=replace(SHORT, steps=50), callbacks=(watchdog,))
    run.at = 45
    batch_at(run, garbage)
    final_loss(run)
    event = next(event for event in run.watch.events if event.kind == "batch set aside")
    assert event.facts["texts"][0] == "text of 64 ids", "the event shows the beginning"
    record = json.loads((tmp_path / event.facts["file"]).read_text(encoding="utf-8"))
    assert record["ids"] == run.text.batch(45).ids.tolist(), "the file holds all of it"
    assert "loss spike" in record["kind"], "and why"


def test_the_text_of_a_batch_ends_with_its_last_trained_token() -> None:
    run = make_run(0, settings=SHORT)
    batch = run.text.batch(0)
    batch.weights[0, 40:] = 0.0  # padding
    texts = Watchdog(decode=lambda ids: f"{len(ids)} ids")._texts(run.trainer, batch)
    assert texts[:2] == ["40 ids", "64 ids"], "nobody has to read padding"


def test_a_change_of_the_data_is_accepted_after_a_few_batches() -> None:
    run = make_run(0, settings=replace(SHORT, steps=90))
    swap = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(0))
    run.text.spoil = lambda number, b: replace(b, ids=swap[b.ids], targets=swap[b.targets]) if number >= 45 else b
    final_loss(run)
    kinds = [event.kind for event in run.watch.events]
    assert "other data" in kinds, "another language from here on"
    assert kinds.count("batch set aside") <= 4, "a few batches were lost, not all"
    assert run.trainer.state.step == 90, "and the run goes on"


def test_a_stream_that_gives_the_same_batch_again_and_again_is_passed_over() -> None:
    run = make_run(0, settings=SHORT)
    first = run.text.batch(30)
    run.text.spoil = lambda number, batch: first if 30 <= number < 60 else batch
    final_loss(run)
    assert [event.kind for event in run.watch.events] == ["repeated batch"], "told once"
    assert run.trainer.data.next_batch == SHORT.steps + 28, "two repeats were trained on, the others not"


def test_a_training_set_of_one_batch_is_no_fault() -> None:
    run = make_run(0, settings=replace(SHORT, steps=30))
    run.trainer.fit([run.text.batch(0)])
    assert not run.watch.faults, "it is all there is"


def test_memory_for_one_row_too_few_ends_the_run_with_advice() -> None:
    run = make_run(0, settings=SHORT)
    run.at = 3

    def loss_sum(batch: Batch) -> torch.Tensor:
        raise MemoryError("no memory")

    run.trainer.loss_sum = loss_sum  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"one row alone does not fit into memory.*Lower"):
        final_loss(run)


def test_overfitting_ends_the_run_with_the_best_weights() -> None:
    run = make_run(0, settings=replace(SHORT, steps=400, evaluate_every=5, learning_rate=1e-2))
    few = [run.text.batch(n) for n in range(2)]
    held_out = run.text.batch(5)
    figures = []

    def evaluate(_: object) -> dict[str, float]:
        figures.append(run.trainer.loss_of(held_out))
        return {"loss": figures[-1]}

    run.trainer.evaluate_fn = evaluate
    run.trainer.fit(few)
    assert run.trainer.stop_requested == "overfitting", "the held-out loss rises while the other falls"
    assert run.trainer.state.step < 400, "before the end"
    run.trainer.model.eval()
    assert run.trainer.loss_of(held_out) == pytest.approx(min(figures), abs=1e-5), "with the best weights"


def test_a_step_that_hangs_is_told_with_its_place() -> None:
    watchdog = Watchdog(stall_s=0.2)
    run = make_run(0, settings=replace(SHORT, steps=6), callbacks=(watchdog,))
    run.at = 4

    def hang_here() -> None:
        time.sleep(1.5)  # the hanging itself

    run.trainer.callbacks.insert(0, Once(4, hang_here))
    final_loss(run)
    stalls = [event for event in run.watch.events if event.kind == "stall"]
    assert len(stalls) == 1, "told once"
    assert "hang_here" in stalls[0].facts["what"], "with the function in which it hangs"


def test_without_memory_for_good_states_it_goes_back_to_the_disk(tmp_path: Path) -> None:
    watchdog = Watchdog()
    watchdog.good.most = 0
    run = make_run(0, settings=replace(SHORT, checkpoint_every=20), callbacks=(watchdog, Checkpoints()))
    run.trainer.folder = tmp_path
    run.at = 50
    weights_once(run, lambda w: w.mul_(1e6))
    final_loss(run)
    assert "back from step 50 to step 40" in str(run.watch.events[0]), "the newest checkpoint"


def test_an_update_with_no_gradient_from_the_start_is_not_called_dead() -> None:
    """A zero-initialised output lets no gradient through at first."""
    model = GPT(SPEC)
    for layer in model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    watch = Watch()
    Trainer(model, replace(SHORT, steps=25), callbacks=[watch]).fit(Text(0).stream())
    assert not watch.faults, "zero is normal then"


def test_the_flight_recorder_keeps_the_last_steps_on_disk_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "flight.jsonl"
    settings = replace(SETTINGS, steps=45, batch_size=1)
    recorder = FlightRecorder(path, kept=20)
    run = make_run(0, settings=settings, spec=replace(SPEC, context_length=16), callbacks=(recorder,))
    sizes = []

    class Look(Callback):
        def on_settled(self, trainer: Trainer) -> None:
            lines = path.read_text(encoding="utf-8").splitlines()
            assert json.loads(lines[-1])["step"] == trainer.state.step, "also the newest one"
            sizes.append(len(lines))

    run.trainer.callbacks.append(Look())
    final_loss(run)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines[-20:]] == list(range(26, 46)), "at least the last twenty"
    assert max(sizes) < 40, "and less than twice as many"
    assert {"loss", "gradient_norm", "rate", "seconds", "batch", "layers"} <= lines[-1].keys(), "with their figures"
    assert FlightRecorder().kept == 200, "by default"


def test_heavy_tails_raise_the_bar_and_trends_do_not() -> None:
    rng = random.Random(0)
    normal = Normal(sigmas=10.0, least=0.5)
    for step in range(200):
        normal.add(6.0 - step / 50 + rng.gauss(0, 0.05))
    assert not normal.stands_out(normal.level + 0.45), "less than the least"
    assert normal.stands_out(normal.level + 0.8), "a falling loss does not hide a spike"
    for _ in range(30):
        normal.add(2.0 + 0.6 * (rng.random() < 0.2))
    assert not normal.stands_out(2.0 + 1.0), "when such documents come now and then"
