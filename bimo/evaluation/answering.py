"""A model answers the examples of a task: all prompts in one call of the engine.

A task with labels is answered by the model's head of labels, or by the likelihood of each one as text; every other task
by the likeliest text (greedy, or by beams), and how well the targets were foreseen is asked beside that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from bimo.core.errors import UserError
from bimo.engine import Completion, Engine, EngineSettings, SamplingParams
from bimo.evaluation.answer import Answer, Circumstances, Foresight
from bimo.evaluation.fitting import fitting_prompt
from bimo.interop import find_model, load_head, open_model
from bimo.model.gpt import GPT
from bimo.model.heads import LabelHead
from bimo.tasks.classification import labels_of
from bimo.tasks.saved import saved_tasks
from bimo.tasks.task import Task, TaskExample
from bimo.tokenizer import Tokenizer

Tell = Callable[[str, float], None]


class Model(Protocol):
    """What answers: a `bimo.LM`."""

    model: GPT
    source: Path | None

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back; an error where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A model, ready to answer.

    Attributes:
        engine: Runs it.
        tokenizer: Its own.
        name: As tables show it: the last part of its path.
        tasks: What it was trained for.
        head: Its head of labels, where it has one.
    """

    engine: Engine
    tokenizer: Tokenizer
    name: str
    tasks: Sequence[Task] = ()
    head: LabelHead | None = None


def open_for_answers(model: Model | str | Path, settings: EngineSettings | None = None) -> Opened:
    """The model, read from its path if that is given, with an engine; one that is open brings settings of its own.

    Raises:
        UserError: There is no such model, or it knows no text.
    """
    if isinstance(model, (str, Path)):
        return _open_path(model, settings)
    if not isinstance(getattr(model, "model", None), GPT):
        what = f"a model is evaluated with its tokenizer, this is {type(model).__name__}"
        raise UserError(what, mend="Give a bimo.LM or the path of a model.")
    settings = getattr(model, "engine_settings", None) or settings
    name = "model" if model.source is None else _name(model.source)
    tasks: Sequence[Task] = getattr(model, "tasks", [])
    head: LabelHead | None = getattr(model, "label_head", None)
    return Opened(Engine(model.model, model.tokenizer, settings), model.tokenizer, name, tasks, head)


def _open_path(path: str | Path, settings: EngineSettings | None) -> Opened:
    source = find_model(path)
    gpt, tokenizer = open_model(source)
    if tokenizer is None:
        raise UserError("this model came without a tokenizer", where=str(source), mend="Put one into its folder.")
    tasks = saved_tasks(source) if source.is_dir() else []
    head = load_head(source, gpt.spec.d_model, len(labels_of(tasks))) if source.is_dir() else None
    return Opened(Engine(gpt, tokenizer, settings), tokenizer, _name(Path(path)), tasks, head)


def _name(path: Path) -> str:
    """runs/demo/model is called demo."""
    path = path.absolute()
    return path.parent.name if path.name == "model" else path.name


def answers_of(
    opened: Opened, task: Task, examples: Sequence[TaskExample], params: SamplingParams, tell: Tell
) -> list[Answer]:
    """The model's answer to each example; one that cannot be given is empty, with the reason "error".

    Args:
        opened: The model.
        task: Says how output becomes an answer; with `labels` the likeliest one is taken.
        examples: What is asked; what is read of it is shortened to fit the context.
        params: How text is generated.
        tell: Told of progress, by stage.
    """
    labels = [str(label) for label in getattr(task, "labels", None) or ()]
    context = opened.engine.model.spec.context_length
    answer_room = min(params.max_tokens, context // 4)
    if labels:
        answer_room = max(len(opened.tokenizer.encode(label)) for label in labels)
    prompts = [fitting_prompt(example, opened.tokenizer, context - answer_room) for example in examples]
    places = [place for place, prompt in enumerate(prompts) if prompt.ids is not None]
    ids = [prompt.ids for prompt in prompts if prompt.ids is not None]
    targets = [examples[place].target for place in places]
    found = _labelled(opened, ids, labels, tell) if labels else _written(opened, task, (ids, targets), params, tell)
    answers = [Answer("", Circumstances("error", shortened=prompt.cut)) for prompt in prompts]
    for place, answer in zip(places, found, strict=True):
        answers[place] = Answer(answer, replace(answer.how, shortened=prompts[place].cut))
    return answers


def _labelled(opened: Opened, prompts: Sequence[list[int]], labels: Sequence[str], tell: Tell) -> list[Answer]:
    """The likeliest label for each prompt: by the model's head of these labels, or as the text that follows."""
    if opened.head is not None and list(labels_of(opened.tasks)) == list(labels):
        rows = opened.head.shares(opened.engine.embed(prompts, pooling="last", normalize=False)).tolist()
        every = [dict(zip(labels, row, strict=True)) for row in rows]
    else:
        found = opened.engine.classify(prompts, labels, on_progress=lambda share: tell("classifying", share))
        every = [label.probabilities for label in found]
    return [Answer(max(own, key=lambda label: own[label]), Circumstances(probabilities=own)) for own in every]


def _written(
    opened: Opened, task: Task, asked: tuple[Sequence[list[int]], Sequence[str]], params: SamplingParams, tell: Tell
) -> list[Answer]:
    """The likeliest text for each prompt, and how the target beside it was foreseen; equal prompts are asked once."""
    prompts, targets = asked
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    completions = opened.engine.generate(
        [list(prompt) for prompt in places],
        params,
        keep_errors=True,
        on_progress=lambda share: tell("answering", share),
    )
    seen = _foreseen(opened, prompts, targets, tell)
    own = [completions[places[tuple(prompt)]] for prompt in prompts]
    return [_answer(task, completion, target) for completion, target in zip(own, seen, strict=True)]


def _answer(task: Task, completion: Completion, seen: Foresight | None) -> Answer:
    text = "" if completion.error else task.answer(completion.text)
    return Answer(text, Circumstances(completion.finish_reason, foresight=seen))


def _foreseen(
    opened: Opened, prompts: Sequence[list[int]], targets: Sequence[str], tell: Tell
) -> list[Foresight | None]:
    """How well the model foresaw each target; None where prompt and target are longer than the context."""
    lengths = [len(opened.tokenizer.encode(target)) for target in targets]
    fitting = [
        i
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
        if length and 1 < len(prompt) + length <= opened.engine.model.spec.context_length
    ]
    scores = opened.engine.score(
        [targets[i] for i in fitting],
        [prompts[i] for i in fitting],
        on_progress=lambda share: tell("scoring the targets", share),
    )
    found: list[Foresight | None] = [None] * len(prompts)
    for i, score in zip(fitting, scores, strict=True):
        found[i] = Foresight(-score.total, len(score.tokens), len(targets[i].encode("utf-8", errors="replace")))
    return found
