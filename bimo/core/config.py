"""Every setting of bimo: one frozen dataclass per part, which checks itself and loads no torch.

YAML key, command-line flag and keyword argument all come from the field; the text under a field is its help. A settings
object that exists is valid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, name_and_parameters
from bimo.core.settings import Settings
from bimo.core.spec import ModelSpec, RopeScaling

__all__ = [
    "AdaptSettings",
    "CheckSettings",
    "DataSettings",
    "ModelSpec",
    "ParallelSettings",
    "RopeScaling",
    "RunSettings",
    "TaskData",
    "TokenizerSettings",
    "TrainingSettings",
]


def _positive(settings: object, *names: str) -> list[str]:
    return [f"{n} must be at least 1, is {getattr(settings, n)}" for n in names if getattr(settings, n) < 1]


def _share(settings: object, *names: str) -> list[str]:
    values = {n: getattr(settings, n) for n in names}
    return [f"{n} must lie in 0 … 1, is {value}" for n, value in values.items() if not 0 <= value <= 1]


def _part_problem(kind: str, text: str) -> str:
    """'' when there is a part of that name; its parameters are looked at where it is made."""
    try:
        name, _ = name_and_parameters(text)
    except UserError as error:
        return f"{kind} {error.what}"
    return REGISTRIES[kind].problem(name)


@dataclass(frozen=True)
class DataSettings(Settings):
    """Which text, and how it is cut into documents and splits."""

    paths: list[str] = field(default_factory=list)
    """Files, folders or globs of .txt .md .jsonl .csv .parquet (each also .gz); '-' is standard input."""
    weights: list[float] = field(default_factory=list)
    """How often each path is drawn, one number per path. Empty: in proportion to its tokens."""
    validation_paths: list[str] = field(default_factory=list)
    """Text to measure on. Empty: a share of the documents is held out."""
    validation_share: float = 0.01
    """Share of documents held out, chosen by a hash of their text, so that a document never changes sides."""
    text_field: str = "text"
    """The field or column of .jsonl, .csv and .parquet that holds the text."""
    documents: Literal["auto", "file", "blank_line", "line"] = "auto"
    """Where a document ends in .txt and .md. auto: 20 and more files are a document each, fewer are cut at blank
    lines."""
    on_broken: Literal["skip", "stop"] = "skip"
    """What to do with text that cannot be read: report and skip it, or stop."""
    duplicates: Literal["keep", "exact", "near"] = "keep"
    """Documents that a source holds again: keep them, leave out equal ones, or also those that are nearly the same."""
    check: bool = True
    """Whether the text is looked at before the run, for at most 20 seconds; what is wrong is told, and the run goes
    on."""
    workers: int = 0
    """Threads that encode text. 0: one per core."""

    def problems(self) -> list[str]:
        found = _share(self, "validation_share")
        if self.weights and len(self.weights) != len(self.paths):
            found.append(f"weights has {len(self.weights)} numbers for {len(self.paths)} paths")
        if any(weight <= 0 for weight in self.weights):
            found.append("weights must be positive")
        if self.workers < 0:
            found.append("workers must not be negative")
        return found


@dataclass(frozen=True)
class CheckSettings(Settings):
    """What the checkup of data looks for."""

    text_field: str = "text"
    """The field or column that holds the text, where the records are not those of a known task."""
    documents: Literal["auto", "file", "blank_line", "line"] = "auto"
    """Where a document ends in .txt and .md; as in data.documents."""
    context_length: int = 0
    """Tokens that a model will see at once: rows that are longer are counted. 0: not looked at."""
    near_duplicates: bool = False
    """Look for documents that are nearly the same, too (MinHash); takes some ten times as long."""
    similarity: float = 0.8
    """Share of common phrases from which on two documents are nearly the same."""
    languages: list[str] = field(default_factory=list)
    """Languages that belong here, such as English or Chinese: others are named. Empty: what nearly all texts are in."""
    personal_data: bool = True
    """Look for e-mail addresses, phone, card, account and identity numbers."""
    most_megabytes: float = 0.0
    """Stop reading after this much text. 0: read all."""
    most_seconds: float = 0.0
    """Stop reading after this time. 0: read all."""

    def problems(self) -> list[str]:
        whole = ("context_length", "most_megabytes", "most_seconds")
        found = [f"{n} must not be negative, is {getattr(self, n)}" for n in whole if getattr(self, n) < 0]
        return found + _share(self, "similarity")


@dataclass(frozen=True)
class TokenizerSettings(Settings):
    """How the tokenizer is made."""

    path: str = ""
    """An existing tokenizer.json to use. Empty: train one on the text."""
    vocab_size: int = 4096
    """Number of ids: control tokens + 256 bytes + merges."""
    train_megabytes: float = 100.0
    """At most this much text is read for training; larger corpora are sampled by document hash."""

    def problems(self) -> list[str]:
        found = [] if self.vocab_size >= 300 else [f"vocab_size must be at least 300, is {self.vocab_size}"]
        return found + ([] if self.train_megabytes > 0 else ["train_megabytes must be positive"])


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """How a model is trained."""

    steps: int = 1000
    """Number of weight updates."""
    batch_size: int = 16
    """Rows of context_length tokens per update."""
    micro_batch_size: int = 0
    """Rows per forward pass; the gradients of one update are accumulated exactly. 0: chosen for the device."""
    loss: str = "cross_entropy"
    """What is minimised: cross_entropy, label_smoothing, z_loss, focal, unlikelihood, distillation, dpo and simpo (of
    pairs of answers), or a loss that you registered; with parameters for example label_smoothing(epsilon=0.2)."""
    optimizer: str = "muon"
    """What changes the weights: muon (matrices by their orthogonalised momentum, the rest by AdamW), adamw, or an
    optimizer that you registered."""
    callbacks: list[str] = field(default_factory=list)
    """What sees and changes the run, in this order: early_stopping, best_checkpoint, weight_average, rate_finder,
    tensorboard, sampling, gradient_statistics and more (docs/training.md), or a callback that you registered; with
    parameters for example early_stopping(patience=5)."""
    learning_rate: float = 0.0
    """Peak rate. 0: the optimizer's own, 0.02 for muon and 0.001 for others."""
    min_learning_rate: float = 0.0
    """Rate at the end of the schedule."""
    schedule: Literal["cosine", "wsd", "constant"] = "wsd"
    """Cosine decay, warm-up-stable-decay (linear decay over the last decay_share), or constant."""
    warmup_steps: int = 10
    """Steps of linear rise to the peak rate."""
    decay_share: float = 0.7
    """Share of the steps that wsd spends on its decay."""
    momentum: float = 0.85
    """Muon's memory of the gradient."""
    weight_decay: float = 0.1
    """Decay of matrices (with adamw, of embeddings too); vectors (norms, biases) are not decayed."""
    beta1: float = 0.9
    """AdamW's memory of the gradient, also where muon leaves weights to AdamW."""
    beta2: float = 0.95
    """AdamW's memory of the squared gradient."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0 switches clipping off."""
    watchdog: bool = True
    """Whether faults (NaN, spikes, damaged batches, full memory) are mended; off: the first one ends the run."""
    evaluate_every: int = 200
    """Steps between evaluations on held-out text; 0: only at the end."""
    evaluate_rows: int = 64
    """Rows of held-out text per evaluation during training; the final one uses all."""
    checkpoint_every: int = 500
    """Steps between checkpoints; 0: only at the end and at Ctrl-C."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    sample_every: int = 0
    """Steps between sample texts; 0: none."""
    sample_prompt: str = ""
    """How a sample begins. Empty: at the start of a document."""
    seed: int = 0
    """Settles initial weights, dropout and the order of the data."""
    execution: Literal["auto", "eager", "compiled"] = "auto"
    """How blocks are run: operation by operation, or compiled by torch.compile. auto: what a short trial shows to be
    faster; on CPU only in runs of more than half an hour, which repay compiling."""
    checkpoint_activations: Literal["auto", "none", "blocks"] = "auto"
    """Whether each block's activations are computed again in the backward pass instead of kept: a third more work for
    a fraction of the memory. auto: only where one row at once does not fit."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the device computes it fast, else fp32."""
    threads: int = 0
    """CPU threads; 0: one per physical core that this process may use."""

    def __post_init__(self) -> None:
        if self.learning_rate == 0:
            object.__setattr__(self, "learning_rate", 0.02 if self.optimizer == "muon" else 1e-3)  # frozen
        super().__post_init__()

    def problems(self) -> list[str]:
        found = _positive(self, "steps", "batch_size", "evaluate_rows", "keep_checkpoints", "log_every")
        found += _share(self, "decay_share", "beta1", "beta2", "momentum")
        found += filter(None, [_part_problem("loss", self.loss), _part_problem("optimizer", self.optimizer)])
        found += filter(None, [_part_problem("callback", text) for text in self.callbacks])
        whole = ("micro_batch_size", "warmup_steps", "evaluate_every", "checkpoint_every", "sample_every", "threads")
        found += [f"{n} must not be negative, is {getattr(self, n)}" for n in whole if getattr(self, n) < 0]
        if not 0 < self.learning_rate < math.inf or not 0 <= self.min_learning_rate <= self.learning_rate:
            found.append("learning_rate must be positive and finite, and min_learning_rate between 0 and it")
        if self.weight_decay < 0 or self.grad_clip < 0:
            found.append("weight_decay and grad_clip must not be negative")
        return found


