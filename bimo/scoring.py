"""How a model's answers score, so that a run can say what its training has changed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from bimo.core.errors import UserError
from bimo.engine import Engine, SamplingParams
from bimo.evaluation.answering import Opened, Tell, answers_of
from bimo.evaluation.asking import spread
from bimo.evaluation.judging import Judge
from bimo.live import Waiting
from bimo.lm import LM
from bimo.materials import Material
from bimo.preparing import say

_SHOWN = 3  # answers per task


def scores_of(
    lm: LM, materials: Sequence[Material], most: int, console: Console, *, show: bool = False
) -> dict[str, float]:
    """The task's first metric on some of its held-out records, which the model answers as it would be used.

    Args:
        lm: The model.
        materials: Tasks with their held-out records.
        most: Records of each task; 0: none are asked.
        console: For progress.
        show: Whether some answers are shown beside what was wanted.

    Returns:
        "chrF of translation" → figure; nothing where a package is missing, which is said.
    """
    found: dict[str, float] = {}
    if not most:
        return found
    engine = Engine(lm.model, lm.tokenizer, lm.engine_settings)
    opened = Opened(engine, lm.tokenizer, "model", lm.tasks, lm.label_head)
    for number, material in enumerate(materials, start=1):
        task, examples = material.task, spread(material.valid, most)
        try:
            judge = Judge(list(task.metrics)[:1], examples)
        except UserError as error:
            say(console, f"no score of {task.name}: {error}")
            continue
        params = SamplingParams(max_tokens=task.max_tokens, temperature=0)
        with Waiting(console, f"answering {len(examples)} records of {task.name}", lambda: 0.0) as waiting:
            answers = answers_of(opened, task, examples, params, _telling(waiting))
        [(name, value)] = judge.judge("model", "model", answers).scores.items()
        key = f"{name} of {task.name}"
        found[f"{key} ({number})" if key in found else key] = value.value  # two directions have one name
        for example, answer in list(zip(examples, answers, strict=True))[: _SHOWN if show else 0]:
            said, wanted = (" ".join(text.split())[:100] for text in (answer, example.target))
            say(console, f"  it says: {said!r}; wanted: {wanted!r}")
    return found


def _telling(waiting: Waiting) -> Tell:
    """Shows the share of each stage: the answers, then the look at the targets."""
    work = waiting.what

    def tell(stage: str, share: float) -> None:
        waiting.what = f"{work}: {stage}"
        waiting.progress = lambda: share
        waiting.tick()
        waiting.what = work

    return tell
