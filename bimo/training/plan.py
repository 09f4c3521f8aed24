"""What a run will take, said before it starts: memory by part, the time of a step, the time of the whole.

A plan rests on a probe, the first updates of the run itself (`probe.py`). A model that is too large to be tried is
computed instead, from its shapes and the speed of the machine; that is less exact, and the plan says which it was.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bimo.core.config import RunSettings
from bimo.core.registry import name_and_parameters
from bimo.core.spec import GATED, ModelSpec
from bimo.model.gpt import GPT
from bimo.training.callbacks import GrowingDepth, callback_by_name
from bimo.training.callbacks.growing_depth import work_besides
from bimo.training.callbacks.progress import duration
from bimo.training.probe import Measured

_FLOAT = 4
_PROCESS = 350e6  # Python, torch and what the preparation of the text leaves behind
_HEAP = 1.8  # what the heap takes for each byte of activations: freed blocks lie between those that stay (measured)
_GROWTH = (0.1, 0.1, 0.06, 0.03, 0.0)  # by which the heap still grows after so many updates and one (measured)
_CHUNK = 3 * 16e6  # logits of the loss, their gradient and a copy
_MICRO_TOKENS = 2048
_STATES, _STATES_SHARE = 2, 0.25  # good states that the watchdog keeps, of the free memory at the most
_MARGIN = 1.1  # a plan may be wrong by a tenth, so what needs all of the memory does not fit
_UTILISATION = 0.5  # of the measured matrix speed, where no step could be tried
_SNAPSHOT_EVERY = 25


@dataclass(frozen=True)
class Sizes:
    """What follows from the shapes alone.

    Attributes:
        parameters: Weights, a tied matrix once.
        matrices: Weights in the matrices of the blocks.
        flops_per_token: To train on one token.
        activations_per_token: Numbers that the forward pass keeps for the backward pass.
    """

    parameters: int
    matrices: int
    flops_per_token: float
    activations_per_token: int


def sizes(spec: ModelSpec) -> Sizes:
    """Count without any memory: the model is made of shapes alone."""
    with torch.device("meta"):
        model = GPT(spec)
    matrices = sum(p.numel() for p in model.layers.parameters() if p.dim() >= 2)
    width, kv_width = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    # Kept of a block: its two inputs, queries, keys, values, what attention gives (twice), gate and up. Norms,
    # rotations and the product of gate and up are computed again (model/recompute.py).
    inside = (2 if spec.feedforward in GATED else 1) * spec.d_ff
    inside = spec.n_experts_per_token * inside * spec.d_expert // spec.d_ff if spec.n_experts else inside
    block = 2 * spec.d_model + 3 * width + 2 * kv_width + inside
    return Sizes(model.n_parameters(), matrices, model.flops_per_token(), spec.n_layers * block + 2 * spec.d_model)


def average_cost(settings: RunSettings, own: Sizes) -> float:
    """Of an update of the run, against one of the whole depth: less than 1 where the depth grows."""
    named = [text for text in settings.training.callbacks if name_and_parameters(text)[0] == "growing_depth"]
    spec = settings.model
    besides = work_besides(spec.vocab_size * spec.d_model, own.matrices / spec.n_layers)
    made = [callback_by_name(text, {}) for text in named]
    return math.prod(c.average_cost(spec.n_layers, besides) for c in made if isinstance(c, GrowingDepth))


@dataclass(frozen=True)
class Facts:
    """What is known of text and machine.

    Attributes:
        text_bytes: Of the text, decoded; 0: no text was named.
        tokens: In it, for training; 0: unknown.
        held_out: Tokens to measure on.
        available: Bytes of memory that the run may take; 0: unknown.
        flops: Matrix products of the device, per second; 0: not measured.
        start_s: From the command to the first line of its work.
        prepare_s: Looking at the text, tokenizer and shards.
    """

    text_bytes: int = 0
    tokens: int = 0
    held_out: int = 0
    available: int = 0
    flops: float = 0.0
    start_s: float = 0.0
    prepare_s: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A run, foretold.

    Attributes:
        settings: What was planned.
        sizes: What follows from its shapes.
        facts: Of the text and the machine.
        memory: Bytes by part.
        seconds: Time by part.
        step_s: One update at the end of the run.
        mean_cost: An average update against that.
        measured: Whether a probe was run; else all is computed.
        note: Something that a person should know besides.
        advice: What to lower; '' where all fits.
    """

    settings: RunSettings
    sizes: Sizes
    facts: Facts
    memory: dict[str, float]
    seconds: dict[str, float]
    step_s: float
    measured: bool
    note: str = ""
    advice: str = ""
    mean_cost: float = 1.0

    @property
    def fits(self) -> bool:
        """Whether the memory suffices, with a tenth to spare; where it is unknown, it is hoped for."""
        return not self.advice

    @property
    def total_memory(self) -> float:
        return sum(self.memory.values())

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    @property
    def tokens(self) -> int:
        """That the run reads."""
        return self.settings.training.steps * tokens_per_step(self.settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "fits": self.fits,
            "advice": self.advice,
            "note": self.note,
            "measured": self.measured,
            "parameters": self.sizes.parameters,
            "tokens": self.tokens,
            "tokens_per_parameter": self.tokens / self.sizes.parameters,
            "memory_bytes": self.total_memory,
            "memory": self.memory,
            "available_bytes": self.facts.available,
            "step_seconds": self.step_s,
            "mean_step_seconds": self.step_s * self.mean_cost,
            "total_seconds": self.total_seconds,
            "seconds": self.seconds,
            "text": asdict(self.facts),
            "settings": self.settings.to_dict(),
        }


