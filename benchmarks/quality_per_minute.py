"""How long until bimo is as good as a nanoGPT-style recipe is at its end: same text, tokens, parameters and cores.

The peer is written here from its published settings: GPT-2's shape, AdamW at 1e-3 with a cosine to 1e-4, no dropout.
small: 4 layers, 4 heads, width 128, context 64, 12 rows, 2,000 steps. large: 6 layers, 6 heads, width 384, context 256,
16 rows, as many steps as fit into 30 minutes (its schedule ends there). bimo takes its defaults, as a model that other
engines load (Qwen3's), for a sixth (small) or a quarter (large) of the seconds that the peer took.

Bytes are the tokens. Each run is a process of its own; both have the same allocator settings. Looking at held-out text
does not count, for both. The table says the loss of both ends, and when bimo's curve passed the peer's end.

    python benchmarks/quality_per_minute.py --size small --text train.txt --held_out valid.txt --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BYTES = 256
HEAP = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}


@dataclass(frozen=True)
class Size:
    """One of the peer's published settings, and what bimo takes in its place.

    Attributes:
        layers: Of the peer, as are heads, width, rows and steps (0: as many as fit into `seconds`).
        context: Of both.
        share: Of the peer's seconds that bimo gets.
        ours: bimo's shape, with no more parameters than the peer's.
        our_rows: Rows of a batch of bimo's.
        every: Steps of bimo's between two looks at the held-out text.
    """

    layers: int
    heads: int
    width: int
    context: int
    rows: int
    steps: int
    seconds: float
    share: float
    ours: dict[str, Any]
    our_rows: int
    every: int


QWEN3 = {"tied_embeddings": False, "rope_theta": 1000.0}  # a context is short here
OURS_SMALL = {"n_layers": 4, "n_heads": 4, "d_model": 128, "d_ff": 320, **QWEN3}
OURS_LARGE = {"n_layers": 8, "n_heads": 5, "d_model": 320, "d_ff": 928, **QWEN3}
SIZES = {
    "small": Size(4, 4, 128, 64, 12, 2000, 0.0, 1 / 6, OURS_SMALL, 12, 20),
    "large": Size(6, 6, 384, 256, 16, 0, 1800.0, 1 / 4, OURS_LARGE, 8, 60),
}


class PeerBlock(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.before_attention, self.before_inner = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        x = x + self.out(y.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.before_inner(x))))


class Peer(nn.Module):
    """GPT-2's shape without biases: learned positions, LayerNorm, GELU, tied embeddings, GPT-2's initial weights."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(BYTES, size.width)
        self.places = nn.Embedding(size.context, size.width)
        self.blocks = nn.Sequential(*(PeerBlock(size) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                out = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * size.layers) if out else 1))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


