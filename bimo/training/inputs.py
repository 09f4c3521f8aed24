"""What a user may hand to `fit`: data to train on, and data to measure on, as batches.

Batches are taken as they are; ids become rows; text and files need a model that brings its tokenizer (`bimo.LM`). What
is measured on is never trained on: a share is held out by a hash, and rows that stand in both are dropped and told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from bimo.core.batch import Batch
from bimo.core.config import TrainingSettings
from bimo.core.errors import UserError
from bimo.training.ids import Shape, are_ids, id_rows
from bimo.training.losses import chunked_cross_entropy
from bimo.training.rows import RowWriter, TokenRows
from bimo.training.streams import BatchStream, Resumable, stream_batches

Measure = Callable[[nn.Module], dict[str, float]]
_SHOWN = 3  # rows that are shown of those that were dropped
_log = logging.getLogger("bimo.training")


class Tell(Protocol):
    """Told of what a person should know of the data: `Trainer.event`."""

    def __call__(self, kind: str, /, **facts: Any) -> None: ...


@runtime_checkable
class Source(Protocol):
    """Rows that can be trained on and measured on."""

    def stream(self, batch_size: int, seed: int) -> BatchStream:
        """Shuffled, epoch after epoch."""
        ...

    def in_order(self, batch_size: int) -> Iterable[Batch]:
        """Once, to measure."""
        ...


@runtime_checkable
class TextModel(Protocol):
    """A model that brings its tokenizer (`bimo.LM`): it turns what a user has into rows, and measures text."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def fingerprint(self) -> str:
        """Of the tokenizer."""
        ...

    def rows_of(self, data: Any, targets: Any, name: str, tell: Tell) -> Source:
        """What a user has as rows; `name` is what to call it in errors."""
        ...

    def show(self, ids: Sequence[int]) -> str:
        """Ids as a person reads them."""
        ...

    def figures(self, gpt: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Loss, and what else is known of text."""
        ...


def log_event(kind: str, /, **facts: Any) -> None:
    """A `Tell` for where there is no run yet."""
    _log.warning("%s: %s", kind, facts.get("what", ""))


def open_data(
    model: nn.Module | TextModel,
    data: Any,
    targets: Any,
    validation: Any,
    settings: TrainingSettings,
    tell: Tell = log_event,
) -> tuple[Any, Measure | None]:
    """An iterable of batches to train on, and a function that measures on the validation data.

    Args:
        model: A GPT, or an LM, which also takes text.
        data: See `Trainer.fit`.
        targets: What to say after each input; None: the inputs themselves are learned.
        validation: Like `data`, a pair of that and its targets, or the share of the rows of `data` to hold out.
        settings: Rows per batch and the seed of their order.
        tell: Told of rows that are left out.
    """
    opened = _opened(model, data, targets, "inputs", tell)
    measure: Measure | None = None
    if isinstance(validation, (Real, np.number)):
        opened, held = _held_out_share(opened, float(validation), validation)
        measure = _measure(model, held, settings)
    elif validation is not None:
        held = _opened(model, *_with_targets(validation), "validation", tell)
        if isinstance(opened, TokenRows) and isinstance(held, TokenRows):
            opened = _without_overlap(model, opened, held, tell)
        measure = _measure(model, held, settings)
    return _stream(opened, settings), measure


def as_stream(model: nn.Module | TextModel, data: Any, targets: Any, settings: TrainingSettings) -> Any:
    """What a user has as an iterable of batches."""
    return _stream(_opened(model, data, targets, "inputs", log_event), settings)


def held_out(model: nn.Module | TextModel, validation: Any, settings: TrainingSettings) -> Measure:
    """A function that measures a model on held-out data: its mean loss in nats per trained token, and more on text."""
    return _measure(model, _opened(model, *_with_targets(validation), "validation", log_event), settings)


def length(data: Any) -> int:
    """Batches per epoch."""
    if not hasattr(data, "__len__"):
        raise UserError(
            "these data have no length, so nobody knows when an epoch ends",
            mend="Give a list, or a number of updates: Trainer(model, TrainingSettings(steps=1000)).fit(data).",
        )
    return len(data)


def steps_of(epochs: object, data: Any) -> int:
    """Updates in a number of epochs.

    Raises:
        UserError: It is no number of epochs.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, (int, np.integer)) or epochs < 1:
        raise UserError(f"epochs must be a whole number from 1 on, is {epochs!r}", mend="For example epochs=3.")
    return int(epochs) * length(data)


def check_given_batch(batch: object, giver: object) -> Batch:
    """What a callback gives in place of a batch must be one."""
    if not isinstance(batch, Batch):
        raise UserError(
            f"{type(giver).__name__}.on_batch returns {type(batch).__name__}",
            mend="Return a Batch, or None to leave the one that was read.",
        )
    return batch


def check_given(model: object, settings: object) -> None:
    """A model and settings, and not what leads to them.

    Raises:
        UserError: One of them is something else.
    """
    if not isinstance(model, (nn.Module, TextModel)):
        raise UserError(
            f"{type(model).__name__} is no model",
            where="model",
            mend='Give an LM or a GPT, for example bimo.load("runs/mine").',
        )
    if not isinstance(settings, TrainingSettings):
        raise UserError(
            f"{type(settings).__name__} are no settings",
            where="settings",
            mend="Give TrainingSettings(learning_rate=1e-3, …).",
        )


