"""Everything that needs a GPU, in one call: is it right, and how fast is a training step beside named peers?

    python benchmarks/gpu.py                                  # all parts, some four minutes
    python benchmarks/gpu.py --parts speed124m --profile      # one part, with the kernels that take the time
    python benchmarks/gpu.py --tiny --device cpu              # a rehearsal: small models, every part

Parts: check (fp32 on the GPU against the CPU, bf16 against fp32), mending (used-up memory, resume), speed124m, speed1b.
A part or a contender that fails is reported, and the rest goes on. All contenders train on the same batches with fp32
master weights and bf16 products, and update after the same number of tokens; rows per forward pass are those asked for,
halved where they do not fit. MFU counts operations as in PaLM (Chowdhery et al. 2022), once with the causal half of
attention and once with all of it, as nanoGPT and torchtitan count, over the data sheet's peak.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bimo import GPT, ModelSpec, Trainer, TrainingSettings
from bimo.core import machine
from bimo.core.batch import Batch
from bimo.core.errors import UserError
from bimo.training import Checkpoints
from bimo.training.datasheets import peak_flops
from bimo.training.faults import Fault

SMALL = ModelSpec(n_layers=4, n_heads=4, n_kv_heads=2, d_model=256, vocab_size=1024, context_length=256)
SIZES = {  # spec, rows per update, rows per forward pass
    "speed124m": (ModelSpec(n_layers=12, n_heads=12, d_model=768, vocab_size=50304, context_length=1024), 128, 64),
    "speed1b": (ModelSpec(n_layers=18, n_heads=16, d_model=2048, vocab_size=50304, context_length=2048), 32, 8),
}
TINY = (ModelSpec(n_layers=2, n_heads=2, d_model=64, vocab_size=512, context_length=64), 4, 2)
Step = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """What all contenders of a part do."""

    spec: ModelSpec
    rows: int
    micro: int
    device: str
    steps: int
    profile: bool

    def batches(self) -> Iterator[Batch]:
        """The same few batches in turn, in the memory of the CPU, as data come."""
        made = [batch(self.spec, self.rows, seed) for seed in range(3)]
        while True:
            yield from made

    @property
    def amp(self) -> Any:
        return torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.device != "cpu")


def batch(spec: ModelSpec, rows: int, seed: int = 0) -> Batch:
    ids = torch.randint(spec.vocab_size, (rows, spec.context_length + 1), generator=torch.Generator().manual_seed(seed))
    return Batch(ids=ids[:, :-1].clone(), targets=ids[:, 1:].clone(), weights=torch.ones(rows, spec.context_length))


def say(text: str = "") -> None:
    print(text, flush=True)


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def losses(device: str, precision: str, execution: str, optimizer: str, steps: int) -> list[float]:
    """The losses of the same training on a device."""
    model = GPT(SMALL)
    model.reset_parameters(torch.Generator().manual_seed(0))
    choices = {"device": device, "precision": precision, "steps": 100, "warmup_steps": 10, "execution": execution}
    trainer = Trainer(model, TrainingSettings.from_dict(choices | {"optimizer": optimizer}))
    trainer.prepare_machine()
    stream = (batch(SMALL, 8, seed=i % 10) for i in range(steps))
    return [trainer.step(stream).loss for _ in range(steps)]


def check(device: str, steps: int = 100) -> None:
    model, ids = GPT(SMALL), batch(SMALL, 2).ids
    on_cpu = model(ids).detach()
    difference = float((model.to(device)(ids.to(device)).detach().cpu() - on_cpu).abs().max())
    say(f"fp32 logits, largest difference between {device} and CPU: {difference:.1e} (must be below 1e-4)")
    ways = [("fp32", "eager"), ("bf16", "compiled"), ("fp32", "compiled"), ("bf16", "eager")]
    for optimizer, few in (("adamw", ways), ("muon", ways[:2])):
        reference = losses("cpu", "fp32", "eager", optimizer, steps)
        for precision, execution in few:
            found = losses(device, precision, execution, optimizer, steps)
            worst = max(abs(a / b - 1) for a, b in zip(found, reference, strict=True))
            what = f"{optimizer}, {steps} steps, {device} {precision} {execution}"
            say(f"loss over {what} against CPU fp32: at most {worst:.3%} apart")


def mending(device: str) -> None:
    """Memory that is really used up is mended by fewer rows at once, and a resumed run goes on where it stood."""
    if device.startswith("cuda"):
        spec, rows = SIZES["speed124m"][0], 64
        free, _ = torch.cuda.mem_get_info()
        filler = torch.empty(max(0, free - 8 * 2**30), dtype=torch.uint8, device=device)
        chosen = {"device": device, "precision": "bf16", "batch_size": rows, "micro_batch_size": rows, "steps": 2}
        trainer = Trainer(GPT(spec), TrainingSettings.from_dict(chosen | {"execution": "eager"}))
        trainer.fit([batch(spec, rows)])
        say(f"{rows} rows in 8 GiB: mended by {trainer.state.most_rows} rows at once, {trainer.state.step} steps made")
        del filler, trainer
        clear()
    ends = []
    for parts in ([20], [10, 20]):
        with tempfile.TemporaryDirectory() as folder:
            for steps in parts:
                model = GPT(SMALL)
                model.reset_parameters(torch.Generator().manual_seed(0))
                chosen = {"device": device, "precision": "bf16", "steps": steps, "schedule": "constant"}
                settings = TrainingSettings.from_dict(chosen | {"execution": "compiled"})
                trainer = Trainer(model, settings, callbacks=[Checkpoints()], folder=Path(folder))
                if steps != parts[0]:
                    trainer.resume(Path(folder) / f"step-{parts[0]:08d}")
                trainer.fit([batch(SMALL, 8, seed=i) for i in range(7)])
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    say(f"resumed against unbroken, largest difference of a weight: {float((ends[0] - ends[1]).abs().max()):.1e}")


def ours(job: Job, optimizer: str, execution: str) -> tuple[Step, str]:
    """A step of this trainer, as it is."""
    model = GPT(job.spec)
    chosen = {"device": job.device, "batch_size": job.rows, "micro_batch_size": job.micro, "optimizer": optimizer}
    precision = "fp32" if job.device == "cpu" else "bf16"
    trainer = Trainer(model, TrainingSettings.from_dict(chosen | {"precision": precision, "execution": execution}))
    events: list[str] = []
    trainer.event = lambda kind, /, **facts: events.append(str(facts.get("what", kind)))  # type: ignore[method-assign]
    trainer.execution.tell = trainer.event
    trainer.prepare_machine()
    stream = job.batches()
    trainer.step(stream)  # makes the choice
    return lambda: trainer.step(stream), "; ".join(events)


def plain_step(model: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], job: Job) -> Step:
    """The textbook step for a peer: micro-batches, clipping, fused AdamW."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    stream = job.batches()

    def step() -> float:
        read = next(stream)
        total = torch.zeros((), device=job.device)
        for part in read.split(job.micro):
            ids, targets = part.ids.to(job.device, non_blocking=True), part.targets.to(job.device, non_blocking=True)
            with job.amp:
                loss = loss_of(ids, targets) * (part.n_rows / read.n_rows)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item()

    return step


