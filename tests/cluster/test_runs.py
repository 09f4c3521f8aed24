"""A run on Ray: two workers that really run, one that is killed, and the same model in the end."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from bimo.cluster import training
from bimo.cluster.training import train_on
from bimo.core.artifacts import read_jsonl
from bimo.core.config import DataSettings, ModelSpec, RunSettings, TokenizerSettings, TrainingSettings
from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, import_modules
from bimo.preparing import open_text
from bimo.recipes import train

QUIET = Console(quiet=True)
# What a worker sees is written down by a callback of the user's; the second worker can be told to die once.
PARTS = """
import os
import signal
from pathlib import Path

import torch.distributed as dist

import bimo


@bimo.register("callback", "witness")
class Witness(bimo.Callback):
    def __init__(self, folder, dies_at=0):
        self.folder, self.dies_at = Path(folder), dies_at

    def on_step(self, trainer, result):
        rank, died = dist.get_rank(), self.folder / "died"
        (self.folder / f"worker-{rank}-{os.getpid()}").write_text(str(dist.get_world_size()))
        if rank == 1 and result.step == self.dies_at and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def recipe(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    (tmp_path / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "seen").mkdir()
    monkeypatch.setattr(REGISTRIES["callback"], "registered", {})  # what the file registers is gone afterwards
    import_modules([str(tmp_path / "parts.py")])
    return RunSettings(
        folder=str(tmp_path / "runs"),
        modules=[str(tmp_path / "parts.py")],
        data=DataSettings(paths=[str(tmp_path / "text.txt")], validation_share=0.1, check=False),
        tokenizer=TokenizerSettings(vocab_size=400),
        model=ModelSpec(n_layers=1, n_heads=2, d_model=32, context_length=32),
        training=TrainingSettings(
            steps=20,
            batch_size=4,
            warmup_steps=2,
            optimizer="adamw",
            checkpoint_every=5,
            evaluate_every=10,
            precision="fp32",
            threads=1,
        ),
    )


def witnessed(recipe: RunSettings, name: str, dies_at: int = 0) -> RunSettings:
    folder = Path(recipe.folder).parent / "seen" / name
    folder.mkdir()
    callback = f"witness(folder='{folder}', dies_at={dies_at})"
    return replace(recipe, name=name, training=replace(recipe.training, callbacks=[callback]))


def workers(recipe: RunSettings) -> list[Path]:
    return sorted((Path(recipe.folder).parent / "seen" / recipe.name).glob("worker-*"))


def weights(recipe: RunSettings) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.folder) / recipe.name / "model" / "model.safetensors")


@pytest.mark.slow
def test_two_workers_train_the_model_of_one_process_and_a_killed_one_changes_nothing(
    ray: Any, recipe: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(recipe, name="alone", modules=[])
    train(alone, open_text(alone.data, Path(recipe.folder)), QUIET)
    both = witnessed(recipe, "both")
    figures = train_on(both, QUIET, cluster="local", workers=2)
    assert [path.read_text() for path in workers(both)] == ["2", "2"], "two processes that know of each other"
    assert {path.name.split("-")[1] for path in workers(both)} == {"0", "1"}
    last = [line for line in read_jsonl(Path(recipe.folder) / "alone" / "metrics.jsonl") if line.get("final")][-1]
    assert figures["valid_loss"] == pytest.approx(last["valid_loss"], abs=1e-4)
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(weights(both)[name], tensor, atol=1e-4, rtol=1e-3, msg=name)

    killed = witnessed(recipe, "killed", dies_at=12)
    train_on(killed, QUIET, cluster="local", workers=2)
    assert len(workers(killed)) == 4, "the two of before and two new ones"
    events = read_jsonl(Path(recipe.folder) / "killed" / "events.jsonl")
    assert [e["step"] for e in events if e["event"] == "resumed"] == [10], "it went on from the last checkpoint"
    for name, tensor in weights(both).items():
        assert torch.equal(weights(killed)[name], tensor), f"{name}: a killed worker changes nothing"

    monkeypatch.setattr(training, "RESTARTS", 0)
    with pytest.raises(UserError):
        train_on(witnessed(recipe, "control", dies_at=12), QUIET, cluster="local", workers=2)


@pytest.mark.slow
def test_a_mistake_of_the_recipe_is_one_sentence_and_is_not_tried_again(ray: Any, recipe: RunSettings) -> None:
    wrong = replace(recipe, name="wrong", training=replace(recipe.training, batch_size=1))
    begun = time.monotonic()
    with pytest.raises(UserError) as raised:
        train_on(replace(wrong, modules=[str(Path(recipe.folder).parent / "none.py")]), QUIET, cluster="local")
    assert "none.py" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert time.monotonic() - begun < 60


@pytest.mark.slow
def test_tune_on_ray_tries_choices_at_once_and_one_machine_goes_on_with_it(
    ray: Any, recipe: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bimo.cluster.tuning import tune_on
    from bimo.training.tune import Effort
    from bimo.tuning import tune

    plain = replace(recipe, name="tuned", modules=[])
    best = tune_on(plain, Effort(10**4, trials=4, seeds=2, trial_s=1.0), QUIET, cluster="local", workers=2)
    assert best.exists()
    trials = json.loads((best.parent / "tune.json").read_text())["trials"]
    assert len(trials) == 4
    assert trials[0]["choice"]["learning_rate"] == plain.training.learning_rate, "the recipe is among them"
    threads = replace(plain, training=replace(plain.training, threads=1))
    again = tune(threads, Effort(10**4, trials=5, seeds=2, trial_s=1.0), QUIET)
    assert len(json.loads((again.parent / "tune.json").read_text())["trials"]) == 5, "the same file"
