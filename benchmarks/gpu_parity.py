"""Does a GPU compute the same function? Every kind of model on the device, against the float64 GPT in NumPy.

For each: the largest difference of logits over the largest logit in float32 (the limit is that of `bimo verify`) and,
in bfloat16, the divergence of the next token's distribution; with a cache; and whether the engine's greedy text is the
reference's, up to the first near tie.

    python benchmarks/gpu_parity.py                  # the first GPU; --device cpu for a rehearsal
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from bimo import GPT, ModelSpec
from bimo.core.spec import RopeScaling
from bimo.evaluation.comparing import TOLERANCES, scale_of
from bimo.evaluation.llama_cpp_reference import divergence
from bimo.evaluation.probes import cached, greedy
from bimo.evaluation.reference import ReferenceGPT

BASE = ModelSpec(
    vocab_size=500, context_length=160, n_layers=3, d_model=96, n_heads=6, n_kv_heads=2, head_dim=24, d_ff=200
)
LLAMA3 = RopeScaling("llama3", 8.0, 32, 1.0, 4.0)
SHAPES = {
    "qwen3, windows": replace(BASE, window=9, full_layers=(1,)),
    "llama 3": replace(BASE, qk_norm=False, rope_scaling=LLAMA3, unrotated_layers=(1,)),
    "gpt-2": replace(
        BASE, n_kv_heads=6, positions="learned", norm="layernorm", feedforward="gelu", biases="all", qk_norm=False
    ),
    "gpt-neox": replace(
        BASE, n_kv_heads=6, parallel_blocks=True, norm="layernorm", feedforward="gelu_erf", biases="all", rotary_dim=6
    ),
    "gemma 2": replace(
        BASE,
        **{"norm": "rmsnorm_1p", "norm_placement": "sandwich", "feedforward": "geglu", "embedding_scale": 96**0.5},
        **{"attention_softcap": 5.0, "logit_softcap": 9.0, "window": 9, "full_layers": (1,)},
    ),
    "olmo 2": replace(BASE, norm_placement="post", qk_norm_across_heads=True),
    "experts": replace(BASE, n_experts=5, n_experts_per_token=2, d_expert=64),
}


def lively(spec: ModelSpec) -> GPT:
    """A model with weights so large that every part matters."""
    model = GPT(spec).eval()
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        p.data += (0.02 if name.startswith("embed_tokens") else 0.15) * torch.randn(p.shape, generator=generator)
    return model


@torch.no_grad()
def row(name: str, spec: ModelSpec, device: str) -> tuple[str, bool]:
    """A row of the table, and whether it is within the limits."""
    model = lively(spec)
    weights = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    reference = ReferenceGPT(spec, weights)
    ids = torch.randint(spec.vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))
    expected = torch.from_numpy(reference.trace(ids.numpy()).logits)
    on_device, there = model.to(device), ids.to(device)
    scale = max(1.0, scale_of([expected]))
    plain = float((on_device(there).double().cpu() - expected).abs().max()) / scale
    stepped = float((cached(on_device, there).double().cpu() - expected).abs().max()) / scale
    text = greedy(on_device, ids[0, :16], 48)
    logits = torch.from_numpy(reference.trace(torch.tensor([*ids[0, :16].tolist(), *text[:-1]]).numpy()).logits[0, 15:])
    gaps = logits.max(dim=-1).values - logits[torch.arange(48), torch.tensor(text)]
    limit = TOLERANCES["logits"].allowed
    same = bool((gaps < 2 * limit * scale).all())
    coarse = divergence(on_device.to(torch.bfloat16)(there).float().cpu(), expected)
    ok = plain < limit and stepped < limit and same
    return f"| {name} | {plain:.1e} | {stepped:.1e} | {'yes' if same else 'NO'} | {coarse:.1e} |", ok


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    torch.backends.cuda.matmul.allow_tf32 = False  # the limit is that of float32
    title = torch.cuda.get_device_name() if device.startswith("cuda") else device
    print(f"{title}, torch {torch.__version__}; limit of the first two columns {TOLERANCES['logits'].allowed:.0e}\n")
    print("| model | logits, float32 | with a cache | same greedy text | bfloat16, nats |\n|---|---|---|---|---|")
    rows = [row(name, spec, device) for name, spec in SHAPES.items()]
    print("\n".join(text for text, _ in rows))
    return 0 if all(ok for _, ok in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