def transformers_model(job: Job, family: str) -> nn.Module:
    """GPT-2, or Qwen3, which is our own default: the same tensors of the same shapes."""
    import transformers as hf

    spec = job.spec
    common = {"vocab_size": spec.vocab_size, "attn_implementation": "sdpa", "use_cache": False}
    if family == "gpt2":
        shape = {"n_layer": spec.n_layers, "n_head": spec.n_heads, "n_embd": spec.d_model}
        dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return hf.GPT2LMHeadModel(hf.GPT2Config(n_positions=spec.context_length, **shape, **dropouts, **common))
    config = hf.Qwen3Config(
        hidden_size=spec.d_model,
        intermediate_size=spec.d_ff,
        num_hidden_layers=spec.n_layers,
        num_attention_heads=spec.n_heads,
        num_key_value_heads=spec.n_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.context_length,
        tie_word_embeddings=True,
        **common,
    )
    return hf.Qwen3ForCausalLM(config)


def theirs(job: Job, family: str, *, compiled: bool = False) -> tuple[Step, str]:
    model = transformers_model(job, family).to(job.device).train()
    call: Any = torch.compile(model, dynamic=False) if compiled else model

    def loss_of(ids: Tensor, targets: Tensor) -> Tensor:
        return call(input_ids=ids, labels=ids, shift_labels=targets).loss

    return plain_step(model, loss_of, job), f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M weights"


