"""Sample texts of the model in training, from prompts of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bimo.core.artifacts import append_jsonl
from bimo.core.errors import UserError
from bimo.training.callbacks.protocol import Callback, StepResult
from bimo.training.callbacks.records import continue_log

if TYPE_CHECKING:
    from bimo.training.trainer import Trainer

_KEPT = 100


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model wrote.

    Attributes:
        step: Updates made.
        prompt: How the text begins.
        text: How the model goes on.
    """

    step: int
    prompt: str
    text: str


class Sampling(Callback):
    """Lets the model write every so many steps. The training is the same as without it: chance is left alone.

    Every callback hears of each text (`on_sample`), so that a view shows it and TensorBoard keeps it; where no other
    callback takes it, it is printed.

    Args:
        prompts: How the texts begin.
        generate: (model, prompt) → what follows, for example `lambda _, prompt: lm.generate(prompt, seed=1)`.
        every: Steps between samples.
        folder: A run's folder, in which `samples.jsonl` is written; "": none is.

    Attributes:
        samples: The newest hundred.
    """

    def __init__(
        self,
        prompts: str | Sequence[str],
        generate: Callable[[nn.Module, str], str],
        every: int = 200,
        folder: str | Path = "",
    ) -> None:
        if every < 1:
            raise UserError(f"every must be at least 1, is {every}", where="Sampling")
        self.prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        self.generate, self.every = generate, every
        self.path = Path(folder) / "samples.jsonl" if folder else None
        self.samples: list[Sample] = []

    def on_start(self, trainer: Trainer) -> None:
        if self.path is not None and trainer.team.first:
            continue_log(self.path, trainer.state.step, trainer.state.settled)

    def on_step(self, trainer: Trainer, result: StepResult) -> None:
        if result.step % self.every:
            return
        with trainer.looking():
            texts = [self.generate(trainer.model, prompt) for prompt in self.prompts]
        for prompt, text in zip(self.prompts, texts, strict=True):
            self._show(trainer, Sample(result.step, prompt, text))

    def _show(self, trainer: Trainer, sample: Sample) -> None:
        self.samples = [*self.samples, sample][-_KEPT:]
        if self.path is not None and trainer.team.first:
            append_jsonl(self.path, asdict(sample))
        for callback in trainer.callbacks:
            callback.on_sample(trainer, sample.prompt + sample.text)
        heard = any(type(callback).on_sample is not Callback.on_sample for callback in trainer.callbacks)
        if trainer.team.first and not heard:
            print(f"step {sample.step} writes: {sample.prompt}{sample.text}", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"samples": [asdict(sample) for sample in self.samples]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.samples = [Sample(**sample) for sample in state["samples"]]
