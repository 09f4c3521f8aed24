"""LM: a GPT with its tokenizer, so text goes in and text comes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bimo.core.config import ModelSpec, TrainingSettings
from bimo.core.errors import UserError
from bimo.engine import Engine, SamplingParams
from bimo.interop import export, find_model, format_by_name, open_model
from bimo.model.gpt import GPT
from bimo.tokenizer import Tokenizer
from bimo.training import Callback, Trainer
from bimo.training.losses import Loss
from bimo.training.streams import BatchStream, TokenRow, stream_rows


class LM:
    """A language model as a person uses it.

    Args:
        model: The GPT, a torch module: `lm.model(ids)` gives logits (B, T, V).
        tokenizer: Text to ids and back; None for a model that came without one.
        source: The folder or file that the model was read from and still equals.

    Attributes:
        model: As given.
        source: As given; None as soon as the model was trained.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer | None, source: Path | None = None) -> None:
        if tokenizer is not None and tokenizer.vocab_size > model.spec.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model only {model.spec.vocab_size}",
                mend="Use the tokenizer that the model was trained with.",
            )
        self.model, self.source = model, source
        self._tokenizer = tokenizer

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
                repetition_penalty, seed, stop.

        Raises:
            UserError: The prompt is longer than the context, or an option is unknown or out of range.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Like `generate`, piece by piece; a piece never ends inside a character."""
        engine = Engine(self.model, self.tokenizer)
        return engine.stream(engine.prompt_ids(prompt), _sampling(options))

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """The assistant's next message to a conversation of {"role": …, "content": …}."""
        return "".join(self.stream_chat(messages, **options))

    def stream_chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Iterator[str]:
        """Like `chat`, piece by piece."""
        ids = self.tokenizer.encode_chat(messages, add_generation_prompt=True)
        return Engine(self.model, self.tokenizer).stream(ids, _sampling(options))

    def fit(
        self,
        inputs: Any,
        targets: Sequence[str] | None = None,
        *,
        epochs: int = 1,
        settings: TrainingSettings | None = None,
        loss: Loss | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> LM:
        """Train on texts: the short way to `Trainer`.

        Args:
            inputs: A text, a sequence of texts, or an (N, T) array or tensor of ids.
            targets: What to say after each input; only these are trained then. None: the inputs themselves are learned.
            epochs: Passes over the data.
            settings: Rates and sizes; `steps` comes from the epochs.
            loss: A loss of your own, (logits, targets, weights) → scalar.
            callbacks: See `bimo.training.Callback`.
        """
        self.source = None
        Trainer(self, settings, loss=loss, callbacks=callbacks).fit(inputs, targets, epochs=epochs)
        return self

    def batches(self, inputs: Any, targets: Any = None, *, batch_size: int, seed: int) -> BatchStream:
        """Shuffled batches; each row is one text, or a piece of one that is longer than the context."""
        rows = list(self._rows(inputs, targets))
        longest = self.model.spec.context_length
        return stream_rows(rows, batch_size=batch_size, seed=seed, pad=self.tokenizer.pad_id, longest=longest)

    def save(self, folder: str | Path) -> Path:
        """Write the model's folder: weights, configuration, tokenizer; it opens in transformers as it lies."""
        return export(self.model, self._tokenizer, Path(folder), "hf")

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
        output = Path(output)
        return export(self.model, self._tokenizer, output, format or format_by_name(output), dtype, source=self.source)

    def _rows(self, inputs: Any, targets: Any) -> Iterator[TokenRow]:
        """Ids of each row, one more than the model reads, and which of them are trained."""
        longest = self.model.spec.context_length + 1
        begin, end = ([] if i is None else [i] for i in (self.tokenizer.begin_id, self.tokenizer.end_id))
        texts = [inputs] if isinstance(inputs, str) else inputs
        if not hasattr(texts, "__iter__"):
            raise UserError(f"inputs must be text, texts or ids, are {type(inputs).__name__}", mend="Give a list.")
        texts = texts if hasattr(texts, "__len__") else list(texts)
        if targets is not None and (isinstance(targets, str) or len(targets) != len(texts)):
            raise UserError(f"there are {len(texts)} inputs but the targets do not match them one to one")
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                ids = self._checked_ids(text, number)
            elif targets is None:
                ids = [*begin, *self.tokenizer.encode(text), *end]
            else:
                prompt = [*begin, *self.tokenizer.encode(text)]
                ids = [*prompt, *self.tokenizer.encode(targets[number]), *end]
                if len(ids) > longest:
                    raise UserError(
                        f"input {number} and its target have {len(ids)} tokens together, the model sees {longest - 1}",
                        mend="Shorten or drop it.",
                    )
                yield _row(ids, len(prompt))
                continue
            for start in range(0, len(ids) - 1, longest - 1):
                yield _row(ids[start : start + longest], 1)

    def _checked_ids(self, ids: Any, number: int) -> list[int]:
        """Ids that are not text, as a list; they must lie in the vocabulary."""
        size = self.model.spec.vocab_size
        try:
            numbers = [int(i) for i in ids]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"input {number} is {type(ids).__name__}, neither text nor ids", mend="Give text, or whole numbers."
            ) from error
        if not all(0 <= i < size for i in numbers):
            raise UserError(f"input {number} has ids outside 0 … {size - 1}", mend="Use this model's tokenizer.")
        return numbers


def load(name: str | Path) -> LM:
    """Open a run (`runs/NAME`), a Hugging Face folder or hub name, or a .gguf file.

    Weights of a .gguf file stay packed in the mapped file; generation and training unpack them.

    Raises:
        UserError: There is nothing that can be opened; it says what was looked for.
    """
    if not isinstance(name, (str, Path)):
        raise UserError(f"a path must be text, is {type(name).__name__}", mend="For example bimo.load('runs/demo').")
    path = find_model(name)
    model, tokenizer = open_model(path)
    return LM(model, tokenizer, source=path.absolute())


def new(spec: ModelSpec, tokenizer: Tokenizer, *, seed: int = 0) -> LM:
    """A model with random weights; the vocabulary's size is the tokenizer's."""
    model = GPT(replace(spec, vocab_size=tokenizer.vocab_size))
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return LM(model, tokenizer)


def _sampling(options: dict[str, Any]) -> SamplingParams:
    stop = options.get("stop", ())
    return SamplingParams.from_dict({**options, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})


def _row(ids: list[int], untrained: int) -> TokenRow:
    """A row whose first ids are not trained."""
    weights = np.ones(len(ids), np.float32)
    weights[:untrained] = 0.0
    return TokenRow(np.array(ids, np.int64), weights)
