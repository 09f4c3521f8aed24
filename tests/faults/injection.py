"""Faults put into real runs on real text: each kind is a function that sabotages a trainer from a given step on.

The text is Python's own documentation; the model is small, has dropout, and learns. A run says whether the fault was
seen before the weights changed, and where the held-out loss ended.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import Tensor, nn

from bimo import GPT, ModelSpec, Tokenizer, Trainer, TrainingSettings
from bimo.core.batch import Batch
from bimo.training import Callback, Event, Fault, StepResult
from bimo.training.losses import cross_entropy
from bimo.training.streams import BatchStream

VOCAB, LENGTH, ROWS = 512, 64, 8
BLOCK = 2048  # ids; every tenth block of the text is measured on
STARTS = range(0, 150_000 - BLOCK, BLOCK)
MEASURED, TRAINED = STARTS[9::10], [start for start in STARTS if start not in STARTS[9::10]]
SPEC = ModelSpec(vocab_size=VOCAB, context_length=LENGTH, n_layers=2, n_heads=2, d_model=48, dropout=0.1)
SETTINGS = TrainingSettings(  # those that the bars were measured with
    steps=160, batch_size=ROWS, precision="fp32", device="cpu", threads=1, warmup_steps=20,
    optimizer="adamw", learning_rate=3e-3, schedule="cosine", min_learning_rate=1e-4,
)  # fmt: skip


@functools.cache
def ids() -> np.ndarray:
    """Python's language reference, half a million characters, as ids."""
    texts = list(topics.values())
    tokenizer = Tokenizer.train(texts, vocab_size=VOCAB)
    return np.concatenate([np.asarray(tokenizer.encode(text), np.int64) for text in texts])


def batch_of(places: list[int], length: int = LENGTH) -> Batch:
    rows = torch.from_numpy(np.stack([ids()[place : place + length + 1] for place in places]))
    return Batch(rows[:, :-1], rows[:, 1:], torch.ones(len(places), length))


class Text:
    """Batches of random places in nine blocks of ten; `spoil` may change the one of a number."""

    def __init__(self, seed: int, rows: int = ROWS, length: int = LENGTH) -> None:
        self.seed, self.rows, self.length = seed, rows, length
        self.spoil: Callable[[int, Batch], Batch] = lambda number, batch: batch

    def batch(self, number: int) -> Batch:
        rng = random.Random(f"{self.seed} {number}")
        places = [rng.choice(TRAINED) + rng.randrange(BLOCK - self.length - 1) for _ in range(self.rows)]
        return self.spoil(number, batch_of(places, self.length))

    def stream(self) -> BatchStream:
        return BatchStream(self.batch, 10**9, {"seed": self.seed})