def crops(data: Tensor, rows: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random pieces of the text: what is read and what follows, (rows, context) each."""
    random = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(data) - context, (rows,), generator=random)
        pieces = data[starts[:, None] + torch.arange(context + 1)].long()
        yield pieces[:, :-1], pieces[:, 1:]


@torch.no_grad()
def held_out_loss(model: nn.Module, data: Tensor, context: int) -> float:
    """Nats per byte on all of the text, cut into pieces of the context."""
    whole = data[: (len(data) - 1) // context * context + 1].long()
    ids, targets = whole[:-1].view(-1, context), whole[1:].view(-1, context)
    model.eval()
    total = sum(
        F.cross_entropy(model(i).flatten(0, 1), t.flatten(), reduction="sum").item()
        for i, t in zip(ids.split(32), targets.split(32), strict=True)
    )
    model.train()
    return total / targets.numel()


def train_peer(size: Size, text: Tensor, held_out: Tensor, seed: int) -> dict[str, object]:
    """The peer's recipe, to its end."""
    torch.manual_seed(seed)
    model = Peer(size)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    batches = crops(text, size.rows, size.context, seed)
    steps, used, times, warmup = size.steps, 0.0, list[float](), 100
    while not steps or len(times) < steps:
        start, step = time.perf_counter(), len(times)
        planned = steps or max(step + 1, round(size.seconds / (statistics.median(times) if times else 1e9)))
        done = max(0, step - warmup) / max(1, planned - warmup)
        rate = 1e-3 * (step + 1) / (warmup + 1) if step < warmup else 1e-4 + 9e-4 * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, targets = next(batches)
        F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
        used += times[-1]
        if not steps and len(times) == 60:  # before the cosine begins
            steps = round(size.seconds / statistics.median(times[10:]))
    n_parameters = sum(p.numel() for p in parameters)
    loss = held_out_loss(model, held_out, size.context)
    return {"loss": loss, "seconds": used, "steps": steps, "parameters": n_parameters, "curve": []}


def train_bimo(size: Size, text: Tensor, held_out: Tensor, seed: int, seconds: float) -> dict[str, object]:
    """bimo's defaults, for as many steps as the seconds hold."""
    from bimo import GPT, ModelSpec, Trainer, TrainingSettings
    from bimo.core.batch import Batch
    from bimo.training import TimeBudget

    spec = ModelSpec.from_dict({**size.ours, "vocab_size": BYTES, "context_length": size.context})
    settings = TrainingSettings(
        steps=10 * round(seconds), batch_size=size.our_rows, seed=seed, precision="fp32",
        evaluate_every=size.every, callbacks=["short_rows", "growing_depth"],
    )  # fmt: skip
    curve: list[tuple[float, float]] = []

    def batches() -> Iterator[Batch]:
        for ids, targets in crops(text, size.our_rows, size.context, seed):
            yield Batch(ids, targets, torch.ones(ids.shape))

    def look(model: nn.Module) -> dict[str, float]:
        nonlocal begun
        now = time.perf_counter()
        loss = held_out_loss(model, held_out, size.context)
        curve.append((now - begun, loss))
        begun += time.perf_counter() - now  # looking does not count
        return {"loss": loss}

    model = GPT(spec)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    budget = TimeBudget(seconds, clock=lambda: time.perf_counter() - begun)
    trainer = Trainer(model, settings, callbacks=[budget], evaluate_fn=look)
    begun = time.perf_counter()  # as for the peer: a ready model and optimizer do not count
    trainer.fit(batches())
    return {
        "loss": curve[-1][1],
        "seconds": curve[-1][0],
        "steps": trainer.state.step,
        "parameters": model.n_parameters(),
        "curve": curve,
    }


def read(path: str) -> Tensor:
    """The bytes of a text, (n,)."""
    raw = Path(path).read_bytes()
    if path.endswith(".gz"):
        import gzip

        raw = gzip.decompress(raw)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def child(arguments: argparse.Namespace) -> None:
    """One run in this process; its result as JSON on the last line."""
    if arguments.child == "bimo":
        import bimo  # noqa: F401 - before torch computes, as `bimo train` does: it settles how threads wait
    torch.set_num_threads(arguments.threads)
    size, text, held_out = SIZES[arguments.size], read(arguments.text), read(arguments.held_out)
    if arguments.peer_seconds:
        size = replace(size, seconds=arguments.peer_seconds)
    run: Callable[[], dict[str, object]] = {
        "peer": lambda: train_peer(size, text, held_out, arguments.seeds[0]),
        "bimo": lambda: train_bimo(size, text, held_out, arguments.seeds[0], arguments.seconds),
    }[arguments.child]
    print(json.dumps(run()))


def launched(name: str, arguments: argparse.Namespace, seed: int, seconds: float = 0.0) -> dict[str, float]:
    """The result of a run in a process of its own."""
    command = [sys.executable, __file__, "--child", name, "--size", arguments.size, "--text", arguments.text]
    command += ["--held_out", arguments.held_out, "--seeds", str(seed), "--seconds", str(seconds)]
    command += ["--threads", str(arguments.threads), "--peer_seconds", str(arguments.peer_seconds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **HEAP})
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--text", required=True, help="a .txt or .txt.gz file to train on")
    parser.add_argument("--held_out", required=True, help="a file to measure on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.0, help="bimo's share of the peer's seconds")
    parser.add_argument("--peer_seconds", type=float, default=0.0, help="for large, in place of 1800")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=["peer", "bimo"], help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    share = arguments.share or SIZES[arguments.size].share
    print(f"{arguments.size}, {Path(arguments.text).name}, bimo gets {share:.3f} of the peer's seconds\n")
    print("| seed | peer: parameters | seconds | loss | bimo: parameters | seconds | loss | passed after | ratio |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    ratios = []
    for seed in arguments.seeds:
        peer = launched("peer", arguments, seed)
        ours = launched("bimo", arguments, seed, peer["seconds"] * share)
        passed = [at for at, loss in ours["curve"] if loss <= peer["loss"]]  # type: ignore[attr-defined]
        ratios.append(passed[0] / peer["seconds"] if passed else math.inf)
        when = f"{passed[0]:.1f} s | {ratios[-1]:.3f}" if passed else "not | –"
        print(
            f"| {seed} | {peer['parameters']:,} | {peer['seconds']:.1f} | {peer['loss']:.4f} "
            f"| {ours['parameters']:,} | {ours['seconds']:.1f} | {ours['loss']:.4f} | {when} |",
            flush=True,
        )
    print(f"\nmedian share of the peer's time until its final loss: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
