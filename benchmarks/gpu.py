"""Everything of the spine that needs a GPU, in one call: the checks, then the speed of a training step.

Checks that fp32 logits and losses on the GPU are those of the CPU, that bf16 training follows fp32, that used-up memory
is mended and a run resumes; then prints tokens/s, share of measured peak and memory for 124M parameters in bf16, beside
transformers where it is installed.

    python benchmarks/gpu.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bimo import GPT, ModelSpec, Trainer, TrainingSettings
from bimo.core import machine
from bimo.core.batch import Batch
from bimo.evaluation import health
from bimo.training import Checkpoints

SMALL = ModelSpec(n_layers=4, n_heads=4, n_kv_heads=2, d_model=256, vocab_size=1024, context_length=256)
GPT2_SIZE = ModelSpec(n_layers=12, n_heads=12, d_model=768, d_ff=2048, vocab_size=50304, context_length=1024)


def batch(spec: ModelSpec, rows: int, seed: int = 0) -> Batch:
    ids = torch.randint(spec.vocab_size, (rows, spec.context_length + 1), generator=torch.Generator().manual_seed(seed))
    return Batch(ids=ids[:, :-1], targets=ids[:, 1:], weights=torch.ones(rows, spec.context_length))


def losses(device: str, precision: str, steps: int = 100) -> list[float]:
    """The losses of the same training on a device."""
    model = GPT(SMALL)
    model.reset_parameters(torch.Generator().manual_seed(0))
    choices = {"device": device, "precision": precision, "steps": steps, "warmup_steps": 10}
    trainer = Trainer(model, TrainingSettings.from_dict(choices))
    trainer.prepare_machine()
    stream = (batch(SMALL, 8, seed=i % 10) for i in range(steps))
    return [trainer.step(stream).loss for _ in range(steps)]


def check() -> None:
    for result in health.model_checks(GPT(SMALL)):
        print("ok " if result.ok else "BAD", "cpu", result.name, result.finding)
    model = GPT(SMALL)
    ids = batch(SMALL, 2).ids
    on_cpu = model(ids)
    difference = float((model.to("cuda")(ids.to("cuda")).cpu() - on_cpu).abs().max())
    print(f"fp32 logits, largest difference between GPU and CPU: {difference:.1e} (must be below 1e-4)")
    reference = losses("cpu", "fp32")
    for precision in ("fp32", "bf16"):
        worst = max(abs(a / b - 1) for a, b in zip(losses("cuda", precision), reference, strict=True))
        print(f"loss over 100 steps, GPU {precision} against CPU fp32: at most {worst:.2%} apart")


def mending() -> None:
    """Memory that is really used up is mended by fewer rows at once, and a resumed run goes on where it stood."""
    free, _ = torch.cuda.mem_get_info()
    filler = torch.empty(max(0, free - 6 * 2**30), dtype=torch.uint8, device="cuda")
    rows = 64
    settings = TrainingSettings(device="cuda", precision="bf16", batch_size=rows, micro_batch_size=rows, steps=2)
    trainer = Trainer(GPT(GPT2_SIZE), settings)
    trainer.fit([batch(GPT2_SIZE, rows)])
    print(f"{rows} rows in 6 GiB: mended by {trainer.state.most_rows} rows at once, {trainer.state.step} steps made")
    del filler, trainer
    torch.cuda.empty_cache()
    ends = []
    for parts in ([20], [10, 20]):
        with tempfile.TemporaryDirectory() as folder:
            for steps in parts:
                model = GPT(SMALL)
                model.reset_parameters(torch.Generator().manual_seed(0))
                settings = TrainingSettings(device="cuda", precision="bf16", steps=steps, schedule="constant")
                trainer = Trainer(model, settings, callbacks=[Checkpoints()], folder=Path(folder))
                if steps != parts[0]:
                    trainer.resume(Path(folder) / f"step-{parts[0]:08d}")
                trainer.fit([batch(SMALL, 8, seed=i) for i in range(7)])
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    print(f"resumed against unbroken, largest difference of a weight: {float((ends[0] - ends[1]).abs().max()):.1e}")


def timed(step: Callable[[], object], steps: int = 20) -> float:
    for _ in range(5):
        step()
    times = []
    for _ in range(steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def speed(rows: int = 16) -> None:
    spec = GPT2_SIZE
    peak = machine.measure_speed("cuda", "bf16").flops
    figures = {"bimo": ours(rows)}
    torch.cuda.empty_cache()
    try:
        figures["transformers"] = peer(rows)
    except ImportError:
        print("transformers is not installed: no peer")
    flops = GPT(spec).flops_per_token() * rows * spec.context_length
    print(f"\n124M parameters, {rows} x {spec.context_length} tokens, bf16, measured peak {peak / 1e12:.0f} TFLOP/s\n")
    print("| | tokens/s | share of peak | memory |\n|---|---|---|---|")
    for name, (seconds, memory) in figures.items():
        tokens = rows * spec.context_length / seconds
        print(f"| {name} | {tokens:,.0f} | {flops / seconds / peak:.0%} | {memory / 2**30:.1f} GiB |")


def ours(rows: int) -> tuple[float, int]:
    """Seconds of a step and peak bytes."""
    trainer = Trainer(GPT(GPT2_SIZE), TrainingSettings(device="cuda", precision="bf16", batch_size=rows))
    trainer.prepare_machine()
    one = batch(GPT2_SIZE, rows)
    torch.cuda.reset_peak_memory_stats()
    return timed(lambda: trainer.step(iter([one]))), torch.cuda.max_memory_allocated()


def peer(rows: int) -> tuple[float, int]:
    """GPT2LMHeadModel of the same shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50304, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = GPT2LMHeadModel(config).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids = batch(GPT2_SIZE, rows).ids.cuda()

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    torch.cuda.reset_peak_memory_stats()
    return timed(step), torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    assert torch.cuda.is_available(), "this needs a CUDA GPU"
    check()
    mending()
    speed()
