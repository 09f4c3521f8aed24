"""A head of labels in a file of its own beside the model, which opens everywhere without it."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from bimo.core.errors import UserError
from bimo.model.heads import LabelHead

FILE = "label_head.safetensors"
_MOST_BYTES = 2**28


def head_file(head: LabelHead | None) -> dict[str, bytes]:
    """The file's name and content, to be written with a model; nothing for a model without such a head."""
    return {} if head is None else {FILE: save({"weight": head.weight, "bias": head.bias})}


def load_head(folder: Path, d_model: int, n_labels: int) -> LabelHead | None:
    """The head in a model's folder; None where there is none.

    Args:
        folder: The model's folder.
        d_model: Width of the model.
        n_labels: How many labels its task has.

    Raises:
        UserError: The file is damaged, or belongs to another model or other labels.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is far too large")
        tensors = load(path.read_bytes())
        head = LabelHead(tensors["weight"].float(), tensors["bias"].float())
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"no head of labels ({error})", where=str(path), mend="Copy the folder again.") from error
    wanted = (n_labels, d_model)
    if tuple(head.weight.shape) != wanted or tuple(head.bias.shape) != (n_labels,):
        what = f"the head is {tuple(head.weight.shape)}, model and labels are {wanted}"
        raise UserError(what, where=str(path), mend="Copy the model's folder again.")
    if not (head.weight.isfinite().all() and head.bias.isfinite().all()):
        raise UserError("the head holds NaN or infinite numbers", where=str(path), mend="Train it again.")
    return head
