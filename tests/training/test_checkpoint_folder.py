"""A folder of checkpoints with damaged, unfinished and newer ones in it: a run goes on and loses nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bimo import GPT, ModelSpec, Trainer, TrainingSettings, UserError
from bimo.core.artifacts import MANIFEST, read_jsonl, verify
from bimo.core.batch import Batch
from bimo.training import Callback, Checkpoints, Event
from bimo.training.callbacks import MetricsFile
from bimo.training.faults import Fault

SPEC = ModelSpec(vocab_size=97, context_length=16, n_layers=1, d_model=32, n_heads=2)
SETTINGS = TrainingSettings(
    steps=4, batch_size=2, warmup_steps=1, checkpoint_every=2, keep_checkpoints=1, precision="fp32", device="cpu"
)


def batches(count: int = 3) -> list[Batch]:
    ids = torch.randint(97, (count, 2, 17), generator=torch.Generator().manual_seed(0))
    return [Batch(rows[:, :-1], rows[:, 1:], torch.ones(2, 16)) for rows in ids]


def trainer(folder: Path, *callbacks: Callback, steps: int = 4) -> Trainer:
    model = GPT(SPEC)
    model.reset_parameters(torch.Generator().manual_seed(0))
    settings = replace(SETTINGS, steps=steps, threads=1)
    return Trainer(model, settings, callbacks=[Checkpoints(), *callbacks], folder=folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), Path.unlink])
def test_a_checkpoint_without_its_manifest_is_replaced(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    trainer(tmp_path, steps=2).fit(batches())
    damage(tmp_path / "step-00000002" / MANIFEST)
    trainer(tmp_path, steps=2).fit(batches())
    assert verify(tmp_path / "step-00000002") == [], "the run that came to the same step again could save"


def test_a_folder_with_things_of_a_user_is_never_replaced(tmp_path: Path) -> None:
    """The control of the test above."""
    place = tmp_path / "step-00000002"
    place.mkdir()
    (place / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="holds other things"):
        trainer(tmp_path, steps=2).fit(batches())
    assert names(place) == ["notes.txt"], "and is still there"


def test_a_damaged_checkpoint_of_a_later_step_does_not_crowd_out_a_whole_one(tmp_path: Path) -> None:
    trainer(tmp_path).fit(batches())
    (tmp_path / "step-00000004").rename(tmp_path / "step-00000090")
    (tmp_path / "step-00000090" / "model.safetensors").write_bytes(b"")
    trainer(tmp_path).fit(batches())
    assert names(tmp_path) == ["step-00000004", "step-00000090"], "one is kept, and it is the one that was written"


def test_what_a_kill_during_a_save_has_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".step-00000002.99999.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(bytes(1000))
    trainer(tmp_path).fit(batches())
    assert names(tmp_path) == ["step-00000004"], "nothing fills the disk, kill after kill"


class Events(Callback):
    def __init__(self) -> None:
        self.kinds: list[str] = []

    def on_event(self, trainer: Trainer, event: Event) -> None:
        self.kinds.append(event.kind)


def test_data_that_cannot_be_set_to_their_place_are_told_on_resume(tmp_path: Path) -> None:
    for given, told in ((iter(batches(9)), ["data not resumed"]), (batches(3), [])):
        folder = tmp_path / str(len(told))
        trainer(folder, steps=2).fit(batches(3))
        events = Events()
        again = trainer(folder, events)
        again.resume(folder / "step-00000002")
        again.fit(given)
        assert [kind for kind in events.kinds if kind != "other settings"] == told, "only where it is so"


def test_a_second_fit_that_has_nothing_to_do_says_so(tmp_path: Path) -> None:
    events = Events()
    one = trainer(tmp_path, events)
    one.fit(batches())
    assert events.kinds == [], "the first had"
    one.fit(batches())
    assert events.kinds == ["nothing to do"], "all steps were made before"
    one.fit(batches(), epochs=1)
    assert one.state.step == 7, "with epochs it trains on"


def test_metrics_of_steps_that_are_made_again_stand_once(tmp_path: Path) -> None:
    class Ruin(Callback):
        done = False

        def on_gradient(self, trainer: Trainer, gradient: object) -> None:
            if trainer.state.step == 30 and not self.done:
                self.done = True
                raise Fault("damaged weights", "a test says so")

    path = tmp_path / "metrics.jsonl"
    run = trainer(tmp_path / "checkpoints", Ruin(), MetricsFile(path), steps=40)
    run.settings = replace(run.settings, log_every=1)
    events = Events()
    run.callbacks.append(events)
    run.fit(batches())
    lines = [line["step"] for line in read_jsonl(path)]
    assert events.kinds == ["went back"], "thirty steps in, to the twenty-fifth"
    assert lines == list(range(1, 41)), "the file reads like an unbroken run's"


def test_an_evaluation_without_memory_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    def evaluate(_: object) -> dict[str, float]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 TB")

    events = Events()
    run = trainer(tmp_path, events)
    run.evaluate_fn = evaluate
    run.fit(batches())
    assert run.state.step == 4, "training is worth more than a look"
    assert events.kinds == ["out of memory"], "and it is told"


def test_another_error_of_an_evaluation_is_raised(tmp_path: Path) -> None:
    """The control of the test above."""

    def evaluate(_: object) -> dict[str, float]:
        raise RuntimeError("another")

    run = trainer(tmp_path)
    run.evaluate_fn = evaluate
    with pytest.raises(RuntimeError, match="another"):
        run.fit(batches())


def test_an_evaluation_reads_no_more_rows_at_once_than_training_does(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.settings = replace(run.settings, micro_batch_size=1, evaluate_every=0)
    seen: list[int] = []
    run.model.embed_tokens.register_forward_hook(lambda module, given, result: seen.append(given[0].shape[0]))
    ids = torch.randint(97, (6, 12))
    run.fit(ids, validation=torch.randint(97, (6, 12)))
    assert set(seen) == {1}, "with gradients or without"


def test_a_forward_pass_has_no_more_rows_than_the_batch(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.settings = replace(run.settings, micro_batch_size=64)
    assert run.micro_rows(batches()[0]) == 2, "so that half of it, when memory is used up, is one"
