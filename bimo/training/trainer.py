"""Trainer: the one training loop.

`Trainer.step` is the textbook: batch, forward, loss, backward, check, clip, update. `Trainer.fit` repeats it and calls
the callbacks. Accumulation is exact: gradients are sums over tokens, divided by the count of the whole batch. The model
is a plain module; what the loop needs from siblings (evaluation, samples) is passed in as a function.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bimo.core import machine
from bimo.core.batch import Batch
from bimo.core.config import TrainingSettings
from bimo.model.packed import unpack
from bimo.model.recompute import recompute
from bimo.training import state as checkpoint
from bimo.training.callbacks import Callback, Event, Gradient, StepResult, checked, make_callbacks
from bimo.training.faults import Fault, check_batch, check_finite, is_out_of_memory
from bimo.training.inputs import TextModel, check_given, check_given_batch, length, open_data, steps_of
from bimo.training.losses import ChunkedLoss, Loss, chosen_loss, mean_of
from bimo.training.optimizers import OptimizerFactory, make_optimizer, set_rates
from bimo.training.randomness import random_state, seed_everything, set_random_state, undisturbed
from bimo.training.resuming import identity, position, restore, state_of
from bimo.training.schedules import learning_rate
from bimo.training.signals import Abandoned, StopSignals
from bimo.training.streams import Resumable, repeated
from bimo.training.watchdog import Watchdog

_CPU_MICRO_TOKENS = 2048  # measured: half the memory of 4096 at the same speed; 1024 costs 4 %, 512 costs 9 %
_log = logging.getLogger("bimo.training")


class Trainer:
    """Trains a GPT.

    Args:
        model: A GPT, or an LM (a GPT with its tokenizer), which also takes text.
        settings: Steps, rates, sizes.
        loss: (logits, targets, weights) → mean loss, or its registered name; None: the one that the settings name.
        optimizer: Ready, or a function of the parameters that makes it, or its registered name; None: the one that the
            settings name. The rates that a ready one has are its peak rates, the schedule lowers them.
        callbacks: Called in this order; also by their registered names, `"early_stopping(patience=5)"`.
        evaluate_fn: Model → figures, called every `evaluate_every` steps and at the end.
        generate_fn: Model → sample text, called every `sample_every` steps.
        folder: Where checkpoints go; None: none are written.

    Attributes:
        state: Where the run stands.
        stop_requested: Why the run shall end after this step; "" while it goes on.
        batch: What was read and not yet trained on; None between two updates.
        before: Where data and chance stood before that batch was read.
    """

    def __init__(
        self,
        model: nn.Module | TextModel,
        settings: TrainingSettings | None = None,
        *,
        loss: Loss | str | None = None,
        optimizer: torch.optim.Optimizer | OptimizerFactory | str | None = None,
        callbacks: Iterable[Callback | str] = (),
        evaluate_fn: Callable[[nn.Module], dict[str, float]] | None = None,
        generate_fn: Callable[[nn.Module], str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.settings = TrainingSettings() if settings is None else settings
        check_given(model, self.settings)
        self.text_model = model if isinstance(model, TextModel) else None
        self.device = machine.choose_device(self.settings.device).value
        self.precision = machine.choose_precision(self.device, self.settings.precision).value
        plain: Any = model.model if isinstance(model, TextModel) else model
        self.model: Any = unpack(plain).to(self.device)
        self.loss: Loss = chosen_loss(loss or self.settings.loss)
        self.optimizer, self.own_rates = make_optimizer(optimizer, self.model, self.settings)
        self.folder = folder
        given = self._given()
        self.callbacks = [*checked(callbacks, given), *make_callbacks(self.settings, given)]
        if self.settings.watchdog and not any(isinstance(callback, Watchdog) for callback in self.callbacks):
            self.callbacks.insert(0, Watchdog())
        self.evaluate_fn, self.generate_fn = evaluate_fn, generate_fn
        self.state = checkpoint.TrainingState()
        self.data: Any = None
        self.batch: Batch | None = None
        self.before: checkpoint.Tree = {}
        self.stop_requested = ""
        self._signals = StopSignals()
        self._resumed: checkpoint.Tree = {}

    def fit(self, data: Any, targets: Any = None, *, epochs: int | None = None, validation: Any = None) -> Trainer:
        """Train until `settings.steps` updates, or for a number of epochs.

        Args:
            data: An iterable of `Batch` (endless, or repeated as needed), or ids; with an LM also texts and more: the
                table in docs/training.md.
            targets: What the model should say to each row of `data`.
            epochs: Passes over data that has a length; None: `settings.steps` updates.
            validation: What to measure on: like `data`, a pair of that and its targets, or a share of the rows.
        """
        model = self.text_model or self.model
        self.data, measure = open_data(model, data, targets, validation, self.settings, self.event)
        self.evaluate_fn = measure or self.evaluate_fn
        if epochs is not None:
            steps, per_epoch = steps_of(epochs, self.data), length(self.data)
            often = min(self.settings.evaluate_every or per_epoch, per_epoch)
            made = 0 if self._resumed else self.state.step  # a second `fit` trains on
            self.settings = replace(self.settings, steps=made + steps, evaluate_every=often)
        self.stop_requested = ""
        with undisturbed():
            self._run()
        self.model.eval()
        return self

    def _run(self) -> None:
        """The loop, with all that begins and ends it."""
        self.prepare_machine()
        try:
            with self._signals.listening():
                self._begin()
                batches = repeated(self.data)
                while not self.stop_requested and not self._done:
                    self._advance(batches)
            self._tell("on_end")
            self._tell("on_result")
        except BaseException:  # whatever it is, it is raised on
            self.optimizer.zero_grad(set_to_none=True)
            self._tell("on_error")
            raise

    def _begin(self) -> None:
        """Where the run starts: at its seed, or where the checkpoint stands."""
        if self._resumed and isinstance(self.data, Resumable):
            self.data.load_state_dict(self._resumed["data"])
        self._tell("on_start")
        if self._resumed and not isinstance(self.data, Resumable):
            what = "these data do not know where the run stood in them: they are read from where they stand now"
            self.event("data not resumed", what=what)
        elif self.state.step and self._done:
            what = f"all {self.settings.steps} steps were made before; raise training.steps, or give epochs"
            self.event("nothing to do", what=what)
        if self._resumed:
            set_random_state(self._resumed["random"])
        else:
            seed_everything(self.settings.seed)
        self._resumed = {}

    @property
    def _done(self) -> bool:
        return self.state.step >= self.settings.steps and self.state.settled == self.state.step

    def _advance(self, batches: Iterator[Batch]) -> None:
        """One update with all that follows it; a fault that somebody mends leaves the run where it was."""
        try:
            if self.state.settled == self.state.step:  # else a signal came between an update and its evaluation
                self._tell("on_step", self.step(batches))
            self._settle()
        except Fault as fault:
            self._put_back()
            if not any(callback.on_fault(self, fault) for callback in self.callbacks):
                raise
        except Abandoned:
            self._put_back()
        if self._signals.received:
            self.stop_requested = self._signals.received

    @property
    def interrupted(self) -> str:
        """Name of the signal that ended the run, or ''."""
        return self._signals.received

    def prepare_machine(self) -> None:
        """Settle threads and memory for the steps to come, and put the model into training mode."""
        machine.set_threads(self.settings.threads)
        if self.device == "cpu":
            machine.keep_memory_on_heap()
        self.model.train()

    def step(self, batches: Iterator[Batch]) -> StepResult:
        """One update of the weights.

        Raises:
            Fault: Something is wrong with this batch, its loss or its gradient; the weights have not changed.
        """
        start = time.perf_counter()
        share = learning_rate(self.state.step, self.settings) / self.settings.learning_rate * self.state.rate_scale
        rate = self.settings.learning_rate * share
        set_rates(self.optimizer, rate, share, self.own_rates)
        batch = self._read(batches)
        loss = self._backward(batch)
        gradient = self._measure(batch, loss)
        for callback in self.callbacks:
            if callback.on_gradient(self, gradient):
                gradient = self._measure(batch, loss)
        self._clip(gradient.norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.batch = None
        seconds = time.perf_counter() - start
        self.state.step += 1
        self.state.tokens += batch.n_tokens
        self.state.seconds += seconds
        return StepResult(self.state.step, gradient.loss, gradient.norm, rate, batch.n_tokens, seconds)

    def _read(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, or the one that a mended step is tried with again; it can be trained on."""
        if self.batch is None:
            self.before = {"data": position(self.data), "random": random_state()}
            self.batch = next(batches)
        batch = self.batch
        for callback in self.callbacks:
            given = callback.on_batch(self, batch)
            batch = batch if given is None else check_given_batch(given, callback)
        check_batch(batch, self.model.embed_tokens.num_embeddings, self.state.step + 1)
        return batch

    def _backward(self, batch: Batch) -> Tensor:
        """Add up the gradient over micro-batches; the mean loss over the batch's trained tokens."""
        trained_tokens = batch.weight_sum()
        loss = torch.zeros((), device=self.device)
        rows = self.micro_rows(batch)
        out_of_memory = ""
        try:
            with self._signals.abandoning():
                for part in batch.split(rows):
                    if part.weight_sum() == 0:  # a mean over no tokens is 0 / 0
                        continue
                    with recompute():
                        part_loss = self.loss_sum(part.to(self.device)) / trained_tokens
                    part_loss.backward()
                    loss += part_loss.detach()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            out_of_memory = str(error).partition("\n")[0]
        if out_of_memory:  # raised here, because the error above holds on to all activations
            raise Fault(
                "out of memory",
                f"memory is used up at step {self.state.step + 1} with {rows} row(s) at once ({out_of_memory})",
                mend="Lower training.micro_batch_size or model.context_length.",
                rows=rows,
            )
        return loss

    def _measure(self, batch: Batch, loss: Tensor) -> Gradient:
        """Loss and norms, in one transfer from the device; a NaN or an infinity ends the step here."""
        named = [(name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None]
        norms = torch._foreach_norm([gradient for _, gradient in named])
        total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros_like(loss)
        first, second, *rest = torch.stack([loss, total, *norms]).tolist()
        gradient = Gradient(batch, first, second, rest, [name for name, _ in named])
        check_finite(gradient.loss, gradient.norm, self.state.step + 1)
        return gradient

    def _clip(self, norm: float) -> None:
        limit = self.settings.grad_clip
        if limit and norm + 1e-6 > limit:  # as torch.nn.utils.clip_grad_norm_, without a pass that multiplies by one
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, torch.tensor(norm))

    def micro_rows(self, batch: Batch) -> int:
        """Rows of a forward pass: the setting, or what keeps the activations small without slowing the products."""
        rows = self.settings.micro_batch_size or batch.n_rows
        if not self.settings.micro_batch_size and self.device == "cpu":
            rows = max(1, _CPU_MICRO_TOKENS // batch.ids.shape[1])
        return min(rows, self.state.most_rows or rows, max(1, batch.n_rows))

    def loss_sum(self, batch: Batch) -> Tensor:
        """Loss of a (micro-)batch, summed over its trained tokens."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"):
            hidden = self.model.hidden(batch.ids, positions=batch.positions, documents=batch.documents)  # (B, T, C)
            if isinstance(self.loss, ChunkedLoss):
                return self.loss.sum(hidden, self.model.lm_head.weight, batch, self.model.spec.logit_softcap)
            mean = mean_of(self.loss, self.model.logits(hidden), batch.targets, batch.weights)
            return mean * batch.weights.sum()

    def loss_of(self, batch: Batch) -> float:
        """Mean loss of a batch, without training on it."""
        self.model.eval()
        with torch.no_grad():
            parts = [self.loss_sum(p.to(self.device)) for p in batch.split(self.micro_rows(batch)) if p.weight_sum()]
        self.model.train()
        return sum(part.item() for part in parts) / batch.weight_sum()

    def drop_batch(self) -> None:
        """Read another batch in place of the one whose step has failed."""
        self.batch = None

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Inside, the model is as it is judged: in evaluation mode, with what on_look puts in; chance is left alone."""
        was_training = self.model.training
        with undisturbed():
            try:
                self.model.eval()
                self._tell("on_look")
                yield
            finally:
                self._tell("on_looked")
                self.model.train(was_training)

    def event(self, kind: str, /, **facts: Any) -> None:
        """Tell the callbacks of something that a person should know; without one that listens, log it."""
        event = Event(kind, self.state.step, facts)
        if all(type(callback).on_event is Callback.on_event for callback in self.callbacks):
            _log.warning("%s", event)
        self._tell("on_event", event)

    def save_checkpoint(self) -> Path | None:
        """Write `checkpoints/step-N` and drop the oldest beyond `keep_checkpoints`."""
        if self.folder is None:
            return None
        target = self.folder / f"step-{self.state.step:08d}"
        checkpoint.write(target, state_of(self))
        checkpoint.keep_newest(self.folder, self.settings.keep_checkpoints, target)
        return target

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint; call it before `fit`.

        Raises:
            UserError: It is damaged, or belongs to another model, tokenizer, optimizer or data. Nothing has changed
                then.
        """
        tree = checkpoint.read(folder)
        checkpoint.check_belongs(tree, identity(self), self.model, str(folder))
        restore(self, tree)
        self._resumed = tree
        then, now = tree["settings"], self.settings.to_dict()
        other = [f"{key} is {now[key]}, was {then[key]}" for key in now if key in then and now[key] != then[key]]
        if other:
            self.event("other settings", what=f"this run goes on otherwise than it began: {'; '.join(other)}")

    def _settle(self) -> None:
        """Evaluate and sample where the settings say so; then the state is whole."""
        step, settings = self.state.step, self.settings
        often, last = settings.evaluate_every, step >= settings.steps
        evaluate = self.evaluate_fn if last or (often and step % often == 0) else None
        generate = self.generate_fn if settings.sample_every and step % settings.sample_every == 0 else None
        if evaluate or generate:
            with self.looking():
                metrics, text = self._look(evaluate, generate)
                for happening, found in (("on_evaluation", metrics), ("on_sample", text)):
                    if found is not None:
                        self._tell(happening, found)
        self.state.settled = step
        self._tell("on_settled")

    def _look(
        self, evaluate: Callable[[nn.Module], dict[str, float]] | None, generate: Callable[[nn.Module], str] | None
    ) -> tuple[dict[str, float] | None, str | None]:
        """Figures and a sample; nothing where memory does not suffice: hours of training are worth more than a look."""
        try:
            with self._signals.abandoning():  # callbacks hear of all or nothing: what is repeated counts once
                return evaluate(self.model) if evaluate else None, generate(self.model) if generate else None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            why = str(error).partition("\n")[0]
        what = f"memory is used up in the evaluation after step {self.state.step}, which is left out ({why})"
        self.event("out of memory", what=what)
        return None, None

    def _given(self) -> dict[str, Any]:
        """What callbacks that are named in the settings may need of the run."""
        given: dict[str, Any] = {} if self.folder is None else {"folder": self.folder.parent}
        model: Any = self.text_model
        return given if model is None else given | {"generate": lambda _, prompt: model.generate(prompt, seed=1)}

    def _put_back(self) -> None:
        """After a step that came to nothing: no gradient, and chance as it was, so that a second try is the same."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        if self.batch is not None:
            set_random_state(self.before["random"])

    def _tell(self, happening: str, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, happening)(self, *arguments)