@functools.cache
def held_out(length: int = LENGTH) -> Batch:
    return batch_of([start + n * length for start in MEASURED for n in range((BLOCK - 1) // length)][:256], length)


@dataclass
class Watch(Callback):
    """Notes faults, events and updates."""

    faults: list[tuple[int, str]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)

    def on_fault(self, trainer: Trainer, fault: Fault) -> bool:
        self.faults.append((trainer.state.step, fault.kind))
        return False

    def on_event(self, trainer: Trainer, event: Event) -> None:
        self.events.append(event)

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        self.updates.append(result.step)


@dataclass
class Run:
    """A trainer with its text, ready to be sabotaged.

    Attributes:
        at: Updates made when the fault strikes.
    """

    trainer: Trainer
    text: Text
    watch: Watch
    at: int
    rng: random.Random

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.trainer.model.named_parameters())

    def any_matrix(self) -> str:
        return self.rng.choice([name for name, p in self.parameters.items() if p.dim() == 2 and "layers" in name])


def make_run(
    seed: int, *, settings: TrainingSettings = SETTINGS, spec: ModelSpec = SPEC, callbacks: tuple[Callback, ...] = ()
) -> Run:
    model = GPT(spec)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    watch, text = Watch(), Text(seed, settings.batch_size, spec.context_length)
    trainer = Trainer(model, replace(settings, seed=seed), callbacks=[watch, *callbacks], loss=None)
    trainer.callbacks.insert(0, trainer.callbacks.pop(trainer.callbacks.index(watch)))  # hears of faults first
    rng = random.Random(seed)
    return Run(
        trainer, text, watch, rng.randrange(settings.steps // 4, max(settings.steps // 4 + 1, settings.steps - 40)), rng
    )


def final_loss(run: Run) -> float:
    """Train, and measure on held-out text."""
    run.trainer.fit(run.text.stream())
    batch = held_out(run.text.length)
    with torch.inference_mode():
        return cross_entropy(run.trainer.model(batch.ids), batch.targets, batch.weights).item()


@functools.cache
def clean_loss(seed: int) -> float:
    return final_loss(make_run(seed))


def seen_in_time(run: Run) -> bool:
    """Whether the fault was seen before the update that it would have spoilt."""
    return any(step == run.at for step, _ in run.watch.faults)


# What goes wrong ------------------------------------------------------------------------------------------------------


class Once(Callback):
    """Does something once, when so many updates were made."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.at, self.act, self.done = at, act, False

    def on_batch(self, trainer: Trainer, batch: Batch) -> None:
        if trainer.state.step == self.at and not self.done:
            self.done = True
            self.act()


def once(run: Run, act: Callable[[], None]) -> None:
    run.trainer.callbacks.insert(0, Once(run.at, act))


def gradient_once(run: Run, names: list[str], change: Callable[[Tensor], Tensor], times: int = 1) -> None:
    """The gradient of some weights is another one, in one backward pass (of one of the micro-batches)."""

    def act() -> None:
        for name in names:
            left = itertools.repeat(None, times)
            handles = []

            def hook(gradient: Tensor, left: itertools.repeat = left, handles: list = handles) -> Tensor:  # type: ignore[type-arg]
                if next(left, 0) is None:
                    return change(gradient)
                handles[0].remove()
                return gradient

            handles.append(run.parameters[name].register_hook(hook))

    once(run, act)


def batch_at(run: Run, change: Callable[[Batch], Batch]) -> None:
    """The batch that is read for the update after `at` is another one, whenever it is read."""
    run.text.spoil = lambda number, batch: change(batch) if number == run.at else batch


def loss_on_marked(run: Run, value: float) -> None:
    """A loss that cannot cope with one batch, however often it is tried."""
    marked = run.text.batch(run.at)

    def loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        mean = cross_entropy(logits, targets, weights)
        return mean * value if torch.equal(targets[0], marked.targets[0]) else mean

    run.trainer.loss = loss


def loss_once(run: Run, value: float) -> None:
    struck = []

    def loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        mean = cross_entropy(logits, targets, weights)
        if run.trainer.state.step == run.at and not struck:
            struck.append(True)
            return mean * value
        return mean

    run.trainer.loss = loss


def weights_once(run: Run, change: Callable[[Tensor], Tensor]) -> None:
    def act() -> None:
        with torch.no_grad():
            change(run.parameters[run.any_matrix()])

    once(run, act)


def moments_once(run: Run, moment: str, change: Callable[[Tensor], Tensor]) -> None:
    once(run, lambda: change(run.trainer.optimizer.state[run.parameters[run.any_matrix()]][moment]))


def out_of_memory(run: Run, most_rows: int) -> None:
    """From the step on, no more than some rows fit."""
    inner = run.trainer.loss_sum

    def loss_sum(batch: Batch) -> Tensor:
        if run.trainer.state.step >= run.at and batch.n_rows > most_rows:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 1 TB")
        return inner(batch)

    run.trainer.loss_sum = loss_sum  # type: ignore[method-assign]


def set_entry(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.view(-1)[tensor.numel() // 3].fill_(value)


def garbage(batch: Batch) -> Batch:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(VOCAB, (batch.n_rows, batch.ids.shape[1] + 1), generator=generator)
    return replace(batch, ids=rows[:, :-1], targets=rows[:, 1:])


def stuck(run: Run) -> None:
    """The stream gives the same batch 30 times."""
    first = run.text.batch(run.at)
    run.text.spoil = lambda number, batch: first if run.at <= number < run.at + 30 else batch


KINDS: dict[str, Callable[[Run], None]] = {
    "NaN loss, once": lambda run: loss_once(run, float("nan")),
    "infinite loss, of one batch": lambda run: loss_on_marked(run, float("inf")),
    "NaN loss, of one batch": lambda run: loss_on_marked(run, float("nan")),
    "NaN in a gradient, once": lambda run: gradient_once(run, [run.any_matrix()], lambda g: g * float("nan")),
    "infinity in a gradient, once": lambda run: gradient_once(run, [run.any_matrix()], lambda g: g / 0.0),
    "gradient x 10,000, once": lambda run: gradient_once(run, list(run.parameters), lambda g: g * 1e4),
    "gradient of a layer x 100,000, once": lambda run: gradient_once(run, [run.any_matrix()], lambda g: g * 1e5),
    "a layer without gradient, once": lambda run: gradient_once(
        run, [name for name in run.parameters if "layers.1.mlp" in name], lambda g: g * 0.0
    ),
    "no gradient at all, once": lambda run: gradient_once(run, list(run.parameters), lambda g: g * 0.0),
    "random ids": lambda run: batch_at(run, garbage),
    "an empty batch": lambda run: batch_at(run, lambda b: Batch(b.ids[:0], b.targets[:0], b.weights[:0])),
    "a batch without targets": lambda run: batch_at(run, lambda b: replace(b, weights=b.weights * 0)),
    "weights of NaN in a batch": lambda run: batch_at(run, lambda b: replace(b, weights=b.weights * float("nan"))),
    "ids outside the vocabulary": lambda run: batch_at(run, lambda b: replace(b, ids=b.ids + VOCAB)),
    "a weight becomes NaN": lambda run: weights_once(run, set_entry(float("nan"))),
    "a weight becomes 1e30": lambda run: weights_once(run, set_entry(1e30)),
    "a matrix becomes zero": lambda run: weights_once(run, torch.Tensor.zero_),
    "a matrix x 30": lambda run: weights_once(run, lambda w: w.mul_(30)),
    "a moment becomes infinite": lambda run: moments_once(run, "exp_avg", set_entry(float("inf"))),
    "a second moment becomes NaN": lambda run: moments_once(run, "exp_avg_sq", set_entry(float("nan"))),
    "a moment becomes zero": lambda run: moments_once(run, "exp_avg_sq", torch.Tensor.zero_),
    "memory for two rows only": lambda run: out_of_memory(run, 2),
}
