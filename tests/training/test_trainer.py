"""One loop: exact accumulation, exact resume, and a stop before a NaN reaches the weights."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bimo import GPT, LM, ModelSpec, Trainer, TrainingSettings, UserError
from bimo.core.batch import Batch
from bimo.training import Callback, Checkpoints, EarlyStopping, StepResult, TimeBudget, cross_entropy
from bimo.training.losses import Loss
from bimo.training.schedules import learning_rate

SPEC = ModelSpec(vocab_size=97, context_length=16, n_layers=2, d_model=32, n_heads=2, dropout=0.1)


def batches(count: int, rows: int = 8, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(97, (rows, 17), generator=generator)
        weights = (torch.rand(rows, 16, generator=generator) < 0.7).float()
        weights[0] = 0.0  # rows of different counts of trained tokens, one of none
        made.append(Batch(ids=ids[:, :-1], targets=ids[:, 1:], weights=weights))
    return made


def model(spec: ModelSpec = SPEC) -> GPT:
    gpt = GPT(spec)
    gpt.reset_parameters(torch.Generator().manual_seed(0))
    return gpt


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.seen.append(result.loss)


def test_accumulating_eight_equals_a_batch_of_eight(settings: TrainingSettings) -> None:
    spec = replace(SPEC, dropout=0.0)
    weights = []
    for micro in (8, 1, 3):
        torch.manual_seed(0)
        trainer = Trainer(model(spec), replace(settings, steps=3, micro_batch_size=micro))
        trainer.fit(batches(3))
        weights.append(torch.cat([p.flatten() for p in trainer.model.parameters()]))
    assert (weights[0] - weights[1]).abs().max() < 1e-6, "one row at a time must give the same weights"
    assert (weights[0] - weights[2]).abs().max() < 1e-6, "also when the rows do not divide evenly"


def test_mean_of_means_would_not_be_exact(settings: TrainingSettings) -> None:
    """The control: a loss that divides per micro-batch by a constant of its own gives other gradients."""
    spec = replace(SPEC, dropout=0.0)
    norms = []
    for micro in (8, 1):
        trainer = Trainer(
            model(spec), replace(settings, steps=1, micro_batch_size=micro), loss=lambda z, t, w: z.mean()
        )
        recorder = Losses()
        trainer.callbacks.append(recorder)
        trainer.fit(batches(1))
        norms.append(recorder.seen[0])
    exact = Trainer(model(spec), replace(settings, steps=1), loss=cross_entropy)
    recorder = Losses()
    exact.callbacks.append(recorder)
    exact.fit(batches(1))
    assert recorder.seen[0] != pytest.approx(norms[0]), "a custom loss is used as given"


def test_custom_cross_entropy_equals_the_chunked_default(settings: TrainingSettings) -> None:
    seen = []
    for loss in (None, cross_entropy):
        recorder = Losses()
        trainer = Trainer(
            model(replace(SPEC, dropout=0.0)), replace(settings, steps=4), loss=loss, callbacks=[recorder]
        )
        trainer.fit(batches(4, rows=4)[:4])
        seen.append(recorder.seen)
    assert seen[0] == pytest.approx(seen[1], abs=1e-5), "same losses step by step"


def test_resumed_run_ends_bit_for_bit_like_the_unbroken_one(settings: TrainingSettings, tmp_path: Path) -> None:
    settings = replace(settings, steps=8, micro_batch_size=3)

    class Stream(list):  # type: ignore[type-arg]
        """Batches that know where they are, as the loader does."""

        place = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            while True:
                self.place += 1
                yield self[(self.place - 1) % len(self)]

        def state_dict(self) -> dict[str, int]:
            return {"place": self.place}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.place = state["place"]

    torch.manual_seed(5)
    whole = Trainer(model(), settings).fit(Stream(batches(5)))
    torch.manual_seed(5)
    stopper = type(
        "Stop", (Callback,), {"on_step": lambda self, t, r: setattr(t, "stop_requested", "test" * (r.step == 3))}
    )()
    first = Trainer(model(), settings, callbacks=[stopper, Checkpoints()], folder=tmp_path).fit(Stream(batches(5)))
    assert first.state.step == 3, "the first part stops at step 3"
    torch.manual_seed(99)
    second = Trainer(model(), settings)
    second.resume(tmp_path / "step-00000003")
    second.fit(Stream(batches(5)))
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), "every weight must be the same, dropout included"


def test_a_run_that_goes_on_with_other_settings_says_which(settings: TrainingSettings, tmp_path: Path) -> None:
    Trainer(model(), replace(settings, steps=1), callbacks=[Checkpoints()], folder=tmp_path).fit(batches(1))
    events: list[str] = []
    listener = type("Listener", (Callback,), {"on_event": lambda self, trainer, event: events.append(str(event))})()
    Trainer(model(), replace(settings, steps=1, beta1=0.8), callbacks=[listener]).resume(tmp_path / "step-00000001")
    assert events == ["step 1: other settings: this run goes on otherwise than it began: beta1 is 0.8, was 0.9"], (
        "what was changed, and nothing else"
    )


def test_a_damaged_checkpoint_is_refused(settings: TrainingSettings, tmp_path: Path) -> None:
    Trainer(model(), replace(settings, steps=1), callbacks=[Checkpoints()], folder=tmp_path).fit(batches(1))
    weights = tmp_path / "step-00000001" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="has changed since it was written"):
        Trainer(model(), settings).resume(tmp_path / "step-00000001")


def test_a_checkpoint_of_another_shape_is_refused(settings: TrainingSettings, tmp_path: Path) -> None:
    Trainer(model(), replace(settings, steps=1), callbacks=[Checkpoints()], folder=tmp_path).fit(batches(1))
    with pytest.raises(UserError, match="the model has"):
        Trainer(model(replace(SPEC, d_model=64)), settings).resume(tmp_path / "step-00000001")


def test_nan_stops_before_the_weights_change(settings: TrainingSettings) -> None:
    gpt = model()
    before = [p.clone() for p in gpt.parameters()]
    trainer = Trainer(gpt, settings, loss=lambda logits, targets, weights: logits.sum() * float("nan"))
    with pytest.raises(UserError, match="step 1"):
        trainer.fit(batches(1))
    assert all(torch.equal(a, b) for a, b in zip(before, gpt.parameters(), strict=True)), "weights untouched"


@pytest.mark.parametrize("loss", [lambda z, t, w: z, lambda z, t, w: torch.tensor(1.0)])
def test_a_loss_that_cannot_train_is_refused(settings: TrainingSettings, loss: Loss) -> None:
    with pytest.raises(UserError, match="the loss must be one number that depends on the logits"):
        Trainer(model(), settings, loss=loss).fit(batches(1))


def test_text_without_a_tokenizer_is_refused(settings: TrainingSettings) -> None:
    with pytest.raises(UserError, match="gives str and not Batch"):
        Trainer(model(), settings).fit(["text"])


def test_callbacks_hear_of_an_error_before_it_is_raised(settings: TrainingSettings) -> None:
    heard = []
    listener = type("Listener", (Callback,), {"on_error": lambda self, trainer: heard.append(trainer.state.step)})()
    with pytest.raises(ZeroDivisionError):
        Trainer(model(), settings, loss=lambda z, t, w: z.sum() * (1 // 0), callbacks=[listener]).fit(batches(1))
    assert heard == [0], "so that a live view can give the terminal back"


def test_a_batch_without_targets_is_an_error(settings: TrainingSettings) -> None:
    batch = batches(1)[0]
    empty = Batch(ids=batch.ids, targets=batch.targets, weights=torch.zeros_like(batch.weights))
    with pytest.raises(UserError, match="no token to train on"):
        Trainer(model(), settings).fit([empty])


def test_ctrl_c_ends_after_the_current_step_and_saves(settings: TrainingSettings, tmp_path: Path) -> None:
    interrupt = type("Interrupt", (Callback,), {"on_step": lambda self, t, r: os.kill(os.getpid(), signal.SIGINT)})()
    before = signal.getsignal(signal.SIGINT)  # a shell starts what runs behind it with the signal ignored
    trainer = Trainer(model(), settings, callbacks=[interrupt, Checkpoints()], folder=tmp_path).fit(batches(2))
    assert trainer.stop_requested == "SIGINT", "the signal is named"
    assert (tmp_path / "step-00000001" / "manifest.json").exists(), "the step that was done is saved"
    assert signal.getsignal(signal.SIGINT) is before, "handlers are given back"


def test_only_the_newest_checkpoints_stay(settings: TrainingSettings, tmp_path: Path) -> None:
    settings = replace(settings, steps=5, checkpoint_every=1, keep_checkpoints=2)
    Trainer(model(), settings, callbacks=[Checkpoints()], folder=tmp_path).fit(batches(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000005"], "the last two"


def test_early_stopping_stops_when_nothing_improves(settings: TrainingSettings) -> None:
    figures = iter([3.0, 2.0, 2.5, 2.5, 1.0])
    trainer = Trainer(
        model(),
        replace(settings, steps=50, evaluate_every=1),
        callbacks=[EarlyStopping(patience=2)],
        evaluate_fn=lambda _: {"bits_per_byte": next(figures)},
    ).fit(batches(2))
    assert trainer.state.step == 4, "two evaluations without an improvement end the run"


@pytest.mark.parametrize("pace_s", [0.3, 1.0])
def test_a_time_budget_ends_in_time_at_any_pace_with_the_rate_decayed(
    settings: TrainingSettings, pace_s: float
) -> None:
    now = [0.0]
    rates = []

    class Clock(Callback):
        def on_step(self, trainer: Trainer, result: StepResult) -> None:
            now[0] += pace_s
            rates.append(result.learning_rate)

    settings = replace(settings, steps=200, min_learning_rate=0.0)
    budget = TimeBudget(60.0, clock=lambda: now[0])
    Trainer(model(), settings, callbacks=[Clock(), budget]).fit(batches(2))
    assert 55 <= now[0] <= 62, "it ends when the time is over, not when the first guess of steps is"
    assert rates[-1] < 0.05 * max(rates), "and the schedule has come to its end"


def test_matrices_decay_and_vectors_do_not(settings: TrainingSettings) -> None:
    groups = Trainer(model(replace(SPEC, biases="all")), replace(settings, optimizer="adamw")).optimizer.param_groups
    assert {g["weight_decay"] > 0: {p.dim() for p in g["params"]} for g in groups} == {True: {2}, False: {1}}, (
        "by shape"
    )


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedules_rise_and_end_where_they_should(schedule: str) -> None:
    settings = TrainingSettings(
        steps=100, warmup_steps=10, schedule=schedule, learning_rate=1.0, min_learning_rate=0.1, decay_share=0.2
    )  # type: ignore[arg-type]
    rates = [learning_rate(step, settings) for step in range(101)]
    assert 0 < rates[0] < rates[5] < rates[10] == 1.0, "linear warm-up to the peak"
    assert rates[100] == pytest.approx(1.0 if schedule == "constant" else 0.1), "the end of the schedule"
    if schedule == "wsd":
        assert rates[79] == 1.0 > rates[90], "stable until the last fifth"


def test_training_learns(lm: LM, texts: list[str]) -> None:
    batch = lm.batches(texts[:16], None, batch_size=16, seed=0)[0]
    with torch.inference_mode():
        loss = cross_entropy(lm.model(batch.ids), batch.targets, batch.weights)
    assert loss < 4.5, f"ln V is {torch.tensor(400.0).log():.2f}, a trained model must know more: {loss:.2f}"


def test_a_users_loss_sees_logits_targets_and_weights(settings: TrainingSettings) -> None:
    shapes = []

    def loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        shapes.append((logits.shape, targets.shape, weights.shape))
        return cross_entropy(logits, targets, weights)

    Trainer(model(), replace(settings, steps=1, micro_batch_size=8), loss=loss).fit(batches(2))
    assert shapes == [((8, 16, 97), (8, 16), (8, 16))], "(B, T, V), (B, T), (B, T)"