class LeanBlock(nn.Module):
    """What a lean training script writes: joined projections, rotary, norms without weights, SwiGLU."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads, self.d = spec.n_heads, spec.head_dim
        self.qkv = nn.Linear(spec.d_model, 3 * spec.d_model, bias=False)
        self.out = nn.Linear(spec.d_model, spec.d_model, bias=False)
        self.up = nn.Linear(spec.d_model, 2 * spec.d_ff, bias=False)
        self.down = nn.Linear(spec.d_ff, spec.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(norm(x)).view(B, T, 3, self.heads, self.d).unbind(2)
        q, k = (norm(turn(y, cos, sin)).transpose(1, 2) for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        gate, up = self.up(norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)


class Lean(nn.Module):
    """A minimal GPT with all logits in memory, compiled as a whole, as nanoGPT and nanochat do it."""

    cos: Tensor
    sin: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed = nn.Embedding(spec.vocab_size, spec.d_model)
        self.blocks = nn.ModuleList(LeanBlock(spec) for _ in range(spec.n_layers))
        self.head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.02)
        frequencies = 10000.0 ** (-torch.arange(0, spec.head_dim, 2) / spec.head_dim)
        angles = torch.outer(torch.arange(spec.context_length), frequencies)[None, :, None]
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = norm(self.embed(ids))
        if x.is_cuda:
            x = x.bfloat16()
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(norm(x)).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def lean(job: Job) -> tuple[Step, str]:
    model = Lean(job.spec).to(job.device)
    return plain_step(model, torch.compile(model, dynamic=False), job), "torch.compile of the whole model"


def contenders(spec: ModelSpec, device: str) -> dict[str, Callable[[Job], tuple[Step, str]]]:
    auto = "auto" if device.startswith("cuda") else "compiled"
    found: dict[str, Callable[[Job], tuple[Step, str]]] = {
        "bimo, adamw": partial(ours, optimizer="adamw", execution=auto),
        "transformers, Qwen3 of this shape": partial(theirs, family="qwen3"),
        "bimo, muon": partial(ours, optimizer="muon", execution=auto),
        "lean, compiled": lean,
        "bimo, adamw, eager": partial(ours, optimizer="adamw", execution="eager"),
        "transformers, Qwen3, compiled": partial(theirs, family="qwen3", compiled=True),
    }
    if spec.d_model <= 768:
        found["transformers, GPT-2"] = partial(theirs, family="gpt2")
    return found


def timed(step: Step, job: Job) -> float:
    """Median seconds of a step."""
    for _ in range(2):
        step()
    times = []
    for _ in range(job.steps):
        wait(job.device)
        start = time.perf_counter()
        step()
        wait(job.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def race(name: str, make: Callable[[Job], tuple[Step, str]], job: Job) -> tuple[float, float, Job, str]:
    """Seconds of a step, peak GiB, the job with the rows that fitted, and a remark."""
    cuda = job.device.startswith("cuda")
    while True:
        clear()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            step, remark = make(job)
            seconds = timed(step, job)
            if job.profile and name.startswith(("bimo", "lean")):
                show_kernels(step, name)
            return seconds, torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0, job, remark
        except (torch.OutOfMemoryError, Fault) as error:
            if job.micro == 1 or (isinstance(error, Fault) and error.kind != "out of memory"):
                raise
            job = Job(job.spec, job.rows, job.micro // 2, job.device, job.steps, job.profile)
        step = None


def show_kernels(step: Step, name: str, most: int = 28) -> None:
    """The kernels of one step that take the most time, and how long the GPU waited."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        wall = (time.perf_counter() - start) * 1e3
    rows = [
        (e.self_device_time_total / 1e3, e.count, e.key) for e in found.key_averages() if e.device_type.name == "CUDA"
    ]
    busy = sum(row[0] for row in rows)
    say(f"kernels of {name}: {busy:.1f} ms busy of {wall:.1f} ms")
    for ms, count, key in sorted(rows, reverse=True)[:most]:
        say(f"  {ms:8.2f} ms {ms / max(busy, 1e-9):5.1%} {count:5d} x {key[:110]}")


