"""`bimo quantize`: a model of 8 or 4 bits, what it costs, and a folder for it, wired.

Text is cut into short rows. Two of three are looked at while rounding, the third is measured on. Where no text is
given, the model writes its own: then the cost is that on what it would say itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bimo.core.config import DataSettings
from bimo.core.errors import UserError, nearest
from bimo.data.corpus import Corpus
from bimo.evaluation.cost import Cost, measure_cost, stored_bytes
from bimo.interop import save_packed
from bimo.lm import LM, load
from bimo.model.cache import KVCache
from bimo.model.gpt import GPT
from bimo.model.packed import twin, unpack
from bimo.model.quant import MATRICES, quantize_model, unquantized

LIMITS = {"int8": 0.02, "int4": 0.2}
"""Nats per token that a model may lie from the full one, activations of 8 bits included, before `save` refuses it."""

_ROW, _LEAST_ROW = 256, 8  # tokens
_ROWS = 54  # of which two of three are looked at, and the third is measured on
_CHARACTERS = 2**21  # of each text that are read
Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Quantized:
    """A quantised model and what it costs.

    Attributes:
        lm: The model; its matrices stay packed until something computes with them.
        to: int8 or int4.
        cost: What was measured.
        limit: Nats per token beyond which it is not saved unless told.
        text: What it was measured on, in words.
        left: Matrices that no block of the format fits, and routers: they stay as they are.
        source: Where the full model came from.
    """

    lm: LM
    to: str
    cost: Cost
    limit: float
    text: str
    left: tuple[str, ...]
    source: Path | None

    def __str__(self) -> str:
        cost, before = self.cost, self.cost.bits_per_byte_before
        lines = [f"measured on {cost.n_tokens:,} tokens of {self.text}", f"full model: {before:.4f} bits per byte"]
        lines.append(f"{'':34} {'KL, nats per token':>20} {'top-1 changes':>14} {'bits per byte':>14}")
        rows = {f"{self.to}": cost.weights, f"{self.to}, activations of 8 bits": cost.engine}
        for name, found in rows.items():
            kl = f"{found.kl:.5f} ± {found.kl_error:.5f}"
            lines.append(f"{name:34} {kl:>20} {found.top1_changes:>14.1%} {found.bits_per_byte:>14.4f}")
        share = cost.bytes_after / cost.bytes_before
        lines.append(f"weights: {cost.bytes_before / 1e6:.1f} MB → {cost.bytes_after / 1e6:.1f} MB ({share:.0%})")
        if self.left:
            more = f" and {len(self.left) - 3} more" if len(self.left) > 3 else ""
            lines.append(f"left as they are (blocks do not fit, or routers): {', '.join(self.left[:3])}{more}")
        return "\n".join(lines)

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write the model's folder, with the cost in `quantization.json`.

        Raises:
            UserError: It costs more than the limit, and `force` was not said; or the folder cannot be written.
        """
        kl = self.cost.engine.kl
        if not kl <= self.limit and not force:
            raise UserError(
                f"{self.to} lies {kl:.3g} nats per token from the full model, the limit is {self.limit:.3g}",
                mend="Use int8, give text of the model's own kind, or say --limit or --force.",
            )
        facts = {
            "to": self.to,
            "limit": self.limit,
            "text": self.text,
            **self.cost.to_dict(),
            "left_as_they_are": list(self.left),
        }
        tokenizer = self.lm.tokenizer if self.lm.has_tokenizer else None
        return save_packed(self.lm.model, tokenizer, Path(folder), facts=facts, source=self.source)