@dataclass(frozen=True)
class ParallelSettings(Settings):
    """How the processes of a run share the work; there are data x shard x tensor of them."""

    data: int = 0
    """Copies of the model, each of which reads its own rows. 0: as many as there are processes left for."""
    shard: int = 1
    """Processes that share out the weights, gradients and moments of a copy (FSDP2), and read their own rows too.
    0: all that are left, in one copy."""
    tensor: int = 1
    """Processes that share out the heads and the feed-forward width of each layer, and read the same rows."""
    timeout_minutes: float = 10.0
    """How long a process waits for another one in the middle of a step before it gives the run up."""

    def problems(self) -> list[str]:
        found = [f"{n} must not be negative, is {getattr(self, n)}" for n in ("data", "shard") if getattr(self, n) < 0]
        found += [f"tensor must be at least 1, is {self.tensor}"] if self.tensor < 1 else []
        return found + ([] if self.timeout_minutes > 0 else ["timeout_minutes must be positive"])


@dataclass(frozen=True)
class TaskData(Settings):
    """A task with its data: one entry of a recipe's `tasks`."""

    task: str = ""
    """completion, translation, summarization, dialogue, classification, preference, or a task that you registered; with
    parameters for example translation(source='en', target='de', both=True)."""
    train: list[str] = field(default_factory=list)
    """Files, folders or globs of .jsonl .csv .parquet (each also .gz) with its records. Empty: data.paths."""
    valid: list[str] = field(default_factory=list)
    """Records to measure on. Empty: data.validation_paths, or a twentieth of the training records."""
    fields: dict[str, str] = field(default_factory=dict)
    """Your names of the fields by the task's, for example {source: english, target: german}."""
    weight: float = 1.0
    """How often its batches come, beside those of other tasks."""

    def problems(self) -> list[str]:
        found = [_part_problem("task", self.task) if self.task else "task is missing"]
        return [*filter(None, found), *(["weight must be positive"] if self.weight <= 0 else [])]


