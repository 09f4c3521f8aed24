"""LM: a GPT with its tokenizer, so text goes in and text comes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimo.core.errors import UserError
from bimo.engine import Engine, EngineSettings, SamplingParams
from bimo.interop.opening import find_model, open_stored
from bimo.model.stored import StoredModel
from bimo.tokenizer import Tokenizer

if TYPE_CHECKING:  # torch and what brings it: generating from a GGUF file can do without
    import torch

    from bimo.core.batch import Batch
    from bimo.core.config import ModelSpec, TrainingSettings
    from bimo.model.gpt import GPT
    from bimo.model.heads import LabelHead
    from bimo.tasks import Task
    from bimo.training import Callback
    from bimo.training.inputs import Source, Tell
    from bimo.training.losses import Loss
    from bimo.training.optimizers import OptimizerFactory
    from bimo.training.streams import BatchStream


class LM:
    """A language model as a person uses it.

    Args:
        model: The GPT, a torch module: `lm.model(ids)` gives logits (B, T, V); or its weights as they lie in a file,
            of which the module is made when it is first asked for.
        tokenizer: Text to ids and back; None for a model that came without one.
        source: The folder or file that the model was read from and still equals.

    Attributes:
        source: As given; None as soon as the model was trained.
        engine_settings: How `generate`, `stream` and `chat` run: backend, threads, cache.
        tasks: What it was trained for.
        label_head: Its head of labels, where it was trained with one.
    """

    def __init__(self, model: GPT | StoredModel, tokenizer: Tokenizer | None, source: Path | None = None) -> None:
        if tokenizer is not None and tokenizer.vocab_size > model.spec.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only {model.spec.vocab_size}",
                mend="Use the tokenizer that the model was trained with.",
            )
        self._model = None if isinstance(model, StoredModel) else model
        self._stored = model if isinstance(model, StoredModel) else None
        self._places_at_first: Any = None
        self._tokenizer, self.source = tokenizer, source
        self.engine_settings = EngineSettings()
        self.tasks: list[Task] = []
        self.label_head: LabelHead | None = None
        self._made: tuple[Any, Engine] | None = None

    @property
    def model(self) -> GPT:
        """The GPT, a torch module."""
        if self._model is None:
            assert self._stored is not None, "there is one of both"
            self._model = self._stored.build()
            self._stored, self._places_at_first = None, _places(self._model)
        return self._model

    @model.setter
    def model(self, model: GPT) -> None:
        self._model, self._stored, self._places_at_first = model, None, None

    @property
    def stored(self) -> StoredModel | None:
        """The weights as they lie in their file; None once the torch module was asked for, which may be changed."""
        return self._stored

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back.

        Raises:
            UserError: The model came without one.
        """
        if self._tokenizer is None:
            raise UserError(
                "this model came without a tokenizer.json, so it knows ids and no text",
                where=str(self.source or "model"),
                mend="Put a tokenizer.json into its folder, or use lm.model(ids).",
            )
        return self._tokenizer

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer; '' when there is none."""
        return "" if self._tokenizer is None else self._tokenizer.fingerprint

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be used."""
        return self._tokenizer is not None

    def generate(self, prompt: str, **options: Any) -> str:
        """Continue a text.

        Args:
            prompt: How the text begins; may be empty.
            options: Fields of `SamplingParams`: max_tokens, temperature (0 is greedy), top_k, top_p, min_p,
                repetition_penalty, seed, stop and more; `Engine` has all of it, and many prompts at once.

        Raises:
            UserError: The prompt is longer than the context, or an option is unknown or out of range.
        """
        return self._engine().complete(prompt, _sampling(options)).text

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Like `generate`, piece by piece; a piece never ends inside a character."""
        return self._engine().stream(prompt, _sampling(options))

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """The assistant's next message to a conversation of {"role": …, "content": …}."""
        ids = self.tokenizer.encode_chat(messages, add_generation_prompt=True)
        return self._engine().complete(ids, _sampling(options)).text

    def stream_chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Iterator[str]:
        """Like `chat`, piece by piece."""
        ids = self.tokenizer.encode_chat(messages, add_generation_prompt=True)
        return self._engine().stream(ids, _sampling(options))

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or sent to another process: not the engine, whose cache and threads live here."""
        return {**self.__dict__, "_places_at_first": None, "_made": None}

    @property
    def engine(self) -> Engine:
        """What answers with the weights as they are now: many requests at once. Another one after they have changed."""
        return self._engine()

    def _engine(self) -> Engine:
        """The engine of these weights and settings; a new one when they have changed since, in place or by others."""

        def state() -> Any:
            places = None if self._model is None else _places(self._model)
            return self.engine_settings, None if places == self._places_at_first else places

        if self._made is None or self._made[0] != state():
            engine = Engine(self, self.tokenizer, self.engine_settings)
            self._made = state(), engine  # the engine may have unpacked the weights
        return self._made[1]

    def fit(
        self,
        inputs: Any,
        targets: Any = None,
        *,
        epochs: int = 1,
        settings: TrainingSettings | None = None,
        loss: Loss | str | None = None,
        optimizer: torch.optim.Optimizer | OptimizerFactory | str | None = None,
        callbacks: Iterable[Callback] = (),
        validation: Any = None,
    ) -> LM:
        """Train: the short way to `Trainer`.

        Args:
            inputs: A text, texts, pairs, records, conversations, `pathlib.Path`s of files, prepared shards, or ids; the
                table in docs/training.md says what is trained of each.
            targets: What to say after each input; only these are trained then. None: the inputs themselves are learned.
            epochs: Passes over the data.
            settings: Rates and sizes; `steps` comes from the epochs. None: the defaults, or AdamW with a cosine for a
                model that was loaded: what another optimizer has learned, Muon's equal steps would undo.
            loss: A loss of your own, (logits, targets, weights) → scalar, or the name of one.
            optimizer: A ready one, a function of the parameters that makes it, or the name of one.
            callbacks: See `bimo.training.Callback`.
            validation: What to measure on: like the inputs, a pair of inputs and targets, or a share of the rows.
        """
        from bimo.core.config import TrainingSettings
        from bimo.training import Trainer

        settings = settings or (TrainingSettings() if self.source is None else TrainingSettings(**_GENTLE))
        self.source = self.label_head = None  # its states are trained away from a head of labels
        trainer = Trainer(self, settings, loss=loss, optimizer=optimizer, callbacks=callbacks)
        trainer.fit(inputs, targets, epochs=epochs, validation=validation)
        return self

    def batches(self, inputs: Any, targets: Any = None, *, batch_size: int, seed: int) -> BatchStream:
        """Shuffled batches; each row is one example, or a piece of a text that is longer than the context."""
        return self.rows_of(inputs, targets).stream(batch_size, seed)

    def rows_of(self, data: Any, targets: Any = None, name: str = "inputs", tell: Tell | None = None) -> Source:
        """What a user has as rows of ids; see `fit`.

        Args:
            data: As `fit` takes it.
            targets: As `fit` takes them.
            name: What to call the data in errors; "validation" takes the held-out part of a prepared run.
            tell: Told of what is left out; None: it is logged.

        Raises:
            UserError: Something in it cannot be learned from; its place is named.
        """
        from bimo.examples.encoding import encode_examples
        from bimo.examples.kinds import examples_of
        from bimo.examples.prepared import prepared_rows
        from bimo.training.ids import Shape, are_ids, id_rows
        from bimo.training.inputs import log_event, peeked, tell_untrained
        from bimo.training.rows import RowWriter

        tell = tell or log_event
        T, spec = self.model.spec.context_length, self.model.spec
        prepared = prepared_rows(data, self.fingerprint, T, valid=name == "validation")
        if prepared is not None:
            if targets is not None:
                raise UserError("prepared text holds its targets already", where=name, mend="Give no targets.")
            return prepared
        data, first = peeked(data)
        pad = self.tokenizer.pad_id if self.has_tokenizer else max(spec.padding_id, 0)
        writer = RowWriter(pad, T)
        if are_ids(data if first is None else first):
            rows = id_rows(data, targets, Shape(spec.vocab_size, T, pad), name, writer)
        else:
            rows = encode_examples(examples_of(data, targets, name, tell), self.tokenizer, writer)
        tell_untrained(writer, tell)
        return rows

    def show(self, ids: Sequence[int]) -> str:
        """Ids as a person reads them."""
        return self.tokenizer.decode(ids) if self.has_tokenizer else " ".join(map(str, ids))

    def figures(self, gpt: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Loss in nats per token and, of text, bits per byte: what `Trainer.fit` measures on its validation data."""
        import torch

        from bimo.evaluation.metrics import bits_per_byte
        from bimo.training.inputs import mean_loss

        if not self.has_tokenizer:
            return {"loss": mean_loss(gpt, batches)}
        found = bits_per_byte(gpt, batches, torch.from_numpy(self.tokenizer.token_bytes()))
        return {"loss": found["valid_loss"], "bits_per_byte": found["bits_per_byte"]}

    def save(self, folder: str | Path) -> Path:
        """Write the model's folder: weights, configuration, tokenizer; it opens in transformers as it lies."""
        from bimo.interop import export

        return export(self.model, self._tokenizer, Path(folder), "hf", beside=self._beside())

    def export(self, output: str | Path, format: str = "", *, dtype: str = "float32") -> Path:
        """Write the model for other tools.

        Args:
            output: A folder for "hf", a file for everything else.
            format: hf, a format of GGUF (F32, F16, BF16, Q8_0, Q4_0, Q4_K), or onnx. "": F16 for a name that ends in
                .gguf, onnx for .onnx, else hf.
            dtype: Of the weights in a Hugging Face folder: float32, float16 or bfloat16.

        Raises:
            UserError: The format cannot hold this model; it says why.
        """
        from bimo.interop import export, format_by_name

        output = Path(output)
        format = format or format_by_name(output)
        return export(self.model, self._tokenizer, output, format, dtype, source=self.source, beside=self._beside())

    def _beside(self) -> dict[str, bytes]:
        """What stands beside the weights: what the model was trained for."""
        from bimo.interop.label_heads import head_file
        from bimo.tasks.saved import tasks_file

        return tasks_file(self.tasks) | head_file(self.label_head)


