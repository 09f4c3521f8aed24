"""Attention of your own: written, checked, trained, saved and loaded, in one file.

python examples/own_attention.py
bimo generate runs/own_attention "Ada has" --modules "[examples/own_attention.py]"

Differential attention (Ye et al. 2024) looks twice and subtracts: what both looks see everywhere is noise and cancels,
what only the first sees remains. Here the heads are split into two halves that look; their values go side by side.
"""

import math

import torch
from torch import Tensor, nn

import bimo
from bimo.model import AttnContext
from bimo.model.backends import Attend
from bimo.model.layers import make_norm, rotate
from bimo.testing import check_attention
from bimo.training import StepResult


@bimo.register("attention", "differential")
class DifferentialAttention(nn.Module):
    """attend(q1, k1, v) - strength x attend(q2, k2, v): (B, T, C) in and out."""

    def __init__(self, spec: bimo.ModelSpec, layer: int, attend: Attend) -> None:
        super().__init__()
        if spec.n_kv_heads % 2:  # a shape that a module cannot do is refused, in one sentence
            raise bimo.UserError("differential attention needs an even number of key heads", mend="Change n_kv_heads.")
        self.layer, self.head_dim, self.attend = layer, spec.head_dim, attend
        width, kv_width = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
        self.q_proj = nn.Linear(spec.d_model, width, bias=spec.has_bias("qkv"))
        self.k_proj = nn.Linear(spec.d_model, kv_width, bias=spec.has_bias("qkv"))
        self.v_proj = nn.Linear(spec.d_model, kv_width, bias=spec.has_bias("qkv"))
        self.o_proj = nn.Linear(width, spec.d_model, bias=spec.has_bias("o"))
        self.norm = make_norm(spec, 2 * spec.head_dim)
        self.strength = nn.Parameter(torch.full((), 0.8 - 0.6 * math.exp(-0.3 * layer)))  # the paper's first value

    def forward(self, x: Tensor, ctx: AttnContext) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (p(x).view(B, T, -1, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))  # (B, T, H, D)
        if ctx.cos is not None and ctx.sin is not None:  # positions, where the model has rotary ones
            q, k = rotate(q, ctx.cos, ctx.sin), rotate(k, ctx.cos, ctx.sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
        if ctx.cache is not None:  # while generating: add these tokens to those before them, and go on with all
            k, v = ctx.cache.append(self.layer, k, v)  # (B, H, S, D)
        (q1, q2), (k1, k2) = q.chunk(2, dim=1), k.chunk(2, dim=1)  # (B, H / 2, T or S, D)
        v = torch.cat(v.chunk(2, dim=1), dim=-1)  # (B, H / 2, S, 2 D)
        y = self.attend(q1, k1, v, ctx) - self.strength * self.attend(q2, k2, v, ctx)  # (B, H / 2, T, 2 D)
        return self.o_proj(self.norm(y).transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


if __name__ == "__main__":  # not when the file is only named with --modules
    torch.manual_seed(0)
    print("it keeps its contract:", ", ".join(check_attention(DifferentialAttention)))

    texts = [f"{name} has {n} cats, so {name} has cats." for name in ("Ada", "Bo", "Cy", "Di") for n in range(10)]
    tokenizer = bimo.Tokenizer.train(texts, vocab_size=300)
    spec = bimo.ModelSpec(attention="differential", n_layers=2, n_heads=4, d_model=64, context_length=32)
    model = bimo.new(spec, tokenizer)

    class Show(bimo.Callback):
        """Prints the loss now and then."""

        def on_step(self, trainer: bimo.Trainer, result: StepResult) -> None:
            if result.step % 25 == 1:
                print(f"step {result.step}: loss {result.loss:.2f}")

    settings = bimo.TrainingSettings(batch_size=8, threads=1)  # a model this small
    model.fit(texts, epochs=20, settings=settings, callbacks=[Show()])

    model.save("runs/own_attention")
    again = bimo.load("runs/own_attention")  # finds the module by its name, because this file has registered it
    print("again:", again.generate("Bo has 7", max_tokens=20, temperature=0))
