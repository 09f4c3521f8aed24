"""What the page's tests are made of: a tab and what goes on in it, a model that has learned its answers, a run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from serving.servers import tiny

from bimo import LM, ModelSpec, Tokenizer, TrainingSettings, new
from bimo.training.callbacks.records import EventsFile, MetricsFile
from bimo.training.callbacks.sampling import Sampling

CHROMIUM = [
    os.environ.get("BIMO_CHROMIUM", ""),
    "/usr/bin/chromium",
    "/usr/bin/chromium-browser",
    "/usr/bin/google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]

HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
ANSWERS = {
    "hi": HOSTILE,
    "code": "Look:\n```python\nprint(1 < 2)\n```\nThat is all.",
    "诗": "床前明月光，疑是地上霜。🙂 end",
}
"""What the taught model says, word for word, when it is not left to chance."""


@dataclass
class Visit:
    """A tab, and what went on in it.

    Attributes:
        page: The tab.
        url: The server's address.
        hosts: All that it sent requests to.
        complaints: Errors of scripts, and what the browser wrote to its console as errors.
    """

    page: Any
    url: str
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def open(self, view: str = "chat") -> Any:
        """Go to a view; give the tab."""
        self.page.goto(f"{self.url}/#/{view}")
        self.page.locator(f".view-{view.partition('/')[0]}").wait_for()
        return self.page

    def choose(self, model: str) -> None:
        """Choose a model by name."""
        self.page.locator(".model-field select").select_option(model)

    def ask(self, text: str) -> None:
        """Write a message, and send it."""
        self.page.locator(".view-chat textarea").fill(text)
        self.page.keyboard.press("Enter")

    def answered(self) -> Any:
        """Wait for the end of the newest answer; give it."""
        self.page.locator(".answer.last:not([data-writing]) .turn-foot").wait_for()
        return self.page.locator(".answer.last .turn-body")


Visiting = Callable[..., Visit]


def taught_model() -> LM:
    """A small model that has learned its answers by heart."""
    torch.set_num_threads(1)  # for steps of a millisecond, a second thread is in the way
    tokenizer = Tokenizer.train([*ANSWERS, *ANSWERS.values()] * 5, vocab_size=300)
    spec = ModelSpec(
        vocab_size=tokenizer.vocab_size,
        context_length=256,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        d_model=64,
    )
    lm = new(spec, tokenizer, seed=1)
    optimizer = torch.optim.AdamW(lm.model.parameters(), lr=3e-3)
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in ANSWERS.items()]
    rows = [torch.tensor(tokenizer.encode_chat(talk)) for talk in talks]
    for _ in range(120):
        loss = sum(F.cross_entropy(lm.model(row[None, :-1])[0], row[1:]) for row in rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lm


def trained_run(folder: Path, tokenizer: Tokenizer) -> None:
    """A real run, with the logs that a run writes."""
    lm, run = tiny(tokenizer, context_length=32), folder / "first try"
    settings = TrainingSettings(batch_size=4, warmup_steps=2, log_every=2, evaluate_every=4, device="cpu", threads=1)
    logs = [MetricsFile(run / "metrics.jsonl"), EventsFile(run / "events.jsonl")]
    logs.append(Sampling("the cat", lambda model, prompt: " sat on a mat 🙂", every=8, folder=run))
    texts = [f"the cat sat on a mat and saw {number} cats" for number in range(64)]
    lm.fit(texts, epochs=1, settings=settings, callbacks=logs, validation=0.2)
    with (run / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": "2026-01-02T03:04:05", "event": "mended", "step": 6, "what": HOSTILE}) + "\n")
