"""A run in a process of its own, that tests kill at any moment.

The run has all that has a state: dropout, accumulation, chance in a callback (Python's and NumPy's), an average of the
weights, early stopping, the watchdog, evaluation. It resumes from the newest whole checkpoint and ends by writing a
digest of everything to `FOLDER/end.json`.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # every optimizer imports it: once, in the process that the others are copied from

from bimo import GPT, ModelSpec, Trainer, TrainingSettings
from bimo.core.artifacts import RunDirectory
from bimo.core.batch import Batch
from bimo.training import Callback, Checkpoints, EarlyStopping, MetricsFile, StepResult, resuming
from bimo.training.randomness import random_state, seed_everything, undisturbed
from bimo.training.streams import BatchStream

STEPS = 60
SPEC = ModelSpec(vocab_size=97, context_length=16, n_layers=2, d_model=32, n_heads=2, dropout=0.1)


def batch(number: int) -> Batch:
    ids = torch.randint(97, (6, 17), generator=torch.Generator().manual_seed(number))
    return Batch(ids[:, :-1], ids[:, 1:], torch.ones(6, 16))


class Average(Callback):
    """An average of the weights, moved by chance out of Python and NumPy."""

    def __init__(self) -> None:
        self.mean: dict[str, torch.Tensor] = {}

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        share = 0.05 * (random.random() + np.random.random())
        for name, parameter in trainer.model.named_parameters():
            mean = self.mean.setdefault(name, parameter.detach().clone())
            mean.lerp_(parameter.detach(), share)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.mean)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = {name: tensor.clone() for name, tensor in state.items()}


def digest(tensors: Iterator[torch.Tensor]) -> str:
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.detach().numpy().tobytes())
    return whole.hexdigest()


def forgetting(part: str) -> None:
    """Leave a part out of the state that is saved: the control."""
    complete = resuming.state_of

    def incomplete(trainer: Trainer, without: Callback | None = None) -> dict[str, Any]:
        tree = complete(trainer, without)
        fresh = complete(Trainer(GPT(SPEC), trainer.settings))
        with undisturbed():
            seed_everything(999)
            fresh["random"] = random_state()
        key, _, inner = part.partition(".")
        if inner:
            tree[key] = {**tree[key], inner: {} if key == "callbacks" else fresh[key][inner]}
        else:
            tree[key] = {**tree[key], "next_batch": 0} if key == "data" else fresh[key]
        return tree

    sys.modules["bimo.training.trainer"].state_of = incomplete  # type: ignore[attr-defined]


def main(folder: Path, leave_out: str = "") -> None:
    torch.set_num_threads(1)
    if leave_out:
        forgetting(leave_out)
    run = RunDirectory(folder)
    settings = TrainingSettings(
        steps=STEPS, batch_size=6, micro_batch_size=4, warmup_steps=5, evaluate_every=10, checkpoint_every=4,
        log_every=1, precision="fp32", device="cpu", threads=1, schedule="cosine", learning_rate=3e-3,
    )  # fmt: skip
    model = GPT(SPEC)
    model.reset_parameters(torch.Generator().manual_seed(0))
    average, stopping = Average(), EarlyStopping(patience=1000)
    held_out = batch(10**6)
    trainer = Trainer(
        model,
        settings,
        callbacks=[average, stopping, MetricsFile(run.metrics), Checkpoints()],
        evaluate_fn=lambda _: {"loss": trainer.loss_of(held_out)},
        folder=run.checkpoints,
    )
    newest, damaged = run.latest_checkpoint()
    if newest is not None:
        trainer.resume(newest)
    print("begin", trainer.state.step, *damaged, flush=True)
    trainer.fit(BatchStream(batch, 10**9, {"data": "numbers"}))
    if trainer.interrupted:
        return
    metrics = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    timed = ("seconds", "tokens_per_second")
    optimizer = [value for p in model.parameters() for value in trainer.optimizer.state[p].values()]
    end = {
        "model": digest(iter(model.parameters())),
        "optimizer": digest(iter(optimizer)),
        "average": digest(iter(average.mean.values())),
        "stopping": [stopping.best, stopping.waited],
        "metrics": [{k: v for k, v in line.items() if k not in timed} for line in metrics],
        "watchdog": trainer.callbacks[0].state_dict()["senses"],
    }
    (folder / "end.json").write_text(json.dumps(end, sort_keys=True), encoding="utf-8")


def child(folder: Path, leave_out: str = "") -> None:
    """The run, with its output in a file."""
    with (folder / "output.txt").open("w", encoding="utf-8") as sys.stdout:
        main(folder, leave_out)
