"""A GPT put together from its modules, trained with a loss and callbacks of your own, saved, loaded, asked to write.

python examples/own_gpt.py [MY_TEXT.txt]
"""

import sys
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

import bimo
from bimo.training import EarlyStopping


@bimo.register("feedforward", "squared_relu")  # the name that the spec below asks for
class SquaredReLU(nn.Module):
    """After attention has mixed the tokens, each thinks on its own: wider, relu squared, back (So et al. 2021)."""

    def __init__(self, spec: bimo.ModelSpec) -> None:
        super().__init__()
        self.up_proj = nn.Linear(spec.d_model, spec.d_ff, bias=False)
        self.down_proj = nn.Linear(spec.d_ff, spec.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.relu(self.up_proj(x)).square())  # (B, T, C)


def smoothed(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """What is minimised: cross-entropy that leaves a tenth of the probability to all other tokens."""
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=0.1)
    return (nats * weights.flatten()).sum() / weights.sum()  # the mean over the tokens that are trained


class Show(bimo.Callback):
    """Prints what each evaluation has found: after every epoch, on what is held out."""

    def on_evaluation(self, trainer: bimo.Trainer, metrics: dict[str, float]) -> None:
        print(f"step {trainer.state.step}: {metrics['bits_per_byte']:.2f} bits per byte")


if len(sys.argv) > 1:
    texts = Path(sys.argv[1]).read_text(encoding="utf-8").strip().split("\n\n")
else:
    people = ["Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gil"]
    texts = [f"{a} met {b}, and {b} met {a}." for a in people for b in people if a != b]

tokenizer = bimo.Tokenizer.train(texts, vocab_size=300)
spec = bimo.ModelSpec(
    attention="multi_head", n_heads=4, n_kv_heads=2, feedforward="squared_relu", norm="rmsnorm", positions="rotary",
    n_layers=2, d_model=64, context_length=64,
)  # fmt: skip
model = bimo.new(spec, tokenizer)
print(model.model.layers[0])  # a block: attention, feed-forward part, and the norms before them

settings = bimo.TrainingSettings(batch_size=8, learning_rate=3e-3, warmup_steps=5, threads=1)
trainer = bimo.Trainer(model, settings, loss=smoothed, callbacks=[Show(), EarlyStopping(patience=3)])
trainer.fit(texts, epochs=20, validation=0.1)  # a tenth of the rows is held out
print("ended:", trainer.stop_requested or "all epochs are done")

model.save("runs/own_gpt")
again = bimo.load("runs/own_gpt")
prompt = texts[0][:7]
print("it writes:", prompt + again.generate(prompt, max_tokens=20, temperature=0))
