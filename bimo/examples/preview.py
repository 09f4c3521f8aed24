"""Which tokens of a row are trained, to look at: they stand out, and what is only read is dim."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.text import Text

from bimo.tokenizer import Tokenizer

_TRAINED, _READ = "bold green", "dim"


def preview(ids: Sequence[int], trained: Sequence[int], tokenizer: Tokenizer, labels: Sequence[str] = ()) -> Text:
    """A row as a person reads it, control tokens by name.

    Args:
        ids: The row.
        trained: For each of them whether it is a target.
        tokenizer: Ids to text.
        labels: Of a head of labels: what is trained is the number of one of these.
    """
    shown = Text()
    for counts, group in groupby(zip(ids, trained, strict=True), key=lambda pair: bool(pair[1])):
        own = [i for i, _ in group]
        if labels and counts:
            text = "".join(f" [{labels[number]}]" for number in own)
        else:
            text = tokenizer.decode(own, show_control_tokens=True)
        shown.append(text, style=_TRAINED if counts else _READ)
    return shown
