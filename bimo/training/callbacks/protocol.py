"""What a callback may see and change: everything that hangs on the training loop without being part of it.

A subclass takes the methods it needs. One update, in order:

    on_batch      a batch was read            → may give another batch, or raise a Fault
    on_gradient   loss and gradient are there → may change `parameter.grad`, or raise a Fault
    (clipping, the optimizer's step)
    on_step       the weights have changed
    on_look       the model is about to be judged → may change its weights for that
    on_evaluation, on_sample    where the settings say so
    on_looked     what on_look has changed is put back
    on_settled    all of this has had its turn: what is saved now resumes exactly

on_start comes before the first update; on_end after the last, to save and to close; then on_result, which may change
the model that the run hands over.

`trainer` gives access to everything: `trainer.model`, `trainer.optimizer`, `trainer.settings`, `trainer.state`;
`trainer.stop_requested = "why"` ends the run after this step, `trainer.event("what", …)` writes down what happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bimo.core.batch import Batch

if TYPE_CHECKING:
    from bimo.training.faults import Fault
    from bimo.training.trainer import Trainer


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one update did.

    Attributes:
        step: Number of updates made so far, this one included.
        loss: Mean loss over the trained tokens, in nats per token.
        gradient_norm: Norm of the whole gradient before clipping.
        learning_rate: Rate that the update used.
        tokens: Tokens read in this update.
        seconds: Wall time of the update, data included.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True, slots=True)
class Gradient:
    """Loss and gradient of a batch, before the weights change.

    Attributes:
        batch: What they were computed from.
        loss: Mean loss over the trained tokens, in nats per token.
        norm: Norm of the whole gradient.
        norms: Norm of each parameter's gradient, in the order of `names`.
        names: Parameters that have a gradient.
    """

    batch: Batch
    loss: float
    norm: float
    norms: Sequence[float]
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a person should be able to read afterwards.

    Attributes:
        kind: What happened, in a few words, for example "batch set aside".
        step: Updates made when it happened.
        facts: Its details, plain values by name; "what" is a sentence.
    """

    kind: str
    step: int
    facts: dict[str, Any]

    def __str__(self) -> str:
        sentence = self.facts.get("what", "")
        return f"step {self.step}: {self.kind}" + (f": {sentence}" if sentence else "")


class Callback:
    """The protocol, with a body that does nothing.

    Attributes:
        everywhere: Whether each process of a run has it; False: the first one alone, because it looks and writes, and
            changes nothing. What one that is everywhere decides, it must decide on figures that all processes have.
    """

    everywhere = True

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step, after a resume has been read."""

    def on_batch(self, trainer: Trainer, batch: Batch) -> Batch | None:
        """Before the forward pass. What it returns is trained on in place of the batch; None leaves it."""
        return None

    def on_gradient(self, trainer: Trainer, gradient: Gradient) -> bool | None:
        """After the backward pass, before clipping; the weights have not changed. True: it has changed the gradient."""
        return None

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        """After each update."""

    def on_look(self, trainer: Trainer) -> None:
        """Before evaluation and sampling: the weights that shall be judged may be put in, for example an average."""

    def on_evaluation(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        """After each evaluation, with its figures."""

    def on_sample(self, trainer: Trainer, text: str) -> None:
        """After each sample text."""

    def on_looked(self, trainer: Trainer) -> None:
        """After evaluation and sampling, also when they came to nothing: the weights must be those of before again."""

    def on_settled(self, trainer: Trainer) -> None:
        """After each update with its evaluation and sample: what is saved here resumes exactly."""

    def on_fault(self, trainer: Trainer, fault: Fault) -> bool:
        """When a step has failed, before the weights have changed. True: it is mended, and the run goes on."""
        return False

    def step_cost(self, trainer: Trainer, share: float) -> float:
        """How long an update takes at a share of the run's steps, 0 … 1, against one at its end; for who plans time."""
        return 1.0

    def on_event(self, trainer: Trainer, event: Event) -> None:
        """When something happened that a person should know of."""

    def on_changed(self, trainer: Trainer) -> None:
        """After a callback has changed the model between two updates, on purpose: what was normal is not any more."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step, also when the run was interrupted."""

    def on_result(self, trainer: Trainer) -> None:
        """After every callback's on_end, when all is saved: what the model is now is what the run hands over."""

    def on_error(self, trainer: Trainer) -> None:
        """When an error ends the run, before it is raised on: give back what was taken, a terminal for example."""

    def state_dict(self) -> dict[str, Any]:
        """What an exact resume needs of it: plain values and tensors. It is saved in every checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; called on resume and after a rollback."""