def speed(job: Job, title: str, wanted: list[str], until: float) -> None:
    model = GPT(job.spec)
    tokens = job.rows * job.spec.context_length
    flops, more = model.flops_per_token() * tokens, 6.0 * job.spec.n_layers * job.spec.d_model * job.spec.context_length
    whole = flops + more * tokens
    peak = peak_flops(torch.cuda.get_device_name()) if job.device.startswith("cuda") else 0.0
    peak = peak or machine.measure_speed(job.device, "fp32" if job.device == "cpu" else "bf16").flops
    size = f"{job.rows} x {job.spec.context_length} tokens"
    say(f"\n{title}: {model.n_parameters() / 1e6:.0f}M parameters, updates of {size}")
    del model
    say(f"{flops / tokens / 1e6:.0f} MFLOP a token, peak {peak / 1e12:.0f} TFLOP/s\n")
    head = ("", "tokens/s", "MFU", "MFU, all of attention", "step ms", "GiB", "rows at once", "s until timed", "remark")
    say("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, make in contenders(job.spec, job.device).items():
        if wanted and not any(word in name for word in wanted):
            continue
        if time.perf_counter() > until:
            say(f"| {name} | left out: no time left |")
            continue
        start = time.perf_counter()
        try:
            seconds, memory, used, remark = race(name, make, job)
        except Exception as error:  # whatever a rival stumbles over, the other rows are still wanted
            say(f"| {name} | failed: {type(error).__name__}: {' '.join(str(error).split())[:300]} |")
            if not isinstance(error, UserError):
                traceback.print_exc(limit=-4, file=sys.stdout)
            continue
        before = time.perf_counter() - start - job.steps * seconds
        cells = (f"{tokens / seconds:,.0f}", f"{flops / seconds / peak:.1%}", f"{whole / seconds / peak:.1%}")
        cells = (*cells, f"{seconds * 1e3:.1f}", f"{memory:.1f}", str(used.micro), f"{before:.0f}", remark)
        say(f"| {name} | {' | '.join(cells)} |")
    clear()


def clear() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ceilings(device: str) -> None:
    """What this card reaches in the two things that a step is made of."""
    if not device.startswith("cuda"):
        return
    found = machine.measure_speed(device, "bf16")
    say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    say(f"measured: {found.flops / 1e12:.0f} TFLOP/s in bf16, {found.read_bytes / 1e12:.2f} TB/s read")
    a, b = (torch.randn(65536, n, device=device, dtype=torch.bfloat16) for n in (768, 2048))
    w = torch.randn(768, 2048, device=device, dtype=torch.bfloat16)
    for what, work in (("65536 x 768 @ 768 x 2048", lambda: a @ w), ("its weight gradient", lambda: a.T @ b)):
        seconds = min(once(work) for _ in range(10))
        say(f"{what}: {2 * 65536 * 768 * 2048 / seconds / 1e12:.0f} TFLOP/s")


def once(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="speed124m,speed1b,check,mending")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="contenders whose names hold one of these words, parted by commas")
    parser.add_argument("--rows", type=int, default=0, help="rows per update; 0: those of the size")
    parser.add_argument("--micro", type=int, default=0, help="rows per forward pass; 0: those of the size")
    parser.add_argument("--heads", type=int, default=0, help="attention heads; 0: those of the size")
    parser.add_argument("--steps", type=int, default=6, help="timed steps")
    parser.add_argument("--seconds", type=float, default=230, help="after these nothing new is begun")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    until, failed = time.perf_counter() + chosen.seconds, 0
    ceilings(chosen.device)
    for part in chosen.parts.split(","):
        start = time.perf_counter()
        if start > until:
            say(f"{part}: left out, no time left")
            continue
        try:
            if part == "check":
                check(chosen.device, steps=5 if chosen.tiny else 100)
            elif part == "mending":
                mending(chosen.device)
            else:
                spec, rows, micro = TINY if chosen.tiny else SIZES[part]
                if chosen.heads:
                    spec = ModelSpec.from_dict(
                        spec.to_dict() | {"n_heads": chosen.heads, "n_kv_heads": 0, "head_dim": 0, "rotary_dim": 0}
                    )
                rows, micro = chosen.rows or rows, chosen.micro or micro
                job = Job(spec, rows, micro, chosen.device, chosen.steps, chosen.profile)
                speed(job, part, [word for word in chosen.only.split(",") if word], until)
        except Exception:  # the other parts are still wanted; the exit status tells
            failed += 1
            say(f"{part} failed:")
            traceback.print_exc(file=sys.stdout)
        say(f"({part}: {time.perf_counter() - start:.0f} s)")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
