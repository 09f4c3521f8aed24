"""`bimo plan --device h100 --gpus 512`: the ways to share a recipe out, each with memory, time and what will fail.

Policy without tensors over the arithmetic of `scale.py`. The assumptions are part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from bimo.core.config import RunSettings
from bimo.core.errors import UserError
from bimo.training.callbacks.progress import duration
from bimo.training.datasheets import DeviceSheet, sheet
from bimo.training.plan import average_cost, sizes
from bimo.training.scale import (
    Layout,
    StepTime,
    Traffic,
    Work,
    best_interval_s,
    count_parameters,
    failure_interval_s,
    memory_per_gpu,
    step_time,
    traffic,
    useful_share,
)

UTILISATION = (
    0.45  # of the peak, by one GPU alone; published runs on H100 reach 0.33 to 0.43 in the end (docs/scale.md)
)
_FULL = 0.9  # of a device's memory
_STATE = 12  # bytes per weight in a checkpoint
_STORAGE = 0.125e9  # bytes per second and GPU: 2 TB/s for 16,384 (Llama 3)
_RESTART_S = 300.0
_MOST_MICRO_TOKENS = 2**16


@dataclass(frozen=True)
class Way:
    """One way to share the work out.

    Attributes:
        layout: How many GPUs do what.
        work: Of one of them.
        memory: Its bytes by part.
        fits: Whether they fit.
        sent: What it sends in a step.
        time: Of a step.
    """

    layout: Layout
    work: Work
    memory: dict[str, float]
    fits: bool
    sent: Traffic
    time: StepTime


@dataclass(frozen=True)
class DevicePlan:
    """A recipe on many GPUs.

    Attributes:
        settings: The recipe.
        device: Of which kind they are.
        gpus: How many.
        ways: The quickest that fits first.
        utilisation: Share of the peak that is assumed.
    """

    settings: RunSettings
    device: DeviceSheet
    gpus: int
    ways: list[Way]
    utilisation: float

    @property
    def fits(self) -> bool:
        return self.ways[0].fits

    @property
    def checkpoint_s(self) -> float:
        """All GPUs write at once."""
        return _STATE * count_parameters(self.settings.model)[0] / (_STORAGE * self.gpus)

    @property
    def total_s(self) -> float:
        """Updates, without failures."""
        average = average_cost(self.settings, sizes(self.settings.model))
        return self.settings.training.steps * self.ways[0].time.seconds * average

    @property
    def interval_s(self) -> float:
        """Between two checkpoints, to lose least."""
        return best_interval_s(self.checkpoint_s, failure_interval_s(self.gpus))

    @property
    def useful(self) -> float:
        """Share of the time that counts in the end."""
        return useful_share(self.interval_s, self.checkpoint_s, _RESTART_S, failure_interval_s(self.gpus))

    @property
    def failures(self) -> float:
        """That are to be expected."""
        return self.total_s / self.useful / failure_interval_s(self.gpus)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        ways = [
            {
                "layout": asdict(way.layout), "memory_bytes": sum(way.memory.values()), "memory": way.memory,
                "fits": way.fits, "sent": asdict(way.sent), "step_seconds": way.time.seconds, "mfu": way.time.mfu,
                "micro_rows": way.work.micro_rows, "keeping": way.work.keeping,
            }
            for way in self.ways
        ]  # fmt: skip
        return {
            "device": asdict(self.device), "gpus": self.gpus, "utilisation": self.utilisation, "fits": self.fits,
            "parameters": count_parameters(self.settings.model)[0], "total_seconds": self.total_s / self.useful,
            "failures": self.failures, "checkpoint_seconds": self.checkpoint_s,
            "checkpoint_every_seconds": self.interval_s, "useful_share": self.useful, "ways": ways,
            "settings": self.settings.to_dict(),
        }  # fmt: skip


def plan_for(settings: RunSettings, device: str, gpus: int, utilisation: float = UTILISATION) -> DevicePlan:
    """Plan a recipe for GPUs of a kind.

    Raises:
        UserError: No such device, or the batch cannot be shared out among so many.
    """
    if gpus < 1 or not 0 < utilisation <= 1:
        what = f"{gpus} GPUs at {utilisation} of their peak cannot be planned"
        raise UserError(what, where="--gpus", mend="Give at least 1 GPU, and a share up to 1.0.")
    card = sheet(device)
    if not settings.tokenizer.path:  # a recipe's model takes its ids from the tokenizer
        settings = replace(settings, model=replace(settings.model, vocab_size=settings.tokenizer.vocab_size))
    ways = [_way(settings, layout, card, utilisation) for layout in layouts(settings, gpus, card.per_node)]
    if not ways:
        raise UserError(
            f"a batch of {settings.training.batch_size} rows cannot be shared out among {gpus} GPUs",
            where="training.batch_size",
            mend=f"Make it a multiple of {gpus}, or of {gpus} / 8 for tensor parallel.",
        )
    return DevicePlan(settings, card, gpus, sorted(ways, key=lambda w: (not w.fits, w.time.seconds)), utilisation)


def layouts(settings: RunSettings, gpus: int, per_node: int) -> Iterator[Layout]:
    """The ways that `parallel` can set, which this batch and these heads allow."""
    spec, rows = settings.model, settings.training.batch_size
    seen = set()
    for tensor in (1, 2, 4, 8):
        possible = tensor <= per_node and not (spec.n_heads % tensor or spec.n_kv_heads % tensor or spec.d_ff % tensor)
        if not possible or gpus % tensor or rows % (gpus // tensor):
            continue
        readers = gpus // tensor
        for shard in (1, min(readers, per_node // tensor), readers):
            layout = Layout(readers // shard, shard, tensor) if shard and readers % shard == 0 else None
            if layout is not None and layout not in seen:
                seen.add(layout)
                yield layout


def _way(settings: RunSettings, layout: Layout, card: DeviceSheet, utilisation: float) -> Way:
    """A layout with the most rows at once that fit; activations are computed again only where it must be."""
    rows = settings.training.batch_size * layout.tensor // layout.gpus
    asked = settings.training.micro_batch_size
    most = max(1, _MOST_MICRO_TOKENS // settings.model.context_length)
    powers = [2**i for i in range(rows.bit_length()) if rows % 2**i == 0 and 2**i <= most]
    options = [min(asked, rows)] if asked else powers[::-1]
    for keeping in ("all", "blocks"):
        for micro in options:
            work = Work(settings.model, rows, micro, keeping)  # type: ignore[arg-type]  # both are named there
            memory = memory_per_gpu(work, layout)
            fits = sum(memory.values()) <= _FULL * card.memory
            if fits or (keeping, micro) == ("blocks", options[-1]):
                again = 0.75 if keeping == "blocks" else 1.0  # four passes for three
                time = step_time(work, layout, card, utilisation * again)
                return Way(layout, work, memory, fits, traffic(work, layout, card), time)
    raise AssertionError("the last option is always taken")


def lines_of(plan: DevicePlan) -> list[str]:
    """The plan for a person."""
    settings, best = plan.settings, plan.ways[0]
    spec, training = settings.model, settings.training
    weights = count_parameters(spec)[0]
    tokens = training.batch_size * spec.context_length
    lines = [
        f"model    {weights:,} parameters: {spec.n_layers} layers of width {spec.d_model}, context "
        f"{spec.context_length}",
        f"device   {plan.gpus} x {plan.device.title}: {plan.device.memory / 1e9:.0f} GB, "
        f"{plan.device.bf16_flops / 1e12:.0f} TFLOP/s in bf16; {plan.utilisation:.0%} of it assumed",
        f"tokens   {tokens:,} per update, {training.steps * tokens:,} in all, "
        f"{training.steps * tokens / weights:.1f} per parameter",
        f"{'':9}{'parallel':30}{'memory':>10}{'':15}{'sends':>10}{'step':>10}{'MFU':>6}  rows at once",
    ]
    for way in plan.ways:
        sent = way.sent.shard_bytes + way.sent.replica_bytes + way.sent.tensor_bytes
        kept = "" if way.work.keeping == "all" else ", blocks computed again"
        lines.append(
            f"{'':9}{way.layout!s:30}{sum(way.memory.values()) / 1e9:7.1f} GB "
            f"{'fits' if way.fits else 'does not fit':14}"
            f"{sent / 1e9:7.1f} GB{way.time.seconds:8.2f} s{way.time.mfu:6.0%}  {way.work.micro_rows}{kept}"
        )
    lines += [f"{'':11}{part:34}{size / 1e9:8.2f} GB" for part, size in best.memory.items() if size >= 1e7]
    if not plan.fits:
        return [*lines, "does not fit: take more GPUs, or lower model.d_model, model.n_layers or context_length"]
    lines.append(
        f"time     {duration(plan.total_s / plan.useful)} in all: {duration(plan.total_s)} of updates, "
        f"{plan.failures:.1f} failures expected, {plan.useful:.1%} of the time counts"
    )
    lines.append(f"save     every {duration(plan.interval_s)} (a checkpoint takes some {plan.checkpoint_s:.1f} s)")
    return lines
