"""A run on many GPUs, on paper: memory, communication, time and failures, from shapes and data sheets alone.

The arithmetic behind `bimo plan --device h100 --gpus 512`; docs/scale.md holds it against published figures. Bytes are
those of bf16 computation over float32 weights: 4 for a weight, 4 for its gradient, 8 for the two moments of Adam, all
shared out by FSDP, and 2 for what is gathered to compute with. No torch in here.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

from bimo.core.spec import GATED, ModelSpec
from bimo.training.datasheets import DeviceSheet

Keeping = Literal["all", "selective", "blocks"]

_STATE = 4 + 4 + 8  # bytes per weight: itself, gradient, two moments
_HALF = 2  # bytes of a bf16 number
_GATHERED_BLOCKS = 2  # that are whole at a time: the one that computes and the next
_CONTEXT = 1.5e9  # CUDA itself, NCCL's buffers
_GPU_HOURS_PER_FAILURE = 54 * 24 * 16384 / 419  # Llama 3: 419 unexpected interruptions of 16,384 GPUs in 54 days
_OVERLAP = 0.9  # of the computation, under which FSDP's communication can hide


@dataclass(frozen=True)
class Layout:
    """How the GPUs share the work; their product is the number of GPUs.

    Attributes:
        replicas: Whole copies of the model (data parallel).
        shard: GPUs that share out a copy's weights and states, each with rows of its own (FSDP2).
        tensor: GPUs that share out every layer, with the same rows.
        pipeline: Groups of layers, one after the other; on paper only.
        interleaved: Pieces of each such group that take turns, which shortens the pipeline's idle time.
    """

    replicas: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1
    interleaved: int = 1

    @property
    def gpus(self) -> int:
        return self.replicas * self.shard * self.tensor * self.pipeline

    def __str__(self) -> str:
        names = {"data": self.replicas, "shard": self.shard, "tensor": self.tensor, "pipeline": self.pipeline}
        return " x ".join(f"{name} {count}" for name, count in names.items() if count > 1) or "one GPU"


@dataclass(frozen=True)
class Work:
    """What one GPU does in a step.

    Attributes:
        spec: The model.
        rows: Rows that a GPU reads in a step (a tensor-parallel group reads the same ones).
        micro_rows: Rows at once.
        keeping: Activations that are kept for the backward pass: all, the results of half the matrix products
            (selective), or one input per block (the rest is computed again).
        whole_logits: Whether all logits are held, in bf16 and float32, with their gradient; else they come in chunks.
    """

    spec: ModelSpec
    rows: int
    micro_rows: int = 1
    keeping: Keeping = "blocks"
    whole_logits: bool = False


def count_parameters(spec: ModelSpec) -> tuple[int, int]:
    """Weights in all, and those of one block, by arithmetic."""
    C, F = spec.d_model, spec.d_ff
    width, kv_width = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    block = C * (2 * width + 2 * kv_width) + (3 if spec.feedforward in GATED else 2) * C * F + 2 * C
    block += 2 * spec.head_dim if spec.qk_norm else 0
    outside = (1 if spec.tied_embeddings else 2) * spec.vocab_size * C + C
    return spec.n_layers * block + outside, block


def flops_per_token(spec: ModelSpec, *, causal: bool = True) -> float:
    """To train on one token: 6 per weight of a matrix product, and attention; not causal: all scores are counted, as
    torchtitan and Llama 3 do."""
    weights, _ = count_parameters(spec)
    weights -= spec.vocab_size * spec.d_model if not spec.tied_embeddings else 0  # looked up, not multiplied
    attention = spec.n_layers * spec.n_heads * spec.head_dim * spec.context_length
    return 6.0 * weights + (6.0 if causal else 12.0) * attention


def memory_per_gpu(work: Work, layout: Layout) -> dict[str, float]:
    """Bytes by part."""
    spec, t = work.spec, layout.tensor
    weights, block = count_parameters(spec)
    own = weights / (t * layout.pipeline)  # of this GPU's stage and share of the layers, before FSDP
    table = spec.vocab_size * spec.d_model / t
    if layout.pipeline > 1:  # a stage stays whole between micro-batches, and so does its gradient until the last one
        gathered = whole_gradient = own
    else:
        gathered = _GATHERED_BLOCKS * block / t + (1 if spec.tied_embeddings else 2) * table
        whole_gradient = block / t + table  # of what was just computed
    tokens = work.micro_rows * spec.context_length
    in_flight = min(layout.pipeline, max(1, work.rows // work.micro_rows))  # of a pipeline's first stage
    return {
        "weights, gradient, moments": _STATE * own / layout.shard,
        "gathered weights": _HALF * gathered if layout.shard > 1 else _HALF * own,
        "gradient before it is shared out": 4 * whole_gradient if layout.shard > 1 else 0.0,
        "activations": tokens * in_flight * _HALF * kept_per_token(spec, work.keeping) / (t * layout.pipeline),
        "one block at work": tokens * _HALF * kept_per_token(spec, "all") / (t * spec.n_layers),
        "logits": _logit_bytes(work) / t,
        "CUDA and NCCL": _CONTEXT,
    }


def kept_per_token(spec: ModelSpec, keeping: Keeping) -> float:
    """Numbers that the forward pass keeps of each token, over all layers."""
    C, F = spec.d_model, spec.d_ff
    width, kv_width = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    gates = 2 if spec.feedforward in GATED else 1
    products = 2 * C + width + 2 * kv_width + gates * F  # results of matrix products
    if keeping == "blocks":
        each = float(C)
    elif keeping == "selective":
        each = C + width + products / 2
    else:
        each = 3 * C + 2 * width + products + (gates + 1) * F / 2
    return spec.n_layers * each


def _logit_bytes(work: Work) -> float:
    """All logits: in bf16 and float32, as log-probabilities, and their gradient; or one chunk of a loss in chunks."""
    tokens = work.micro_rows * work.spec.context_length
    whole = tokens * work.spec.vocab_size * (_HALF + 4 + 4 + _HALF)
    return whole if work.whole_logits else min(whole, 2.0**27 * (4 + 4))


@dataclass(frozen=True)
class Traffic:
    """What one GPU sends in a step.

    Attributes:
        shard_bytes: Weights gathered for forward and backward pass, gradients shared out.
        replica_bytes: Gradients between copies.
        tensor_bytes: Activations between the GPUs of a layer.
        hidden_s: Seconds of it that can run beside the computation.
        open_s: Seconds in which the GPU waits.
    """

    shard_bytes: float
    replica_bytes: float
    tensor_bytes: float
    hidden_s: float
    open_s: float


def traffic(work: Work, layout: Layout, sheet: DeviceSheet) -> Traffic:
    """Rings: each GPU sends (n - 1) / n of what is gathered or reduced; gradients are reduced in float32."""
    spec, t, s = work.spec, layout.tensor, layout.shard
    own = count_parameters(spec)[0] / (t * layout.pipeline)
    passes = max(1, work.rows // work.micro_rows)
    shard_bytes = (s - 1) / s * (2 * _HALF + 4) * own * (passes if s > 1 else 0)
    copies = layout.replicas
    replica_bytes = 2 * (copies - 1) / copies * 4 * own / s
    # Sequence parallel: gather and reduce around attention and feed-forward part, in both directions; once more where
    # blocks are computed again.
    crossings = 8 + (4 if work.keeping == "blocks" else 0)
    tokens = work.rows * spec.context_length
    layers = spec.n_layers / layout.pipeline
    tensor_bytes = (t - 1) / t * crossings * layers * tokens * spec.d_model * _HALF
    inside = sheet.per_node // t
    shard_s = shard_bytes / (sheet.link if s <= inside else sheet.network)
    replica_s = replica_bytes / (sheet.link if s * copies <= inside else sheet.network)
    tensor_s = tensor_bytes / (sheet.link if t <= sheet.per_node else sheet.network)
    return Traffic(shard_bytes, replica_bytes, tensor_bytes, shard_s + replica_s, tensor_s)


@dataclass(frozen=True)
class StepTime:
    """One update on many GPUs.

    Attributes:
        compute_s: Matrix products at the assumed share of the peak.
        waiting_s: Communication that nothing hides, and the pipeline's bubble.
        mfu: Share of the peak that remains, recomputation not counted as work.
    """

    compute_s: float
    waiting_s: float
    mfu: float

    @property
    def seconds(self) -> float:
        return self.compute_s + self.waiting_s


def step_time(work: Work, layout: Layout, sheet: DeviceSheet, utilisation: float) -> StepTime:
    """An update's time.

    Args:
        work: Of one GPU.
        layout: How the GPUs share it.
        sheet: What a GPU can do.
        utilisation: Share of the peak that one GPU alone reaches, recomputation not counted.
    """
    split = layout.tensor * layout.pipeline
    useful = flops_per_token(work.spec, causal=False) * work.rows * work.spec.context_length / split
    compute_s = useful / (sheet.bf16_flops * utilisation)
    sent = traffic(work, layout, sheet)
    micro = max(1, work.rows // work.micro_rows)
    bubble = (layout.pipeline - 1) / (micro * layout.interleaved)  # of the time in which a stage works
    waiting = sent.open_s + max(0.0, sent.hidden_s - _OVERLAP * compute_s)
    waiting += (compute_s + sent.open_s) * bubble
    return StepTime(compute_s, waiting, useful / sheet.bf16_flops / (compute_s + waiting))


def failure_interval_s(gpus: int, gpu_hours: float = _GPU_HOURS_PER_FAILURE) -> float:
    """Mean time between failures of a job; one GPU's failure ends all."""
    return gpu_hours * 3600 / gpus


