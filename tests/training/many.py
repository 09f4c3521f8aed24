"""Runs of many processes, for tests: every mode of parallelism in one start of the processes.

Each process writes what it has seen to `FOLDER/RANK.json`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bimo import GPT, ModelSpec, Trainer, TrainingSettings
from bimo.core.batch import Batch
from bimo.core.config import ParallelSettings
from bimo.core.errors import UserError
from bimo.training import (
    ActivationStatistics,
    Callback,
    Checkpoints,
    Event,
    GradientStatistics,
    StepResult,
    TimeBudget,
    backward,
    launch,
)
from bimo.training.parallel import reshard
from bimo.training.parts import is_part, local
from bimo.training.resuming import state_of
from bimo.training.state import model_state
from bimo.training.streams import BatchStream
from bimo.training.team import Team

SPEC = ModelSpec(vocab_size=97, context_length=16, n_layers=2, d_model=32, n_heads=4, n_kv_heads=2)
SETTINGS = TrainingSettings(
    steps=8, batch_size=6, micro_batch_size=2, optimizer="adamw", learning_rate=3e-3, warmup_steps=2, evaluate_every=4,
    checkpoint_every=4, keep_checkpoints=9, precision="fp32", device="cpu", threads=1,
    callbacks=["growing_depth(share=0.4)"],
)  # fmt: skip
MODES = {
    2: {"data": ParallelSettings(), "shard": ParallelSettings(shard=0), "tensor": ParallelSettings(tensor=2)},
    4: {
        "data": ParallelSettings(),
        "shard": ParallelSettings(shard=0),
        "hybrid": ParallelSettings(data=2, shard=2),
        "tensor and data": ParallelSettings(tensor=2),
        "tensor and shard": ParallelSettings(shard=2, tensor=2),
    },
}
RUNS = {  # mode and optimizer; two processes leave out what four of them, in a slow test, show too
    2: ["data adamw", "shard adamw", "shard muon", "tensor adamw"],
    4: [f"{mode} {optimizer}" for mode in MODES[4] for optimizer in ("adamw", "muon")],
}


def batch(number: int) -> Batch:
    """Six rows of different counts of trained tokens, one of none."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(97, (6, 17), generator=generator)
    weights = (torch.rand(6, 16, generator=generator) < 0.7).float()
    weights[number % 6] = 0.0
    return Batch(ids[:, :-1], ids[:, 1:], weights)


def stream() -> BatchStream:
    return BatchStream(batch, 10**9, {"data": "numbers"})


class Seen(Callback):
    """What a run shows of itself."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.tokens: list[int] = []
        self.figures: list[float] = []
        self.events: list[str] = []
        self.depths: list[int] = []

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.losses.append(result.loss)
        self.norms.append(result.gradient_norm)
        self.tokens.append(result.tokens)

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.figures.append(metrics["loss"])

    def on_event(self, trainer: Trainer, event: Event) -> None:
        if event.kind != "grown":
            self.events.append(event.kind)

    def on_changed(self, trainer: Trainer) -> None:
        self.depths.append(len(list(trainer.model.blocks())))


def model(spec: ModelSpec = SPEC) -> GPT:
    gpt = GPT(spec)
    gpt.reset_parameters(torch.Generator().manual_seed(0))
    return gpt


def trainer(
    folder: Path | None = None, *callbacks: Callback, spec: ModelSpec = SPEC, **changes: Any
) -> tuple[Trainer, Seen]:
    """A run at its beginning."""
    seen, held_out = Seen(), batch(10**6)
    made = Trainer(
        model(spec),
        replace(SETTINGS, **changes),
        callbacks=[seen, *callbacks, *([Checkpoints()] if folder else [])],
        evaluate_fn=lambda _: {"loss": made.loss_of(made.team.share(held_out))},
        folder=folder,
    )
    return made, seen


def digest(state: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: tensor.double().flatten().tolist() for name, tensor in state.items()}


class OwnClock(TimeBudget):
    """A time whose clock runs faster in each further process."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(30.0, clock=lambda: self.now)

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.now += 1.0 + 0.4 * trainer.team.rank
        super().on_step(trainer, result)


Job = Callable[[Team, Path], dict[str, Any]]


def _child(job: Job, rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)})
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    try:
        result = job(Team(rank, size), folder)
    except BaseException:
        result = {"error": traceback.format_exc()}
    (folder / f"{rank}.json").write_text(json.dumps(result), encoding="utf-8")
    os._exit(0 if "error" not in result else 1)  # a process that waits for one that has failed does not wait longer


