"""Training with a loss and a callback of your own, on pairs of question and answer.

python examples/own_loss.py
"""

import torch.nn.functional as F
from torch import Tensor

import bimo
from bimo.training import StepResult


def smoothed(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy that leaves a tenth of the probability to all other tokens (Szegedy et al. 2016)."""
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=0.1)
    return (nats * weights.flatten()).sum() / weights.sum()


class StopWhenLearned(bimo.Callback):
    """Ends the training when the loss has fallen far enough."""

    def on_step(self, trainer: bimo.Trainer, result: StepResult) -> None:
        if result.loss < 1.0:
            trainer.stop_requested = f"a loss of {result.loss:.2f} after {result.step} steps"


questions = ["one and one", "two and one", "two and two", "three and two"] * 8
answers = ["two", "three", "four", "five"] * 8

tokenizer = bimo.Tokenizer.train(questions + answers, vocab_size=300)
model = bimo.new(bimo.ModelSpec(n_layers=2, n_heads=2, d_model=64, context_length=32), tokenizer)
settings = bimo.TrainingSettings(batch_size=8, learning_rate=3e-3, warmup_steps=5)
model.fit(questions, answers, epochs=60, settings=settings, loss=smoothed, callbacks=[StopWhenLearned()])
for question in questions[:4]:
    print(question, "→", model.generate(question, temperature=0))