def tell_untrained(writer: RowWriter, tell: Tell) -> None:
    """Say which examples gave nothing to train on."""
    if writer.n_untrained:
        names = ", ".join(writer.untrained) + (" …" if writer.n_untrained > len(writer.untrained) else "")
        what = f"{writer.n_untrained} of {writer.n_examples} rows have no token to train on and are left out: {names}"
        tell("rows without a trained token", what=what, count=writer.n_untrained, rows=list(writer.untrained))


def _opened(model: nn.Module | TextModel, data: Any, targets: Any, name: str, tell: Tell) -> Any:
    """A `Source`, or an iterable of batches."""
    if isinstance(data, Resumable):
        return data
    data, first = peeked(data)
    if isinstance(first, Batch):
        if targets is not None:
            raise UserError("batches hold their targets already", where=name, mend="Give no targets.")
        return stream_batches(data) if isinstance(data, Sequence) else data
    if isinstance(model, TextModel):
        return model.rows_of(data, targets, name, tell)
    if not are_ids(first) and not are_ids(data):
        given = "nothing" if first is None and data is not None else type(first if first is not None else data).__name__
        raise UserError(
            f"the data gives {given} and not Batch or ids", where=name, mend="Text needs a tokenizer: use bimo.LM."
        )
    shape = shape_of(model)
    writer = RowWriter(shape.pad, shape.context_length)
    rows = id_rows(data, targets, shape, name, writer)
    tell_untrained(writer, tell)
    return rows


def shape_of(model: nn.Module) -> Shape:
    """What ids a model can read."""
    spec = getattr(model, "spec", None)
    if spec is None:
        raise UserError("this model has no spec, so nobody knows which ids it reads", mend="Give batches.")
    return Shape(spec.vocab_size, spec.context_length, max(spec.padding_id, 0))


def peeked(data: Any) -> tuple[Any, Any]:
    """The data, and its first element where there is one; an iterator is put together again."""
    if isinstance(data, np.ndarray) and data.dtype == object:
        data = data.tolist()
    if isinstance(data, (str, bytes, torch.Tensor, np.ndarray)) or not isinstance(data, Iterable):
        return data, None
    first: Any = next(iter(data), None) if not isinstance(data, Iterator) else next(data, None)
    if isinstance(data, Iterator) and first is not None:
        data = chain([first], data)
    return data, first


def _stream(opened: Any, settings: TrainingSettings) -> Any:
    return opened.stream(settings.batch_size, settings.seed) if isinstance(opened, Source) else opened


def _with_targets(validation: Any) -> tuple[Any, Any]:
    return validation if isinstance(validation, tuple) and len(validation) == 2 else (validation, None)


def _held_out_share(opened: Any, share: float, given: object) -> tuple[TokenRows, TokenRows]:
    if isinstance(given, bool) or not 0 < share < 1:
        raise UserError(
            f"a share to hold out lies between 0 and 1, this is {given}", where="validation", mend="For example 0.1."
        )
    if not isinstance(opened, TokenRows):
        raise UserError(
            "no share can be held out of batches or of prepared shards", where="validation", mend="Give other data."
        )
    return opened.split(share)


def _without_overlap(model: nn.Module | TextModel, rows: TokenRows, held: TokenRows, tell: Tell) -> TokenRows:
    """Rows to train on without those that stand in the validation data too."""
    by_row = rows.is_single and held.is_single
    shared = np.isin(rows.keys(by_row=by_row), held.keys(by_row=by_row))
    if not shared.any():
        return rows
    if shared.all():
        raise UserError(
            "every row to train on stands in the validation data too",
            where="validation",
            mend="Give other rows, or a share like validation=0.1.",
        )
    show = model.show if isinstance(model, TextModel) else lambda ids: " ".join(map(str, ids))
    _, firsts = np.unique(rows.examples[shared], return_index=True)
    examples = [show(rows.beginning(n)) for n in np.flatnonzero(shared)[firsts[:_SHOWN]].tolist()]
    what = f"{len(firsts)} rows stand in the validation data too and are not trained on: {'; '.join(examples)}"
    tell("overlap", what=what, count=len(firsts), examples=examples)
    return rows.chosen(~shared)


def _measure(model: nn.Module | TextModel, held: Any, settings: TrainingSettings) -> Measure:
    def batches() -> Iterable[Batch]:
        most = settings.micro_batch_size  # what does not fit into memory in training does not fit here
        if isinstance(held, Source):
            return held.in_order(min(most or settings.batch_size, settings.batch_size))
        whole = (held[n] for n in range(length(held)))
        return (part for batch in whole for part in batch.split(most or max(batch.n_rows, 1)))

    if not isinstance(held, Source) and not hasattr(held, "__getitem__"):
        raise UserError("an endless stream cannot be measured on", where="validation", mend="Give a list of batches.")

    def measure(gpt: nn.Module) -> dict[str, float]:
        return model.figures(gpt, batches()) if isinstance(model, TextModel) else {"loss": mean_loss(gpt, batches())}

    return measure


@torch.no_grad()  # no inference mode: weights that FSDP2 gathers in it could not be trained with afterwards
def mean_loss(gpt: Any, batches: Iterable[Batch]) -> float:
    """Cross-entropy in nats per trained token, without ever holding all logits; each process reads all batches."""
    device = next(gpt.parameters()).device
    total, count = 0.0, 0.0
    for batch in batches:
        part, weight = batch.to(device), batch.weight_sum()
        if weight:
            hidden = gpt.hidden(part.ids, positions=part.positions, documents=part.documents)  # (B, T, C)
            head, softcap = gpt.lm_head.weight, gpt.spec.logit_softcap
            total += float(chunked_cross_entropy(hidden, head, part.targets, part.weights, softcap))
            count += weight
    return total / max(count, 1.0)
