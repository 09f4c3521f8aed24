"""From what a person hands to `fit` to a stream of (where, content); what is wrong is named by its place.

A str is always text. One that names a file is refused, because a model that has learned a file's name is no use.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bimo.core.errors import UserError
from bimo.data.files import KINDS
from bimo.examples.fields import Content, Fields, as_text, conversation, is_conversation
from bimo.examples.files import file_examples
from bimo.training.inputs import Tell

Example = tuple[str, Content]
_NO_MORE = object()
_LONGEST_NAME = 300  # characters of what may be the name of a file


def examples_of(data: Any, targets: Any, name: str, tell: Tell) -> Iterator[Example]:
    """Examples, each with the place that errors name.

    Args:
        data: A text, texts, pairs, records, conversations, a record of columns, or paths of files.
        targets: What to say after each text; None where there is nothing to say or the data hold it.
        name: What to call the data.
        tell: Told of what is left out of files.

    Raises:
        UserError: Something in it is nothing to learn from.
    """
    paths = _paths(data)
    if paths:
        if targets is not None:
            raise UserError("files hold their targets themselves", where=name, mend="Give no targets.")
        return file_examples(paths, tell)
    values = _listed(data, name)
    if targets is not None:
        return _beside(values, _listed(targets, "targets"), name)
    return _alone(values, name)


def _paths(data: Any) -> list[Path]:
    """The paths, when it is one or a list of them."""
    if isinstance(data, Path):
        return [data]
    listed = isinstance(data, (list, tuple)) and len(data) > 0 and all(isinstance(item, Path) for item in data)
    return list(data) if listed else []


def _listed(data: Any, name: str) -> Iterable[Any]:
    """One thing as a list of one, columns as records, arrays as lists."""
    if isinstance(data, str):
        refuse_file_name(data, name)
        return [data]
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # a table of pandas
        data = data.to_dict("list")
    if isinstance(data, Mapping):
        columns = {key: value for key, value in data.items() if isinstance(value, Iterable)}
        texts = {key: value for key, value in columns.items() if not isinstance(value, str)}
        return [data] if not texts or is_conversation(data.get("messages")) else _records(texts, name)
    if not isinstance(data, Iterable) or isinstance(data, bytes):
        given = "None" if data is None else type(data).__name__
        raise UserError(f"{given} is nothing to learn from", where=name, mend="Give a text, a list of texts, or ids.")
    if is_conversation(data):
        return [data]
    values = data.tolist() if hasattr(data, "tolist") else data  # an array of strings
    if isinstance(values, Sequence) and values and isinstance(values[0], str):
        refuse_file_name(values[0], f"{name}[0]", surely=True)
    return values  # type: ignore[no-any-return]  # what the user gave, of any kind


def refuse_file_name(text: str, where: str, *, surely: bool = False) -> None:
    """A text that looks like the name of a file is most likely meant as one.

    Args:
        text: What was given as text.
        where: Its place.
        surely: Only where there is a file of that name.
    """
    if not text or len(text) > _LONGEST_NAME or "\n" in text or "\0" in text:
        return
    suffix = Path(text.removesuffix(".gz")).suffix.lower()
    known = suffix in KINDS or suffix == ".tokens"
    like_one = known and not surely and not any(map(str.isspace, text))
    if like_one or (os.path.exists(text) and (known or not surely)):
        raise UserError(
            f"{text!r} is a text of {len(text)} characters here, not the file of that name",
            where=where,
            mend=f"Give pathlib.Path({text!r}) for the file.",
        )


def _records(columns: Mapping[Any, Any], name: str) -> list[dict[Any, Any]]:
    """Records out of columns of equal length."""
    lists = {key: list(column) for key, column in columns.items()}
    lengths = {key: len(column) for key, column in lists.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{key!r} has {length}" for key, length in lengths.items())
        raise UserError(f"the columns differ in length: {shown}", where=name, mend="Make them equally long.")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _beside(values: Iterable[Any], targets: Iterable[Any], name: str) -> Iterator[Example]:
    """Texts with their targets."""
    if isinstance(values, Sized) and isinstance(targets, Sized) and len(values) != len(targets):
        _unmatched(f"there are {len(values)} inputs and {len(targets)} targets", name)
    for number, (value, target) in enumerate(zip_longest(values, targets, fillvalue=_NO_MORE)):
        where = f"{name}[{number}]"
        if value is _NO_MORE or target is _NO_MORE:
            few, many = ("inputs", "targets") if value is _NO_MORE else ("targets", "inputs")
            _unmatched(f"there are {number} {few} and more {many}", name)
        if _kind(value) in ("pair", "record", "conversation"):
            raise UserError("it holds its target already, and targets were given too", where=where, mend="Give one.")
        yield where, (as_text(value, where), as_text(target, f"targets[{number}]"))


def _unmatched(what: str, name: str) -> None:
    raise UserError(f"{what}; they do not match one to one", where=name, mend="Give one target for each input.")


def _alone(values: Iterable[Any], name: str) -> Iterator[Example]:
    """Texts, pairs, records or conversations; all of the kind of the first."""
    first, fields = "", None
    for number, value in enumerate(values):
        where = f"{name}[{number}]"
        kind = _kind(value)
        first = first or kind
        if kind != first and kind:
            raise UserError(f"a {kind}, and what came before is {first}s", where=where, mend="Give one kind at a time.")
        if kind == "record":
            fields = fields or Fields.of(value, where)
            yield where, fields.content(value, where)
        elif kind == "pair":
            yield where, (as_text(value[0], where), as_text(value[1], where))
        elif kind == "conversation":
            yield where, conversation(value, where)
        else:
            yield where, as_text(value, where)


def _kind(value: Any) -> str:
    """text, pair, record or conversation; '' for what is none of them."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "record"
    if is_conversation(value):
        return "conversation"
    is_pair = isinstance(value, (tuple, list)) and len(value) == 2 and any(isinstance(part, str) for part in value)
    return "pair" if is_pair else ""
