"""Speed and memory of a training step on CPU, bimo beside transformers, litgpt and x-transformers.

Same shape for all: 6 layers, 6 heads, width 384, vocabulary 4096, 16 rows of 256 tokens, AdamW (fused for all),
gradient clipping, fp32. Each contender runs in a process of its own, in turn, several rounds; the table gives medians
with their spread. The first table is as users start them, in the second all have the same allocator settings (large
activations stay on the heap).

    pip install "bimo[bench]" && python benchmarks/train_cpu.py
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

ROWS, CONTEXT, VOCAB, LAYERS, HEADS, WIDTH = 16, 256, 4096, 6, 6, 384
HEAP = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
Step = Callable[[], None]


def bimo_step() -> Step:
    """bimo's trainer with its default model."""
    return _bimo("swiglu", "rmsnorm", "rotary", "none", qk_norm=True)


def bimo_gpt2_step() -> Step:
    """bimo's trainer with GPT-2's choices."""
    return _bimo("gelu", "layernorm", "learned", "all", qk_norm=False)


def _bimo(feedforward: str, norm: str, positions: str, biases: str, *, qk_norm: bool) -> Step:
    import torch

    from bimo import GPT, ModelSpec, Trainer
    from bimo.core.batch import Batch
    from bimo.core.config import TrainingSettings

    shape = {"n_layers": LAYERS, "n_heads": HEADS, "d_model": WIDTH, "vocab_size": VOCAB, "context_length": CONTEXT}
    choices = {"feedforward": feedforward, "norm": norm, "positions": positions, "biases": biases, "qk_norm": qk_norm}
    trainer = Trainer(GPT(ModelSpec.from_dict(shape | choices)), TrainingSettings(batch_size=ROWS, precision="fp32"))
    trainer.prepare_machine()

    def batches() -> object:
        while True:
            ids = torch.randint(VOCAB, (ROWS, CONTEXT + 1))
            yield Batch(ids=ids[:, :-1], targets=ids[:, 1:], weights=torch.ones(ROWS, CONTEXT))

    stream = batches()
    return lambda: trainer.step(stream) and None


def transformers_step() -> Step:
    """GPT2LMHeadModel with its own loss."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=CONTEXT, n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.config.use_cache = False
    # The model shifts labels itself, so it gets one token more than the others, whose prediction it drops.
    return _textbook(model, lambda ids, targets: model(input_ids=ids, labels=ids).loss)


def litgpt_step() -> Step:
    """litgpt's GPT with Llama's choices and its chunked cross-entropy."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=CONTEXT, n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH, vocab_size=VOCAB, padded_vocab_size=VOCAB,
        bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=1024, rotary_percentage=1.0,
        parallel_residual=False,
    )  # fmt: skip
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    return _textbook(model, lambda ids, targets: chunked_cross_entropy(model(ids), targets, chunk_size=128))


def x_transformers_step() -> Step:
    """x-transformers' decoder with rotary positions and flash attention."""
    import torch.nn.functional as F
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=WIDTH, depth=LAYERS, heads=HEADS, rotary_pos_emb=True, attn_flash=True)
    model = TransformerWrapper(num_tokens=VOCAB, max_seq_len=CONTEXT, attn_layers=layers, tie_embedding=True)
    return _textbook(model, lambda ids, targets: F.cross_entropy(model(ids).transpose(1, 2), targets))


def _textbook(model: object, loss_of: Callable[..., object]) -> Step:
    """The step that a user of these libraries writes."""
    import torch

    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1, fused=True)

    def step() -> None:
        ids = torch.randint(VOCAB, (ROWS, CONTEXT + 1))
        loss = loss_of(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


CONTENDERS = {
    "bimo": bimo_step,
    "bimo (GPT-2 choices)": bimo_gpt2_step,
    "transformers": transformers_step,
    "litgpt": litgpt_step,
    "x-transformers": x_transformers_step,
}


def measure(name: str, steps: int, threads: int) -> None:
    """Child process: time the steps of one contender and print seconds and peak memory as JSON."""
    if name.startswith("bimo"):
        import bimo  # noqa: F401 - first, as `bimo train` does: it settles how threads wait
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = CONTENDERS[name]()
    for _ in range(3):
        step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"seconds": statistics.median(seconds), "peak_bytes": peak}))


def peak_flops(threads: int) -> float:
    """Best fp32 matrix product of this machine right now, in FLOP/s."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 2048**3 / best


def table(title: str, rounds: int, steps: int, threads: int, environment: dict[str, str]) -> None:
    results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    peak = peak_flops(threads)
    for _ in range(rounds):
        for name in CONTENDERS:
            command = [sys.executable, __file__, "--child", name, "--steps", str(steps), "--threads", str(threads)]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
            )
            if done.returncode:
                print(f"{name}: {done.stderr.strip().splitlines()[-1]}")
                continue
            results[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    # 6 per weight of a matrix product, and the causal half of attention; all contenders have this shape.
    flops = 6.0 * (LAYERS * 12 * WIDTH**2 + VOCAB * WIDTH + LAYERS * WIDTH * CONTEXT) * ROWS * CONTEXT
    best = min(
        (statistics.median(r["seconds"] for r in rows) for n, rows in results.items() if rows and n[:4] != "bimo")
    )
    print(f"\n{title} (matrix peak {peak / 1e9:.0f} GFLOP/s, {threads} threads, {rounds} rounds of {steps} steps)\n")
    print("| | step, median (min … max) s | tokens/s | share of peak | speed : best peer | peak memory |")
    print("|---|---|---|---|---|---|")
    for name, rows in results.items():
        if not rows:
            continue
        seconds = sorted(r["seconds"] for r in rows)
        middle, memory = statistics.median(seconds), statistics.median(r["peak_bytes"] for r in rows)
        print(
            f"| {name} | {middle:.3f} ({seconds[0]:.3f} … {seconds[-1]:.3f}) | {ROWS * CONTEXT / middle:.0f} "
            f"| {flops / middle / peak:.0%} | {best / middle:.2f} | {memory / 2**30:.2f} GiB |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure(arguments.child, arguments.steps, arguments.threads)
        return
    table("As users start them", arguments.rounds, arguments.steps, arguments.threads, {})
    table("Same allocator settings", arguments.rounds, arguments.steps, arguments.threads, HEAP)


if __name__ == "__main__":
    main()
