"""Trainer: the one training loop.

`Trainer.step` is the textbook: batch, forward, loss, backward, check, clip, update. `Trainer.fit` repeats it and calls
the callbacks. Accumulation is exact: gradients are sums over tokens, divided by the count of the whole batch. The model
is a plain module; what the loop needs from siblings (evaluation, samples) is passed in as a function.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bimo.core import machine
from bimo.core.batch import Batch
from bimo.core.config import TrainingSettings
from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES
from bimo.model.packed import unpack
from bimo.model.recompute import recompute
from bimo.training import state as checkpoint
from bimo.training.callbacks import Callback, StepResult
from bimo.training.losses import Loss, chunked_cross_entropy
from bimo.training.optimizers import adamw
from bimo.training.schedules import learning_rate

_CPU_MICRO_TOKENS = 2048  # measured: half the memory of 4096 at the same speed; 1024 costs 4 %, 512 costs 9 %


@runtime_checkable
class TextModel(Protocol):
    """A model that brings its tokenizer (`bimo.LM`): it turns what a user has into batches."""

    @property
    def model(self) -> nn.Module: ...

    def batches(self, inputs: Any, targets: Any, *, batch_size: int, seed: int) -> Sequence[Batch]:
        """One epoch of batches."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """A stream of batches that knows where it is."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Trainer:
    """Trains a GPT.

    Args:
        model: A GPT, or an LM (a GPT with its tokenizer), which also takes text.
        settings: Steps, rates, sizes.
        loss: (logits, targets, weights) → mean loss; None: the one that the settings name.
        optimizer: Made for the model's parameters; None: AdamW.
        callbacks: Called in this order.
        evaluate_fn: Model → figures, called every `evaluate_every` steps and at the end.
        generate_fn: Model → sample text, called every `sample_every` steps.
        folder: Where checkpoints go; None: none are written.
    """

    def __init__(
        self,
        model: nn.Module | TextModel,
        settings: TrainingSettings | None = None,
        *,
        loss: Loss | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        callbacks: Iterable[Callback] = (),
        evaluate_fn: Callable[[nn.Module], dict[str, float]] | None = None,
        generate_fn: Callable[[nn.Module], str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.settings = settings or TrainingSettings()
        self.text_model = model if isinstance(model, TextModel) else None
        self.device = machine.choose_device(self.settings.device).value
        self.precision = machine.choose_precision(self.device, self.settings.precision).value
        plain: Any = model.model if isinstance(model, TextModel) else model
        self.model: Any = unpack(plain).to(self.device)
        self.loss: Loss | None = loss
        if loss is None and self.settings.loss != "cross_entropy":
            self.loss = REGISTRIES["loss"].get(self.settings.loss)
        self.optimizer = optimizer or adamw(self.model, self.settings)
        self.callbacks = list(callbacks)
        self.evaluate_fn, self.generate_fn = evaluate_fn, generate_fn
        self.folder = folder
        self.state = checkpoint.TrainingState()
        self.data_state: dict[str, Any] = {}
        self.data: Any = None
        self.stop_requested = ""

    def fit(self, data: Any, targets: Any = None, *, epochs: int | None = None) -> Trainer:
        """Train until `settings.steps` updates, or for a number of epochs.

        Args:
            data: An iterable of `Batch` (endless, or repeated as needed); with an LM also texts, see `LM.fit`.
            targets: What the model should say to each text of `data`; only with an LM.
            epochs: Passes over data that has a length; None: `settings.steps` updates.
        """
        if self.text_model is not None and not _is_batches(data):
            settings = self.settings
            data = self.text_model.batches(data, targets, batch_size=settings.batch_size, seed=settings.seed)
        self.data = data
        if epochs is not None:
            self.settings = replace(self.settings, steps=epochs * _length(data))
        if self.data_state and isinstance(data, Resumable):
            data.load_state_dict(self.data_state)
        self.prepare_machine()
        self._tell("on_start")
        try:
            with self._stop_on_signal():
                batches = _repeat(data)
                while self.state.step < self.settings.steps and not self.stop_requested:
                    self._tell("on_step", self.step(batches))
                    self._look()
        except BaseException:  # whatever it is, it is raised on
            self._tell("on_error")
            raise
        self._tell("on_end")
        self.model.eval()
        return self

    def prepare_machine(self) -> None:
        """Settle threads and memory for the steps to come, and put the model into training mode."""
        machine.set_threads(self.settings.threads)
        if self.device == "cpu":
            machine.keep_memory_on_heap()
        self.model.train()

    def step(self, batches: Iterator[Batch]) -> StepResult:
        """One update of the weights."""
        start = time.perf_counter()
        rate = learning_rate(self.state.step, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = next(batches)
        trained_tokens = batch.weight_sum()
        if trained_tokens == 0:
            raise UserError(
                f"the batch of step {self.state.step + 1} has no token to train on: every weight is 0",
                mend="Check that the data has targets.",
            )
        loss = torch.zeros((), device=self.device)
        for part in batch.split(self.micro_rows(batch)):
            if part.weight_sum() == 0:  # a mean over no tokens is 0 / 0
                continue
            with recompute():
                part_loss = self.loss_sum(part.to(self.device)) / trained_tokens
            part_loss.backward()
            loss += part_loss.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip or math.inf)
        self._check_finite(loss, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - start
        self.state.step += 1
        self.state.tokens += batch.n_tokens
        self.state.seconds += seconds
        return StepResult(self.state.step, loss.item(), norm.item(), rate, batch.n_tokens, seconds)

    def micro_rows(self, batch: Batch) -> int:
        """Rows of a forward pass: the setting, or what keeps the activations small without slowing the products."""
        if self.settings.micro_batch_size:
            return self.settings.micro_batch_size
        if self.device == "cpu":
            return max(1, _CPU_MICRO_TOKENS // batch.ids.shape[1])
        return batch.n_rows

    def loss_sum(self, batch: Batch) -> Tensor:
        """Loss of a (micro-)batch, summed over its trained tokens."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"):
            hidden = self.model.hidden(batch.ids, positions=batch.positions, documents=batch.documents)  # (B, T, C)
            if self.loss is None:
                head, softcap = self.model.lm_head.weight, self.model.spec.logit_softcap
                return chunked_cross_entropy(hidden, head, batch.targets, batch.weights, softcap)
            mean = self.loss(self.model.logits(hidden), batch.targets, batch.weights)
            if mean.dim() != 0 or not mean.requires_grad:
                raise UserError(
                    f"the loss must be one number that depends on the logits; it has shape {tuple(mean.shape)} and "
                    f"{'a' if mean.requires_grad else 'no'} gradient",
                    mend="Return the mean over trained tokens, computed from the logits.",
                )
            return mean * batch.weights.sum()

    def save_checkpoint(self) -> Path | None:
        """Write `checkpoints/step-N` and drop the oldest beyond `keep_checkpoints`."""
        if self.folder is None:
            return None
        target = self.folder / f"step-{self.state.step:08d}"
        if not target.exists():
            data = self.data.state_dict() if isinstance(self.data, Resumable) else {}
            checkpoint.save(target, self.model, self.optimizer, self.state, data)
            checkpoint.keep_newest(self.folder, self.settings.keep_checkpoints)
        return target

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint; call it before `fit`."""
        self.state, self.data_state = checkpoint.load(folder, self.model, self.optimizer)

    def evaluate(self) -> dict[str, float]:
        """Run `evaluate_fn` and tell the callbacks."""
        assert self.evaluate_fn is not None, "evaluate needs an evaluate_fn"
        was_training = self.model.training
        self.model.eval()
        metrics = self.evaluate_fn(self.model)
        self.model.train(was_training)
        self._tell("on_evaluation", metrics)
        return metrics

    def _look(self) -> None:
        """Evaluate and sample where the settings say so."""
        step, settings = self.state.step, self.settings
        if self.evaluate_fn and settings.evaluate_every and step % settings.evaluate_every == 0:
            self.evaluate()
        if self.generate_fn and settings.sample_every and step % settings.sample_every == 0:
            self.model.eval()
            self._tell("on_sample", self.generate_fn(self.model))
            self.model.train()

    def _check_finite(self, loss: Tensor, norm: Tensor) -> None:
        """Stop before a NaN or an infinity reaches the weights."""
        if not torch.isfinite(loss + norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise UserError(
                f"loss {loss.item()} and gradient norm {norm.item()} at step {self.state.step + 1}; the weights are "
                "those of the step before",
                mend="Lower the learning rate, or look at the batch; the last checkpoint is good.",
            )

    def _tell(self, event: str, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)

    @contextlib.contextmanager
    def _stop_on_signal(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run after the current step; a second Ctrl-C ends it at once."""

        def request(number: int, _frame: object) -> None:
            self.stop_requested = signal.Signals(number).name
            signal.signal(signal.SIGINT, signal.default_int_handler)

        try:
            before = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: its owner handles signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _is_batches(data: Any) -> bool:
    """Whether this is already a stream of Batch and not something to be tokenised."""
    return isinstance(data, Resumable) or (isinstance(data, Sequence) and len(data) > 0 and isinstance(data[0], Batch))


def _length(data: Any) -> int:
    if not hasattr(data, "__len__"):
        raise UserError("epochs needs data with a length", mend="Give settings.steps instead.")
    return len(data)


def _repeat(data: Iterable[Batch]) -> Iterator[Batch]:
    """The batches again and again; an iterator that ends cannot be repeated and says so."""
    while True:
        empty = True
        for batch in data:
            if not isinstance(batch, Batch):
                raise UserError(
                    f"the data gives {type(batch).__name__} and not Batch", mend="Text needs a tokenizer: use LM.fit."
                )
            empty = False
            yield batch
        if empty:
            raise UserError("the data has no (further) batches", mend="Give a list or an endless iterator of Batch.")
