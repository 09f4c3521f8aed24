"""Plans: what is foretold is what happens, and what does not fit is not tried."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bimo.cli import main
from bimo.core.batch import Batch
from bimo.core.config import DataSettings, RunSettings, TrainingSettings
from bimo.core.spec import ModelSpec
from bimo.model.gpt import GPT
from bimo.planning import plan as plan_run
from bimo.planning import run_probe
from bimo.training import Trainer
from bimo.training.plan import Facts, advice, computed_plan, estimate, lines_of, measured_plan, seconds_by_part, sizes
from bimo.training.probe import Measured, Probe, ProbeEnded

SHAPE = {
    "--model.n_layers": "2", "--model.n_heads": "2", "--model.d_model": "64", "--model.context_length": "64",
    "--tokenizer.vocab_size": "400", "--training.batch_size": "16", "--training.steps": "8",
    "--training.evaluate_rows": "4", "--training.threads": "1", "--data.validation_share": "0.1",
}  # fmt: skip
FLAGS = [word for pair in SHAPE.items() for word in pair]
RUN = """
import json, sys
from bimo.cli import main
from bimo.core.machine import peak_memory
code = main(json.loads(sys.argv[1]))
print("PEAK", peak_memory())
sys.exit(code)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def plan(folder: Path) -> dict:  # type: ignore[type-arg]
    """What `bimo plan` writes."""
    assert main(["plan", str(folder / "text.txt"), "--output", str(folder / "plan.json"), *FLAGS]) == 0
    return json.loads((folder / "plan.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_plan_foretells_the_memory_of_the_run(folder: Path, plan: dict) -> None:  # type: ignore[type-arg]
    command = ["train", str(folder / "text.txt"), "--folder", str(folder), *FLAGS]
    done = subprocess.run([sys.executable, "-c", RUN, json.dumps(command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert plan["memory_bytes"] == pytest.approx(int(done.stdout.rpartition("PEAK ")[2]), rel=0.1)


def test_a_plan_has_every_part(plan: dict) -> None:  # type: ignore[type-arg]
    assert plan["fits"]
    assert plan["measured"]
    assert plan["parameters"] == GPT(ModelSpec(2 * 200, 64, 2, 64, 2)).n_parameters(), "of the recipe's tokenizer"
    assert plan["tokens"] == 8 * 16 * 64
    assert plan["total_seconds"] > 8 * plan["step_seconds"] > 0
    assert all(plan["seconds"][part] > 0 for part in ("start", "preparation of the text", "last measurement"))
    assert plan["memory"]["weights"] == pytest.approx(4 * plan["parameters"], rel=0.1), "a sample may give fewer ids"


def test_a_plan_leaves_nothing_behind(plan: dict, folder: Path) -> None:  # type: ignore[type-arg]
    assert plan["fits"]
    assert {path.name for path in folder.iterdir()} <= {"text.txt", "plan.json", "run"}


def test_what_is_wrong_with_the_text_is_told_by_the_probe(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a single document")
    settings = RunSettings(folder=str(tmp_path), data=DataSettings(paths=[str(tmp_path / "one.txt")]))
    (tmp_path / "asked.json").write_text(json.dumps({"settings": settings.to_dict(), "limit": 0}))
    run_probe(str(tmp_path))
    assert "no text" in json.loads((tmp_path / "told.json").read_text())["error"]["what"]


def test_a_model_larger_than_the_memory_is_computed_and_not_tried() -> None:
    large = RunSettings(model=ModelSpec(n_layers=200, d_model=8192, n_heads=64))
    found = plan_run(large)
    assert not found.measured
    assert not found.fits
    assert "lower model.d_model" in "\n".join(lines_of(found))


def test_what_fits_one_machine_does_not_fit_a_smaller_one() -> None:
    settings = RunSettings()
    own = sizes(settings.model)
    for available, fits in ((8e9, True), (0.5e9, False)):
        found = computed_plan(settings, own, Facts(available=int(available), flops=1e11), "cpu", "")
        assert found.fits is fits


def test_many_activations_are_mended_by_fewer_rows_at_once() -> None:
    memory = {"weights": 1e9, "activations and work": 9e9}
    assert "micro_batch_size" in advice(memory, Facts(available=int(1e9)), RunSettings())
    assert "d_model" in advice({"weights": 9e9, "activations and work": 1e9}, Facts(available=int(1e9)), RunSettings())


def measured(updates: int) -> Measured:
    return Measured(
        baseline=int(300e6), weights=int(100e6), optimizer=int(200e6), good_states=int(600e6), peak=int(2e9),
        step_s=1.0, updates=updates,
    )  # fmt: skip


def test_a_heap_that_few_updates_have_filled_gets_room_to_grow() -> None:
    settings, own = RunSettings(), sizes(RunSettings().model)
    few, many = (measured_plan(settings, own, Facts(), measured(updates)).total_memory for updates in (1, 50))
    assert many == pytest.approx(2e9), "what was seen"
    assert 2e9 < few < 2.2e9


def test_a_machine_with_less_memory_keeps_fewer_good_states() -> None:
    settings, own = RunSettings(), sizes(RunSettings().model)
    plans = [measured_plan(settings, own, Facts(available=int(a)), measured(50)) for a in (16e9, 2e9)]
    assert [plan.memory["good states in memory"] for plan in plans] == [6e8, 3e8]


def test_sizes_take_no_memory_and_are_right() -> None:
    spec = ModelSpec(n_layers=2, d_model=64, n_heads=2, vocab_size=512)
    assert sizes(spec).parameters == GPT(spec).n_parameters()
    assert sizes(ModelSpec(n_layers=100, d_model=16384, n_heads=128)).parameters > 3e11


def test_muon_keeps_one_moment_of_the_matrices() -> None:
    settings = RunSettings(training=TrainingSettings(optimizer="muon"))
    own = sizes(settings.model)
    muon = estimate(settings, own, "cpu")["optimizer"]
    adamw = estimate(replace(settings, training=TrainingSettings(optimizer="adamw")), own, "cpu")["optimizer"]
    assert muon == adamw - 4 * own.matrices


def test_activations_counted_from_shapes_are_those_that_autograd_keeps() -> None:
    spec = ModelSpec(n_layers=4, d_model=128, n_heads=4, vocab_size=512, context_length=128)
    model, kept = GPT(spec), {}
    from bimo.model import recompute

    def pack(tensor: torch.Tensor) -> object:
        packed = recompute._pack(tensor)
        if isinstance(packed, torch.Tensor):
            kept[packed.untyped_storage()._cdata] = packed.untyped_storage().nbytes()
        return packed

    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    ids = torch.randint(512, (4, 128))
    with torch.autograd.graph.saved_tensors_hooks(pack, recompute._unpack):
        result = model.hidden(ids)
    assert result.requires_grad
    found = sum(size for key, size in kept.items() if key not in own)
    assert found == pytest.approx(4 * 4 * 128 * sizes(spec).activations_per_token, rel=0.1)


def batches(rows: int = 8):  # type: ignore[no-untyped-def]
    while True:
        ids = torch.randint(64, (rows, 32))
        yield Batch(ids, ids, torch.ones(ids.shape))


def probed(seconds: float, layers: int = 2, **training: Any) -> Probe:
    settings = TrainingSettings(steps=1000, batch_size=8, micro_batch_size=1, threads=1, **training)
    probe = Probe(seconds)
    spec = ModelSpec(vocab_size=64, context_length=32, n_layers=layers, d_model=32, n_heads=2)
    trainer = Trainer(GPT(spec), settings, callbacks=[probe], evaluate_fn=lambda model: {"loss": 1.0})
    with contextlib.suppress(ProbeEnded):  # raised where evaluating would take too long
        trainer.fit(batches())
    return probe


def test_a_probe_with_little_time_trains_on_parts_of_batches_and_scales() -> None:
    probe = probed(0.0)
    shares = [share for share, _, _ in probe.steps]
    assert len(shares) == 2, "the least that says anything"
    assert shares[-1] == 1 / 8, "one micro-batch of eight"
    _, seconds, update = probe.steps[-1]
    assert probe.step_seconds() == pytest.approx(update + (seconds - update) * 8)


def test_a_probe_with_time_trains_on_whole_batches() -> None:
    probe = probed(60.0)  # it ends after 60 updates, within a second or so
    assert probe.steps[-1][0] == 1
    assert probe.finish().updates > 10


def test_good_states_of_a_long_run_are_there_in_the_probe() -> None:
    found = probed(60.0).finish()
    assert found.good_states >= 2 * (found.weights + found.optimizer), "two states, each with weights and moments"
    assert found.best_weights == found.weights, "and those of the best evaluation"
    assert found.evaluation_row_s > 0


def test_a_run_whose_depth_grows_is_measured_at_its_whole_depth() -> None:
    growing, plain = (probed(60.0, layers=8, callbacks=names).finish() for names in (["growing_depth"], []))
    assert growing.optimizer == plain.optimizer, "every layer has its moments"
    assert growing.mean_cost < 0.6 < plain.mean_cost == 1
    settings = RunSettings(training=TrainingSettings(steps=100))
    seconds = seconds_by_part(settings, Facts(), Measured(step_s=2.0, mean_cost=growing.mean_cost))
    assert seconds["updates"] == pytest.approx(200 * growing.mean_cost)


def test_time_adds_up() -> None:
    settings = RunSettings(training=TrainingSettings(steps=100, evaluate_every=40, evaluate_rows=10))
    facts = Facts(held_out=256 * 50, start_s=3.0, prepare_s=5.0)
    seconds = seconds_by_part(settings, facts, Measured(step_s=2.0, evaluation_row_s=0.1, checkpoint_s=1.0))
    assert seconds["updates"] == 200
    assert seconds["evaluations"] == pytest.approx(3 * 10 * 0.1), "after 40, 80 and 100 updates"
    assert seconds["last measurement"] == pytest.approx(50 * 0.1)
    assert seconds["checkpoints"] == 1


@pytest.mark.parametrize("amount", ["8 gigs", "-1GB", "GB"])
def test_a_strange_amount_of_memory_is_refused(amount: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"--memory={amount}"]) == 2
    assert "no amount of memory" in capsys.readouterr().err


def test_a_strange_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--device", "h10"]) == 2
    assert "did you mean 'h100'" in capsys.readouterr().err


def test_a_device_is_planned_from_its_data_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--device", "h100", "--gpus", "8"]) == 0
    assert "shard 8" in capsys.readouterr().out