def together(job: Job, size: int, folder: Path) -> list[dict[str, Any]]:
    """What a job gives in each of some processes that work together."""
    context = multiprocessing.get_context("forkserver")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "store").unlink(missing_ok=True)
    context.set_forkserver_preload(["torch._dynamo", "torch.distributed.tensor.parallel", "bimo.lm"])
    processes = [context.Process(target=_child, args=(job, rank, size, folder)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    results = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(size)]
    errors = [f"process {rank}: {result['error']}" for rank, result in enumerate(results) if "error" in result]
    assert not errors, "\n".join(errors)
    return results


def kept(made: Trainer) -> dict[str, list[float]]:
    """Every number of the weights and of what the optimizer keeps of them, by name; in the first process only."""
    reshard(made.model)
    state = state_of(made)
    named = {**state["model"]}
    for name, moments in state["optimizer"]["state"].items():
        named |= {f"{name}/{key}": value for key, value in moments.items()}
    whole = {name: tensor.full_tensor() if is_part(tensor) else tensor for name, tensor in named.items()}
    return digest(whole) if made.team.first else {}


def not_added_up(model: GPT, _: Team) -> None:
    """Each process keeps its own gradient; where it had nothing to train on, zeros."""
    layers = [parameter for layer in model.blocks() for parameter in layer.parameters()]
    for parameter in (*layers, model.embed_tokens.weight, model.norm.weight):
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def every_mode(_: Team, folder: Path) -> dict[str, Any]:
    """Losses, norms, figures and final weights of a run in every mode, with each optimizer."""
    found: dict[str, Any] = {}
    for run in RUNS[dist.get_world_size()]:
        name, optimizer = run.rsplit(maxsplit=1)
        with launch.joined(MODES[dist.get_world_size()][name], "cpu"):
            made, seen = trainer(folder / name if optimizer == "adamw" else None, optimizer=optimizer)
            made.fit(stream())
            found[run] = {**vars(seen), "kept": kept(made)}
    size = dist.get_world_size()
    for name, looks in {"shard": GradientStatistics(), "tensor": ActivationStatistics()}.items():
        if name in MODES[size]:
            with launch.joined(MODES[size][name], "cpu"):
                looks.everywhere = True  # else the other processes would wait for the first one
                try:
                    trainer(None, looks)[0].fit(stream())
                except UserError as error:
                    found[f"refused {name}"] = str(error)
    with launch.joined(None, "cpu"):
        made, seen = trainer(None, OwnClock(), steps=20)
        made.fit(stream())
        found["clocks"] = {**vars(seen), "steps": made.state.step, "weights": digest(model_state(made.model))}
    with launch.joined(None, "cpu"):
        made, seen = trainer()
        backward.parallel.reduce_gradients = not_added_up  # type: ignore[attr-defined]  # the control
        made.fit(stream())
        found["without a sum"] = vars(seen)
    return found


def resized(_: Team, folder: Path) -> dict[str, Any]:
    """Runs that go on from checkpoints of other numbers of processes, and from their own."""
    found: dict[str, Any] = {}
    for name in ("shard", "tensor"):
        for source in ("alone", name):
            with launch.joined(MODES[2][name], "cpu"):
                made, seen = trainer()
                made.resume(folder / source / "step-00000004")
                then = kept(made)
                made.fit(stream())
                found[f"{source} to {name}"] = {"then": then, "end": kept(made), "losses": seen.losses}
    with launch.joined(MODES[2]["data"], "cpu"):
        spec = replace(SPEC, dropout=0.1)
        ends = []
        for checkpoint in (None, folder / "dropout" / "step-00000004"):
            made, seen = trainer(folder / "dropout" if checkpoint is None else None, spec=spec)
            if checkpoint is not None:
                made.resume(checkpoint)
            made.fit(stream())
            ends.append([seen.losses[-4:], kept(made)])
        found["dropout"] = ends
    return found


class Trouble(Callback):
    """Something goes wrong once, in the second process only."""

    def __init__(self, kind: str) -> None:
        self.kind, self.done = kind, False

    def due(self, made: Trainer) -> bool:
        """Whether it is time."""
        now = not self.done and dist.get_rank() == 1 and made.state.step == 5
        self.done = self.done or now
        return now

    def on_start(self, trainer: Trainer) -> None:
        inner = trainer.loss_sum

        def loss_sum(part: Batch) -> Tensor:
            if self.kind == "memory" and self.due(trainer):
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return inner(part) * (float("nan") if self.kind == "nan" and self.due(trainer) else 1.0)

        trainer.loss_sum = loss_sum  # type: ignore[method-assign]

    def on_batch(self, trainer: Trainer, batch: Batch) -> Batch | None:
        return replace(batch, ids=batch.ids + 97) if self.kind == "ids" and self.due(trainer) else None

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if self.kind == "signal" and self.due(trainer):
            os.kill(os.getpid(), signal.SIGTERM)
        if self.kind == "damage" and self.due(trainer):
            local(next(trainer.model.parameters())).fill_(float("nan"))


def troubled(_: Team, folder: Path) -> dict[str, Any]:
    """Runs in which something happens to one process."""
    found: dict[str, Any] = {}
    for kind, mode in (
        ("nan", "shard"),
        ("memory", "data"),
        ("ids", "tensor"),
        ("signal", "shard"),
        ("damage", "shard"),
    ):
        with launch.joined(MODES[2][mode], "cpu"):
            made, seen = trainer(None, Trouble(kind), watchdog=True)
            made.callbacks[0].snapshot_every = 2  # type: ignore[attr-defined]  # the watchdog
            made.fit(stream())
            found[kind] = {**vars(seen), "kept": kept(made), "step": made.state.step, "rows": made.state.most_rows}
            found[kind]["interrupted"] = made.interrupted
    return found