def load(name: str | Path) -> LM:
    """Open a run (`runs/NAME`), a Hugging Face folder or hub name, or a .gguf file.

    Weights of a .gguf file stay packed in the mapped file; generation and training unpack them.

    Raises:
        UserError: There is nothing that can be opened; it says what was looked for.
    """
    if not isinstance(name, (str, Path)):
        raise UserError(f"a path must be text, is {type(name).__name__}", mend="For example bimo.load('runs/demo').")
    path = find_model(name)
    model, tokenizer = open_stored(path)
    lm = LM(model, tokenizer, source=path.absolute())
    if path.is_dir():
        from bimo.interop.label_heads import load_head
        from bimo.tasks.classification import labels_of
        from bimo.tasks.saved import saved_tasks

        lm.tasks = saved_tasks(path)
        lm.label_head = load_head(path, model.spec.d_model, len(labels_of(lm.tasks)))
    return lm


def new(spec: ModelSpec, tokenizer: Tokenizer, *, seed: int = 0) -> LM:
    """A model with random weights; the vocabulary's size is the tokenizer's."""
    import torch

    from bimo.model.gpt import GPT

    model = GPT(replace(spec, vocab_size=tokenizer.vocab_size))
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return LM(model, tokenizer)


_GENTLE: dict[str, Any] = {"optimizer": "adamw", "schedule": "cosine", "min_learning_rate": 1e-4, "warmup_steps": 50}


def _places(model: GPT) -> Any:
    """Where each parameter lies and how often it was written to: what changes when a weight does."""
    from bimo.model.packed import PackedTensor

    places = ((id(p) if isinstance(p, PackedTensor) else p.data_ptr(), p._version) for p in model.parameters())
    return tuple(places)


def _sampling(options: dict[str, Any]) -> SamplingParams:
    stop = options.get("stop", ())
    return SamplingParams.from_dict({**options, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})
