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
from torch import nn

from bimo.core import machine
from bimo.core.batch import Batch
from bimo.core.config import TrainingSettings
from bimo.model.packed import unpack
from bimo.training import launch, parallel
from bimo.training import state as checkpoint
from bimo.training.backward import Passes, Totals
from bimo.training.callbacks import Callback, Event, StepResult, checked, make_callbacks
from bimo.training.execution import Execution
from bimo.training.faults import Fault, check_batch, is_out_of_memory
from bimo.training.inputs import TextModel, check_given, check_given_batch, length, open_data, steps_of
from bimo.training.losses import Loss, chosen_loss
from bimo.training.optimizers import OptimizerFactory, make_optimizer, set_rates
from bimo.training.randomness import random_state, seed_everything, set_random_state, undisturbed
from bimo.training.resuming import identity, own_chance, position, restore, state_of
from bimo.training.schedules import learning_rate
from bimo.training.signals import Abandoned, StopSignals
from bimo.training.streams import Resumable, fingerprint, repeated, shared_fingerprint
from bimo.training.watchdog import Watchdog

_log = logging.getLogger("bimo.training")


class Trainer(Passes):
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
        self.team = launch.current()
        parallel.parallelize(self.model, self.team)
        self.loss: Loss = chosen_loss(loss or self.settings.loss)
        self.optimizer, self.own_rates = make_optimizer(optimizer, self.model, self.settings)
        parallel.split_groups(self.optimizer)
        self.folder = folder
        given = self._given()
        made = [*checked(callbacks, given), *make_callbacks(self.settings, given)]
        self.callbacks = [callback for callback in made if callback.everywhere or self.team.first]
        if self.settings.watchdog and not any(isinstance(callback, Watchdog) for callback in self.callbacks):
            self.callbacks.insert(0, Watchdog())
        self.evaluate_fn, self.generate_fn = evaluate_fn, generate_fn
        self.state = checkpoint.TrainingState()
        self.data: Any = None
        self.batch: Batch | None = None
        self.before: checkpoint.Tree = {}
        self._batch_name = ""
        self.stop_requested = ""
        self.execution = Execution(self.settings, self.device, self.precision, self.event)
        self._signals = StopSignals(patient=not self.team.alone)
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
            seed_everything(self.settings.seed, self.team.data_rank)
        self._resumed = {}

    @property
    def _done(self) -> bool:
        return self.state.step >= self.settings.steps and self.state.settled == self.state.step

    def _advance(self, batches: Iterator[Batch]) -> None:
        """One update with all that follows it; a fault that somebody mends leaves the run where it was."""
        try:
            if self.state.settled == self.state.step:  # else a signal came between an update and its evaluation
                self._tell("on_step", self.step(batches))
                self._agree_on_steps()
            self._settle()
        except Fault as fault:
            self._put_back()
            if not any(callback.on_fault(self, fault) for callback in self.callbacks):
                raise
        except Abandoned:
            self._put_back()
        self.stop_requested = self.team.agreed_word(self._signals.received or self.stop_requested)
        self._signals.hear(self.stop_requested)

    def _agree_on_steps(self) -> None:
        """A budget fits the steps to a clock, and clocks differ: those of the first process count."""
        if not self.team.alone:
            steps = int(self.team.gathered([self.settings.steps])[0][0])
            self.settings = replace(self.settings, steps=steps)

    @property
    def interrupted(self) -> str:
        """Name of the signal that ended the run, or ''."""
        return self._signals.received

    def prepare_machine(self) -> None:
        """Settle threads and memory for the steps to come, and put the model into training mode."""
        machine.set_threads(self.settings.threads or max(1, machine.usable_cores() // self.team.local_size))
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
        share = self.team.gathered([share])[0][0]  # clocks may settle it, and they differ
        rate = self.settings.learning_rate * share
        set_rates(self.optimizer, rate, share, self.own_rates)
        batch, totals = self._read(batches)
        loss = self.backward(batch, totals)
        gradient = self.measure(batch, loss)
        for callback in self.callbacks:
            if callback.on_gradient(self, gradient):
                gradient = self.measure(batch, loss)
        self.clip(gradient.norm)
        self.optimizer.step()
        self.model.untrained = False
        self.optimizer.zero_grad(set_to_none=True)
        self.batch = None
        seconds = time.perf_counter() - start
        self.state.step += 1
        self.state.tokens += totals.tokens
        self.state.seconds += seconds
        return StepResult(self.state.step, gradient.loss, gradient.norm, rate, totals.tokens, seconds)

    def _read(self, batches: Iterator[Batch]) -> tuple[Batch, Totals]:
        """The next batch, or the one that a mended step is tried with again; it can be trained on."""
        if self.batch is None:
            self.before = {"data": position(self.data), "random": random_state()}
            read, shared_out = next(batches), getattr(self.data, "world_size", 1) > 1
            self.batch = read if shared_out else self.team.share(read, self.rows_together)
            self._batch_name = "" if self.team.alone else shared_fingerprint(self.batch, self.team)
        batch, fault = self.batch, None
        try:
            for callback in self.callbacks:
                given = callback.on_batch(self, batch)
                batch = batch if given is None else check_given_batch(given, callback)
            check_batch(batch, self.model.embed_tokens.num_embeddings, self.state.step + 1, shared=not self.team.alone)
        except Fault as error:
            fault = error
        return batch, self.totals(batch, fault)

    def name_of(self, batch: Batch) -> str:
        """Its fingerprint; of a batch that several processes share out, that of the whole."""
        return self._batch_name or fingerprint(batch)

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
                parallel.reshard(self.model)
                self._tell("on_looked")
                self.model.train(was_training)

    def event(self, kind: str, /, **facts: Any) -> None:
        """Tell the callbacks of something that a person should know; without one that listens, log it."""
        event = Event(kind, self.state.step, facts)
        if self.team.first and all(type(callback).on_event is Callback.on_event for callback in self.callbacks):
            _log.warning("%s", event)
        self._tell("on_event", event)

    def changed(self, kind: str, /, **facts: Any) -> None:
        """For a callback that has changed the model between two updates: tell of it, so that nobody calls it damage.

        Args:
            kind: What was done.
            facts: As for `event`.
        """
        self.event(kind, **facts)
        self._tell("on_changed")

    def save_checkpoint(self) -> Path | None:
        """Write `checkpoints/step-N` and drop the oldest beyond `keep_checkpoints`."""
        if self.folder is None:
            return None
        folder, target = self.folder, self.folder / f"step-{self.state.step:08d}"
        tree = state_of(self)
        if not self.team.alone:
            tree["ranks"] = self.team.collected(tree["random"])
        checkpoint.write(target, tree, self.team)
        self.team.by_first(lambda: checkpoint.keep_newest(folder, self.settings.keep_checkpoints, target))
        return target

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint; call it before `fit`.

        Raises:
            UserError: It is damaged, or belongs to another model, tokenizer, optimizer or data. Nothing has changed
                then.
        """
        tree = checkpoint.read(folder, self.model, self.team)
        tree["random"] = own_chance(tree, self.team, self.settings.seed)
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
        if model is None:
            return given
        return given | {"generate": lambda _, prompt: self._written(model, prompt)}

    def _written(self, lm: Any, prompt: str) -> str:
        """How the model goes on: computed by the first process, with the model in one piece."""
        with parallel.in_one_piece(lm, self.team):
            return self.team.by_first(lambda: lm.generate(prompt, seed=1))

    def _put_back(self) -> None:
        """After a step that came to nothing: no gradient, and chance as it was, so that a second try is the same."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        if self.batch is not None:
            set_random_state(self.before["random"])

    def _tell(self, happening: str, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, happening)(self, *arguments)