@dataclass(frozen=True)
class AdaptSettings(Settings):
    """From which model a run begins, and what of it is trained."""

    base: str = ""
    """A run, a Hugging Face folder or hub name, or a .gguf file to begin with. Empty: a new model."""
    method: Literal["full", "lora", "frozen"] = "full"
    """full: all weights. lora: two small matrices beside each linear layer; the base stays as it is. frozen: nothing of
    the model, only the head of labels."""
    label_head: bool = False
    """Whether labels come from a head of their own, trained with the model, instead of being said as words; for the
    task classification alone."""
    rank: int = 8
    """Of lora: how many numbers an addition goes through; more can learn more."""
    alpha: float = 0.0
    """Of lora: divided by the rank it multiplies the addition. 0: twice the rank."""
    dropout: float = 0.0
    """Of lora: share of the addition's input that is dropped in training."""
    targets: list[str] = field(default_factory=list)
    """Of lora: which linear layers, such as [q_proj, v_proj]. Empty: all of the blocks."""
    epochs: float = 0.0
    """Passes over the records of the tasks. 0: training.steps updates."""
    context_length: int = 0
    """Tokens of a row at most. 0: the model's own."""
    on_bad_row: Literal["skip", "stop"] = "skip"
    """What to do with a record that cannot be used: report and skip it, or stop."""
    on_long_row: Literal["cut", "skip", "stop"] = "skip"
    """What to do with a record that is longer than the context: report and skip it, cut the end of the text that is
    read (never the answer), or stop. But for stop, a long conversation becomes several."""
    batches: Literal["auto", "grouped", "packed"] = "auto"
    """grouped: a batch holds rows of one task and of like length. packed: several records in one row of the context
    length, none of which sees another, and rows of all tasks side by side. auto: packed where it is less work."""
    general_text: list[str] = field(default_factory=list)
    """Text of another kind, to say how much of it the model has forgotten."""
    scored_answers: int = 64
    """Held-out records of each task that the model answers before and after, for its score. 0: none."""

    def problems(self) -> list[str]:
        found = _positive(self, "rank")
        found += _share(self, "dropout")
        whole = ("alpha", "epochs", "context_length", "scored_answers")
        found += [f"{n} must not be negative, is {getattr(self, n)}" for n in whole if getattr(self, n) < 0]
        if self.method == "frozen" and not self.label_head:
            found.append("method is frozen, and without label_head there is nothing to train")
        return found


