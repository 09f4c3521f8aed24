"""Ids that a user gives: lists, arrays and tensors of whole numbers become rows; what is no id is named by place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from bimo.core.errors import UserError
from bimo.training.rows import RowWriter, TokenRows

_MEND = "Give whole numbers: one long list, rows of them, or an (N, T) array or tensor."


@dataclass(frozen=True, slots=True)
class Shape:
    """What the model can read.

    Attributes:
        vocab_size: Ids are 0 … vocab_size - 1.
        context_length: Most ids at once.
        pad: Fills short rows.
    """

    vocab_size: int
    context_length: int
    pad: int


def id_rows(data: Any, targets: Any, shape: Shape, name: str, writer: RowWriter) -> TokenRows:
    """Rows of ids.

    Args:
        data: One long stream of ids (it is cut into rows), rows of ids, or pairs (ids to read, ids to say).
        targets: What to say after each row of `data`; only these ids are trained then. One id or several for each.
        shape: What the model can read.
        name: What to call `data` in errors.
        writer: An empty one; it tells afterwards which rows were left out.

    Raises:
        UserError: Something in it is no id, or an answer does not fit.
    """
    inputs, answers = _table(data, name), None if targets is None else _table(targets, "targets")
    if isinstance(inputs, list) and inputs and all(map(_is_pair, inputs)):
        if answers is not None:
            raise UserError("the inputs are pairs already, and targets were given too", where=name, mend="Give one.")
        inputs, answers = [pair[0] for pair in inputs], [pair[1] for pair in inputs]
    if answers is None:
        if isinstance(inputs, np.ndarray) and inputs.ndim == 1:
            inputs = [inputs]
        if isinstance(inputs, np.ndarray) and len(inputs) and 1 < inputs.shape[1] <= shape.context_length + 1:
            return writer.table(_in_vocabulary(inputs, name, shape))
        for number, row in enumerate(inputs):
            ids = _ids(row, f"{name}[{number}]", shape)
            writer.add(ids, b"\1" * len(ids), f"{name}[{number}]")
        return writer.rows()
    if isinstance(inputs, np.ndarray) and inputs.ndim == 1:
        raise UserError("one long stream of ids has no targets", where=name, mend="Give rows of ids, one per target.")
    if len(inputs) != len(answers):
        raise UserError(f"there are {len(inputs)} inputs and {len(answers)} targets", where=name, mend="Match them.")
    pairs = list(_pairs(inputs, answers, name, shape))
    _refuse_moved_by_one(pairs, name)
    for number, (prompt, answer) in enumerate(pairs):
        ids = np.concatenate((prompt, answer))
        writer.add(ids, b"\0" * len(prompt) + b"\1" * len(answer), f"{name}[{number}]", whole=True)
    return writer.rows()


def are_ids(value: Any) -> bool:
    """Whether a value is an id, or a collection that begins with one."""
    if isinstance(value, (np.ndarray, Tensor)):
        return not isinstance(value, np.ndarray) or value.dtype.kind in "iufb"
    if isinstance(value, (tuple, list, range)) and value:
        return are_ids(value[0])
    return isinstance(value, (int, float, np.number))


def _table(values: Any, name: str) -> np.ndarray | list[Any]:
    """An array of one or two dimensions, or a list of rows."""
    array = _array(values)
    if isinstance(array, np.ndarray):
        if array.ndim not in (1, 2):
            raise UserError(f"an array of {array.ndim} dimensions holds no rows of ids", where=name, mend=_MEND)
        return array
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise UserError(f"{_named(values)}, not ids", where=name, mend=_MEND)
    rows = list(values)
    flat = bool(rows) and all(isinstance(row, (int, float, np.number)) for row in rows)
    return np.array(rows) if flat else rows


def _array(values: Any) -> Any:
    """Tensors as arrays, arrays of objects as lists, everything else as it is."""
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return values.tolist() if isinstance(values, np.ndarray) and values.dtype == object else values


def _ids(values: Any, where: str, shape: Shape) -> np.ndarray:
    """A row as integers, (n,), all in the vocabulary."""
    values = _array(values)
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, (Sequence, np.ndarray)):
        raise UserError(f"{_named(values)}, not a row of ids", where=where, mend=_MEND)
    try:
        ids = np.array(values) if len(values) else np.empty(0, np.int64)
    except (ValueError, OverflowError) as error:
        raise UserError(f"not a row of ids ({str(error)[:80]})", where=where, mend=_MEND) from error
    if ids.ndim != 1 or ids.dtype.kind not in "iuf":
        wrong = next((v for v in values if isinstance(v, bool) or not isinstance(v, (int, float, np.number))), values)
        raise UserError(f"it holds {_named(wrong)}, not ids", where=where, mend=_MEND)
    return _in_vocabulary(ids, where, shape)


def _in_vocabulary(ids: np.ndarray, where: str, shape: Shape) -> np.ndarray:
    """The numbers as int32; of a table, (N, T), the first wrong row is named."""
    whole = ids.dtype.kind in "iu" or (ids.dtype.kind == "f" and np.isfinite(ids) & (ids == np.floor(ids)))
    wrong = ~np.broadcast_to(whole, ids.shape)
    if ids.dtype.kind not in "iuf":
        raise UserError(f"it holds {ids.dtype}, not ids", where=where, mend=_MEND)
    outside = wrong | (ids < 0) | (ids >= shape.vocab_size)
    if not outside.any():
        return ids.astype(np.int32)
    place = np.unravel_index(int(outside.argmax()), ids.shape)
    where = f"{where}[{place[0]}]" if ids.ndim == 2 else where
    if wrong[place]:
        raise UserError(f"{ids[place]} is no whole number, so it is no id", where=where, mend=_MEND)
    raise UserError(
        f"id {ids[place]:.0f} lies outside 0 … {shape.vocab_size - 1}",
        where=where,
        mend="Use this model's tokenizer, or make the model with a larger vocab_size.",
    )


def _pairs(inputs: Any, answers: Any, name: str, shape: Shape) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for number, (prompt, answer) in enumerate(zip(inputs, answers, strict=True)):
        one = isinstance(answer, (int, float, np.number)) and not isinstance(answer, bool)
        said = _ids([answer] if one else answer, f"targets[{number}]", shape)
        yield _ids(prompt, f"{name}[{number}]", shape), said


def _refuse_moved_by_one(pairs: list[tuple[np.ndarray, np.ndarray]], name: str) -> None:
    """Other trainers want targets that are the inputs one step on; here these would be taken for answers."""
    alike = sum(len(x) for x, y in pairs if len(x) == len(y) > 1 and np.array_equal(x[1:], y[:-1]))
    if alike > 4 and alike == sum(len(x) for x, _ in pairs):
        raise UserError(
            "the targets are the inputs moved by one",
            where=name,
            mend="Give the rows alone, one id longer: what follows each id is known from them.",
        )


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and not any(isinstance(v, (int, float, str)) for v in value)


def _named(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__}"
