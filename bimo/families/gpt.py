"""The GPT: ours, trained by our trainer's step and answered by our engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bimo.core.batch import Batch
from bimo.engine import Completion, Engine, EngineSettings, SamplingParams
from bimo.evaluation.answer import Answer, Circumstances
from bimo.families.family import Common
from bimo.model.gpt import GPT
from bimo.training import Callback, Event, Fault, Trainer
from bimo.training.inputs import mean_loss


class GPTFamily:
    """A decoder alone: it reads prompt and answer as one text.

    Args:
        common: What is the same for all families.
    """

    name = "GPT"

    def __init__(self, common: Common) -> None:
        self.common, spec = common, common.spec
        self.about = f"{spec.n_layers} decoder layers of width {spec.d_model}, feed-forward {spec.d_ff}"
        self.model = GPT(spec)
        self.n_parameters = self.model.n_parameters()
        self.trainer: Trainer | None = None

    def begin(self, rate: float) -> None:
        self.model.to("cpu").reset_parameters(torch.Generator().manual_seed(self.common.training.seed))
        training = replace(self.common.training, learning_rate=rate, min_learning_rate=0.0)
        self.trainer = Trainer(self.model, training, callbacks=[_Quiet()])
        self.trainer.prepare_machine()

    def step(self, batch: Batch, share: float) -> float:
        assert self.trainer is not None, "begin comes first"
        self.model.train()
        self.trainer.state.rate_scale = share  # the settings' schedule is constant: the clock decides
        try:
            return self.trainer.step(iter([batch])).loss
        except Fault:
            self.trainer.drop_batch()
            return float("inf")

    @torch.no_grad()
    def loss(self, batches: Sequence[Batch]) -> float:
        self.model.eval()
        return mean_loss(self.model, batches)

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def put_back(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def answer(self, prompts: Sequence[list[int]]) -> list[Answer]:
        self.model.eval()
        engine = Engine(self.model, self.common.tokenizer, EngineSettings(threads=self.common.training.threads))
        if self.common.labels:
            found = engine.classify(prompts, self.common.labels)
            return [Answer(label.label, Circumstances(probabilities=label.probabilities)) for label in found]
        params = SamplingParams(max_tokens=self.common.answer_tokens, temperature=0, beams=self.common.beams)
        completions = engine.generate([list(prompt) for prompt in prompts], params, keep_errors=True)
        return [self._answer(completion) for completion in completions]

    def _answer(self, completion: Completion) -> Answer:
        text = "" if completion.error else self.common.task.answer(completion.text)
        return Answer(text, Circumstances(completion.finish_reason))


class _Quiet(Callback):
    """Hears what a run would print."""

    def on_event(self, trainer: Trainer, event: Event) -> None:
        """Nothing: how blocks are run is told once, for all families."""
