"""Short runs of a small GPT, with dropout and accumulation: do callbacks and optimizers keep their promises in them?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from bimo.core.batch import Batch
from bimo.core.config import TrainingSettings
from bimo.model.gpt import GPT
from bimo.testing.subjects import SMALL
from bimo.training import Callback, Checkpoints, StepResult, Trainer, cross_entropy
from bimo.training.optimizers import OptimizerFactory
from bimo.training.randomness import undisturbed
from bimo.training.state import model_state

STEPS, HALF = 6, 3
SETTINGS = TrainingSettings(
    steps=STEPS,
    micro_batch_size=3,
    learning_rate=3e-3,
    min_learning_rate=3e-4,
    warmup_steps=2,
    evaluate_every=HALF,
    sample_every=HALF,
    checkpoint_every=0,
    log_every=1,
    watchdog=False,  # it would mend what a promise must see
    precision="fp32",
    device="cpu",
    threads=1,
)


class StopAtHalf(Callback):
    """Ends a run in the middle, as a signal would."""

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if result.step == HALF:
            trainer.stop_requested = "half of the steps are made"


@dataclass(frozen=True, slots=True)
class Run:
    """A run that can be made whole, or in two parts.

    Attributes:
        folder: Where checkpoints go.
        optimizer: None: the settings' own.
    """

    folder: Path
    optimizer: OptimizerFactory | str | None = None

    def whole(self, callbacks: Sequence[Callback], steps: int = STEPS) -> Trainer:
        """All steps at once."""
        return self.trainer(callbacks, steps).fit(batches())

    def half(self, callbacks: Sequence[Callback]) -> Path:
        """The first steps; the checkpoint that they leave."""
        trainer = self.trainer([*callbacks, StopAtHalf(), Checkpoints()])
        trainer.fit(batches())
        return self.folder / f"step-{trainer.state.step:08d}"

    def other_half(self, callbacks: Sequence[Callback], checkpoint: Path) -> Trainer:
        """The steps that are left, in a trainer of their own."""
        trainer = self.trainer(callbacks)
        trainer.resume(checkpoint)
        return trainer.fit(batches())

    def trainer(self, callbacks: Sequence[Callback], steps: int = STEPS) -> Trainer:
        """A trainer at its beginning; the same each time."""
        model = GPT(replace(SMALL, dropout=0.1))
        model.reset_parameters(torch.Generator().manual_seed(0))
        return Trainer(
            model,
            replace(SETTINGS, steps=steps),
            optimizer=self.optimizer,
            callbacks=callbacks,
            evaluate_fn=_evaluate,
            generate_fn=lambda _model: "a text",
            folder=self.folder,
        )


@contextmanager
def a_run(optimizer: OptimizerFactory | str | None = None) -> Iterator[Run]:
    """A run in a folder of its own that is gone afterwards; chance and threads outside are left alone."""
    threads = torch.get_num_threads()
    try:
        with TemporaryDirectory() as folder, undisturbed():
            yield Run(Path(folder), optimizer)
    finally:
        torch.set_num_threads(threads)


def batches() -> list[Batch]:
    """Three batches of random ids; the last row of each is a prompt that is not trained."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(SMALL.vocab_size, (3, 4, 13), generator=generator)
    weights = torch.ones(4, 12)
    weights[-1, :6] = 0
    return [Batch(ids=ids[:, :-1], targets=ids[:, 1:], weights=weights.clone()) for ids in table]


def difference(one: Any, other: Any, path: str = "") -> str:
    """Where two trees of plain values and tensors differ, bit for bit; '' when they do not. Tuples count as lists."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return path or "its keys"
        return next((d for key in one if (d := difference(one[key], other[key], f"{path}/{key}"))), "")
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return path or "its length"
        pairs = enumerate(zip(one, other, strict=True))
        return next((d for n, (a, b) in pairs if (d := difference(a, b, f"{path}/{n}"))), "")
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        equal = one.dtype == other.dtype and one.shape == other.shape and torch.allclose(one, other, 0, 0, True)
    else:
        equal = type(one) is type(other) and (one == other or one != one)
    return "" if equal else path or "its value"


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters and buffers."""
    return {name: tensor.clone() for name, tensor in model_state(model).items()}


def _evaluate(model: nn.Module) -> dict[str, float]:
    batch = batches()[0]
    with torch.inference_mode():
        return {"loss": cross_entropy(model(batch.ids), batch.targets, batch.weights).item()}