@dataclass(frozen=True)
class RunSettings(Settings):
    """A whole run: text in, a folder under `runs` out. This is what a recipe file holds."""

    name: str = "run"
    """Name of the run; its folder is FOLDER/NAME."""
    folder: str = "runs"
    """Where runs are kept."""
    modules: list[str] = field(default_factory=list)
    """Python files or modules of yours to import first: they register attention, losses and other parts."""
    data: DataSettings = field(default_factory=DataSettings)
    """Which text, and how it is cut into documents and splits."""
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    """How the tokenizer is made."""
    model: ModelSpec = field(default_factory=ModelSpec)
    """The shape of the GPT."""
    tasks: list[TaskData] = field(default_factory=list)
    """What it shall be able to do, each with its records. Empty: it learns to go on with plain text."""
    adapt: AdaptSettings = field(default_factory=AdaptSettings)
    """From which model the run begins, and what of it is trained."""
    training: TrainingSettings = field(default_factory=TrainingSettings)
    """How it is trained."""
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    """How the processes of a run share the work."""
    notes: list[str] = field(default_factory=list)
    """Remarks for people, such as why a budget led to these sizes."""

    @property
    def row_length(self) -> int:
        """Tokens of a row at most."""
        return min(self.adapt.context_length or self.model.context_length, self.model.context_length)

    def problems(self) -> list[str]:
        bad = not self.name or self.name in {".", ".."} or any(c in self.name for c in "/\\\0")
        found = [f"name must be a plain folder name, is {self.name!r}"] if bad else []
        if self.adapt.method != "full" and not self.tasks:
            found.append(f"adapt.method {self.adapt.method} is for tasks, and there are none")
        return found