def tokens_per_step(settings: RunSettings) -> int:
    """Tokens of one update."""
    return settings.training.batch_size * settings.model.context_length


def micro_tokens(settings: RunSettings, device: str) -> int:
    """Tokens of one forward pass, as the trainer chooses them."""
    training, length = settings.training, settings.model.context_length
    rows = training.micro_batch_size or (max(1, _MICRO_TOKENS // length) if device == "cpu" else training.batch_size)
    return min(rows, training.batch_size) * length


def estimate(settings: RunSettings, own: Sizes, device: str) -> dict[str, float]:
    """Memory by part, from shapes alone; without what a run leaves out where memory is scarce."""
    weights = _FLOAT * own.parameters
    moments = 2 * weights - (_FLOAT * own.matrices if settings.training.optimizer == "muon" else 0)
    activations = _FLOAT * own.activations_per_token * micro_tokens(settings, device)
    head = _FLOAT * settings.model.vocab_size * settings.model.d_model
    return {
        "process and libraries": _PROCESS if device == "cpu" else 0.0,
        "weights": weights,
        "gradient": weights,
        "optimizer": moments,
        "activations and work": _HEAP * activations + _CHUNK + head,
    }


def computed_plan(settings: RunSettings, own: Sizes, facts: Facts, device: str, note: str) -> Plan:
    """A plan without a probe."""
    memory = estimate(settings, own, device)
    step_s = own.flops_per_token * tokens_per_step(settings) / (facts.flops * _UTILISATION) if facts.flops else 0.0
    row_s = step_s / settings.training.batch_size / 3
    found = Measured(step_s=step_s, evaluation_row_s=row_s, mean_cost=average_cost(settings, own))
    seconds = seconds_by_part(settings, facts, found)
    why = advice(memory, facts, settings)
    return Plan(settings, own, facts, memory, seconds, step_s, False, note, why, found.mean_cost)


def measured_plan(settings: RunSettings, own: Sizes, facts: Facts, found: Measured) -> Plan:
    """A plan that rests on a probe."""
    memory: dict[str, float] = {
        "process and libraries": found.baseline,
        "weights": found.weights,
        "gradient": found.weights,
        "optimizer": found.optimizer,
        "good states in memory": found.good_states,
        "weights of the best evaluation": found.best_weights,
    }
    growth = _GROWTH[min(found.updates, len(_GROWTH) - 1)] if found.baseline else 0.0  # a GPU's memory has no such heap
    memory["activations and work"] = max(0.0, found.peak - sum(memory.values())) * (1 + growth)
    free = facts.available - found.baseline - found.weights  # when the watchdog decides how many states it keeps
    if facts.available and found.weights:
        kept = max(0, min(_STATES, int(_STATES_SHARE * free / (3 * found.weights))))
        memory["good states in memory"] *= kept / _STATES
    note = ""
    if found.most_rows:
        note = f"only {found.most_rows} row(s) fit into memory at once: name it as training.micro_batch_size"
    seconds = seconds_by_part(settings, facts, found)
    why = advice(memory, facts, settings)
    return Plan(settings, own, facts, memory, seconds, found.step_s, True, note, why, found.mean_cost)


def seconds_by_part(settings: RunSettings, facts: Facts, found: Measured) -> dict[str, float]:
    """Where the time goes."""
    training, steps = settings.training, settings.training.steps
    rows = facts.held_out / settings.model.context_length
    looked = steps // training.evaluate_every if training.evaluate_every else 0
    looked += 0 if training.evaluate_every and steps % training.evaluate_every == 0 else 1
    samples = steps // training.sample_every if training.sample_every else 0
    saved = (steps - 1) // training.checkpoint_every if training.checkpoint_every else 0
    return {
        "start": facts.start_s,
        "preparation of the text": facts.prepare_s,
        "updates": steps * found.step_s * found.mean_cost + steps // _SNAPSHOT_EVERY * found.snapshot_s,
        "evaluations": looked * min(training.evaluate_rows, rows) * found.evaluation_row_s,
        "samples": samples * found.sample_s,
        "checkpoints": (saved + 1) * found.checkpoint_s,
        "last measurement": rows * found.evaluation_row_s,
    }


def advice(memory: dict[str, float], facts: Facts, settings: RunSettings) -> str:
    """'' where the memory suffices or is unknown, else what to lower."""
    if not facts.available or sum(memory.values()) * _MARGIN <= facts.available:
        return ""
    activations = memory["activations and work"]
    if activations > 0.5 * sum(memory.values()) and settings.training.micro_batch_size != 1:
        return "lower training.micro_batch_size or model.context_length"
    return "lower model.d_model or model.n_layers"


def lines_of(plan: Plan) -> list[str]:
    """The plan for a person."""
    spec, facts, own = plan.settings.model, plan.facts, plan.sizes
    shape = f"{spec.n_layers} layers of width {spec.d_model}, context {spec.context_length}, {spec.vocab_size:,} ids"
    lines = [f"model    {own.parameters:,} parameters: {shape}"]
    lines.append(f"tokens   {plan.tokens:,} to train on, {plan.tokens / own.parameters:.1f} per parameter")
    if facts.tokens:
        epochs = plan.tokens / facts.tokens
        lines.append(
            f"text     {facts.text_bytes / 1e6:,.1f} MB, some {facts.tokens:,} tokens: read {epochs:.2f} times"
        )
    verdict = f"does not fit: {plan.advice}" if plan.advice else "fits"
    there = f" of {facts.available / 1e9:,.1f} GB available: {verdict}" if facts.available else ""
    lines.append(f"memory   {plan.total_memory / 1e9:,.2f} GB{there}")
    lines += [f"           {part:32}{size / 1e9:9.3f} GB" for part, size in plan.memory.items() if size]
    if plan.step_s:
        speed = tokens_per_step(plan.settings) / plan.step_s
        growing = f"; {_seconds(plan.step_s * plan.mean_cost)} on average, because the depth grows"
        lines.append(
            f"step     {_seconds(plan.step_s)}, {speed:,.0f} tokens/s" + (growing if plan.mean_cost < 1 else "")
        )
        lines.append(f"time     {duration(plan.total_seconds)}")
        lines += [f"           {part:32}{duration(s):>12}" for part, s in plan.seconds.items() if s >= 0.5]
    how = "measured on the first updates of this very run" if plan.measured else "computed, not tried"
    lines.append(f"         {how}" + (f"; {plan.note}" if plan.note else ""))
    return lines


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
