"""A GPT as its weights lie in memory or in a mapped file: a spec, and rows of bytes by the names of parameters.

Loads no torch: it is all that the native kernels need. `StoredModel.build` makes the torch module of it, and
`StoredModel.of` looks at one in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bimo.core.spec import ModelSpec
from bimo.model.formats import FORMATS, BlockFormat

if TYPE_CHECKING:
    from torch import Tensor

    from bimo.model.gpt import GPT

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A parameter.

    Attributes:
        rows: As they lie, uint8, (…, rows, bytes of a row); a vector is (its bytes,).
        format: What the bytes are.
        pairs: Rotary pairs of a head lie side by side, so many in each (Llama in GGUF): `ordered` puts them into our
            order. 0: they are in it.
    """

    rows: Bytes
    format: BlockFormat
    pairs: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers."""
        *outer, row_bytes = self.rows.shape
        return (*outer, row_bytes // self.format.block_bytes * self.format.block_size)

    def ordered(self) -> Bytes:
        """The rows in our order, contiguous: where they lie, or a copy."""
        if not self.pairs:
            return np.ascontiguousarray(self.rows)
        heads = self.rows.reshape(-1, self.pairs, 2, *self.rows.shape[1:])
        return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(self.rows.shape)

    def floats(self) -> NDArray[np.float32]:
        """The numbers, float32: where they lie, or a copy."""
        rows, name = self.ordered(), self.format.name
        if name == "F32":
            return rows.view(np.float32)
        if name == "F16":
            return rows.view(np.float16).astype(np.float32)
        if name == "BF16":
            return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        import torch

        from bimo.model.blocks import dequantize

        numbers: NDArray[np.float32] = dequantize(torch.from_numpy(rows), self.format).numpy()
        return numbers


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A GPT.

    Attributes:
        spec: Its shape.
        n_layers: How many of its layers run, from the first on.
        tensors: Its parameters by name. A vector is one row.
    """

    spec: ModelSpec
    n_layers: int
    tensors: Mapping[str, StoredTensor]

    def build(self) -> GPT:
        """The torch module; packed matrices stay as they lie."""
        import torch

        from bimo.model.gpt import without_weights
        from bimo.model.packed import PackedTensor, assign

        model = without_weights(self.spec)
        for name, stored in self.tensors.items():
            if stored.format.name == "F32":
                assign(model, name, torch.from_numpy(stored.floats()))
            else:
                assign(model, name, PackedTensor(torch.from_numpy(stored.ordered()), stored.format, stored.shape[-1]))
        if self.spec.tied_embeddings:
            model.lm_head.weight = model.embed_tokens.weight
        return model.eval()

    @classmethod
    def of(cls, model: GPT) -> StoredModel:
        """A model on the CPU, float32 or of two bytes, or packed; parameters that it shares are shared here."""
        found: dict[int, StoredTensor] = {}
        tensors = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            tensors[name] = found.setdefault(id(parameter), _stored(parameter))
        return cls(model.spec, len(list(model.blocks())), tensors)


def _stored(parameter: Tensor) -> StoredTensor:
    import torch

    from bimo.model.packed import PackedTensor

    if isinstance(parameter, PackedTensor):
        return StoredTensor(parameter.rows.contiguous().numpy(), parameter.format)
    names: dict[Any, str] = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    rows: Bytes = parameter.detach().contiguous().view(torch.uint8).numpy()  # (…, bytes of a row)
    return StoredTensor(rows, FORMATS[names[parameter.dtype]])
