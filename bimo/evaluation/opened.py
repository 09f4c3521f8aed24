"""A model as bimo's own contender opens it: as it lies in its file, and what it weighs; without torch where it can."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bimo.model.gpt import GPT
    from bimo.model.stored import StoredModel


@dataclass(slots=True)
class Opened:
    """A model as the engine takes it (`choosing.TextModel`): as it lies in its file, as long as nobody asks for more.

    Attributes:
        stored: The weights as they lie; or the torch module.
        tokenizer: Text to ids and back.
    """

    stored: StoredModel | GPT
    tokenizer: Any
    has_tokenizer: bool = True

    @property
    def model(self) -> GPT:
        """The torch module."""
        from bimo.model.stored import StoredModel

        if isinstance(self.stored, StoredModel):
            self.stored = self.stored.build()
        return self.stored

    def without_text(self) -> Opened:
        """The same, for ids alone."""
        return Opened(self.stored, None, has_tokenizer=False)


def set_torch_threads(threads: int) -> None:
    """Tell torch, if it is here or comes later."""
    if "torch" in sys.modules:
        from bimo.core.machine import set_threads

        set_threads(threads)
    elif threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)


def on_device(lm: Opened, options: dict[str, Any], device: str) -> dict[str, Any]:
    """The engine's options for a device: its dtype of two bytes, where the weights are not packed."""
    from bimo.core.machine import choose_precision
    from bimo.model.packed import PackedTensor

    bf16 = choose_precision(device, "auto").value == "bf16"
    packed = any(isinstance(p, PackedTensor) and p.format.block_size > 1 for p in lm.model.parameters())
    dtype = "auto" if packed else "bfloat16" if bf16 else "float32"
    return {"device": device, "dtype": dtype} | options


def sizes(model: GPT | StoredModel) -> tuple[int, int, int]:
    """Numbers in the matrices of the blocks; bytes of all weights; of those that every step reads.

    An embedding that is not the head is looked up.
    """
    from bimo.model.stored import StoredModel

    if isinstance(model, StoredModel):
        stored = {name: (id(t), t.rows.nbytes, t.shape) for name, t in model.tensors.items()}
    else:
        stored = {
            name: (id(p), _bytes(p), tuple(p.shape)) for name, p in model.named_parameters(remove_duplicate=False)
        }
    of_blocks = {
        key: math.prod(shape) for name, (key, _, shape) in stored.items() if "layers." in name and len(shape) == 2
    }
    total = sum({key: size for key, size, _ in stored.values()}.values())  # a shared one is counted once
    embeddings = [found for name, found in stored.items() if name.startswith("embed_tokens.")]
    heads = {key for name, (key, _, _) in stored.items() if name.startswith("lm_head.")}
    looked_up = sum(size for key, size, _ in embeddings if heads and key not in heads)
    return sum(of_blocks.values()), total, total - looked_up


def _bytes(parameter: Any) -> int:
    from bimo.model.packed import PackedTensor

    stored = parameter.rows if isinstance(parameter, PackedTensor) else parameter
    return int(stored.numel() * stored.element_size())