def quantize(
    model: LM | str | Path,
    to: str,
    *,
    text: Sequence[str | Path] | str | Path = (),
    limit: float | None = None,
    seed: int = 0,
    on_progress: Tell = lambda stage, share: None,
) -> Quantized:
    """Quantise a model and measure what it costs.

    Args:
        model: An LM, or what `bimo.load` takes; it stays as it is.
        to: int8 or int4.
        text: Files to look at and to measure on. Empty: the model writes its own text.
        limit: See `Quantized`. None: `LIMITS`.
        seed: Of the text that the model writes.
        on_progress: Told the stage and the share of it that is done.

    Raises:
        UserError: There is no such format, or too little text.
    """
    if to not in MATRICES:
        raise UserError(f"no format {to!r}{nearest(to, MATRICES)}", where="--to", mend="Use int8 or int4.")
    if limit is not None and not limit > 0:
        raise UserError(f"a limit of {limit} lets nothing through", where="--limit", mend="Give nats per token.")
    lm = model if isinstance(model, LM) else load(model)
    paths = [str(path) for path in ([text] if isinstance(text, (str, Path)) else text)]
    full = unpack(twin(lm.model)).eval()  # memory for speed
    if paths:
        rows, said = _rows_of_text(lm, paths), f"the given text: {', '.join(paths)}"
    else:
        rows = _own_text(lm, full, seed, lambda share: on_progress("writing", share))
        said = "text that the model wrote"
    measured = rows[2::3]
    looked_at = torch.cat((rows[0::3], rows[1::3]))
    small = quantize_model(full, to, looked_at, lambda share: on_progress("rounding", share))
    token_bytes = torch.from_numpy(lm.tokenizer.token_bytes()) if lm.has_tokenizer else None
    before = stored_bytes(lm.model)
    cost = measure_cost(full, small, measured, token_bytes, lambda share: on_progress("measuring", share))
    cost = replace(cost, bytes_before=before)
    found = LM(small, lm.tokenizer if lm.has_tokenizer else None)
    return Quantized(found, to, cost, limit or LIMITS[to], said, tuple(unquantized(small)), lm.source)


def _rows_of_text(lm: LM, paths: list[str]) -> Tensor:
    """Rows of equal length, evenly spread over the beginnings of some texts, (N, T)."""
    prefix, width = list(lm.tokenizer.prefix_ids), min(_ROW, lm.model.spec.context_length)
    each = [lm.tokenizer.encode(_beginning(path)) for path in paths]
    n_tokens = sum(map(len, each))
    width = min(width, n_tokens // 3 + len(prefix))  # a short text gives shorter rows
    new = width - len(prefix)
    rows = [ids[start : start + new] for ids in each for start in range(0, len(ids) - new + 1, max(new, 1))]
    if new < _LEAST_ROW or len(rows) < 3:
        what = f"{n_tokens} tokens of text are too few"
        raise UserError(what, where=", ".join(paths), mend="Give some pages, such as the model was trained on.")
    wanted = min(len(rows), _ROWS)
    spread = [rows[i * len(rows) // wanted] for i in range(wanted)]
    return torch.tensor([[*prefix, *row] for row in spread])


def _beginning(path: str) -> str:
    """The first documents of a text, up to some characters."""
    problems: list[str] = []
    corpus = Corpus([path], DataSettings(), lambda problem: problems.append(str(problem)))
    pieces, length = [], 0
    for document in corpus:
        pieces.append(document.text)
        length += len(document.text)
        if length >= _CHARACTERS:
            break
    if not pieces:
        raise UserError(f"no text in it{f' ({problems[0]})' if problems else ''}", where=path, mend="Name a text.")
    return "\n\n".join(pieces)[:_CHARACTERS]


def _own_text(lm: LM, full: GPT, seed: int, on_progress: Callable[[float], None]) -> Tensor:
    """Rows that the model writes at temperature 1 from the beginning of a document, (N, T)."""
    spec = full.spec
    begin = list(lm.tokenizer.prefix_ids or [lm.tokenizer.end_id or 0]) if lm.has_tokenizer else [0]
    known = lm.tokenizer.vocab_size if lm.has_tokenizer else spec.vocab_size
    width = min(_ROW, spec.context_length)
    ids = torch.tensor([begin]).expand(_ROWS, -1)  # (N, 1 or more)
    weight = full.lm_head.weight
    cache = KVCache(spec, len(ids), width, device=weight.device, dtype=weight.dtype)
    generator = torch.Generator().manual_seed(seed)
    new = ids
    with torch.inference_mode():
        while ids.shape[1] < width:
            logits = full.logits(full.hidden(new.to(weight.device), cache=cache)[:, -1]).float().cpu()  # (N, V)
            new = torch.multinomial(logits[:, :known].softmax(dim=-1), 1, generator=generator)
            ids = torch.cat((ids, new), dim=1)
            on_progress(ids.shape[1] / width)
    return ids.clone()