def best_interval_s(checkpoint_s: float, between_failures_s: float) -> float:
    """How often to save (Young 1974, with Daly's 2006 next terms)."""
    ratio = checkpoint_s / (2 * between_failures_s)
    if ratio >= 1:
        return between_failures_s
    plain = math.sqrt(2 * checkpoint_s * between_failures_s)
    return plain * (1 + math.sqrt(ratio) / 3 + ratio / 9) - checkpoint_s


def useful_share(interval_s: float, checkpoint_s: float, restart_s: float, between_failures_s: float) -> float:
    """Share of the time that ends in the result, with failures at random moments (Daly 2006)."""
    M = between_failures_s
    return interval_s / (M * math.exp(restart_s / M) * math.expm1((interval_s + checkpoint_s) / M))


def simulate(
    work_s: float, interval_s: float, checkpoint_s: float, restart_s: float, between_failures_s: float, seed: int
) -> tuple[float, int]:
    """Live through a run with failures at random moments: its time in all, and how many there were.

    A failure loses what came after the last whole checkpoint; the restart can fail as well.
    """
    chance = random.Random(seed)
    now, saved, failures = 0.0, 0.0, 0
    next_failure = chance.expovariate(1 / between_failures_s)
    while saved < work_s:
        piece = min(interval_s, work_s - saved)
        end = now + piece + checkpoint_s
        if end <= next_failure:
            now, saved = end, saved + piece
            continue
        failures += 1
        now, next_failure = next_failure, next_failure + chance.expovariate(1 / between_failures_s)
        while now + restart_s > next_failure:
            failures += 1
            now, next_failure = next_failure, next_failure + chance.expovariate(1 / between_failures_s)
        now += restart_s
    return now, failures
