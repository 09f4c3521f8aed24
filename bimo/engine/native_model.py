"""A GPT laid out for the native kernels: its weights where they lie, or as panels, and every choice as a number.

Loads no torch, but for adapters, and for formats that the kernels do not know.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bimo.core.errors import UserError
from bimo.engine.kernels import layout
from bimo.engine.kernels.library import Kernels
from bimo.engine.kernels.memory import Arena, MappedFiles, give_back
from bimo.model.formats import FORMATS
from bimo.model.frequencies import rotation
from bimo.model.shapes import BLOCK_NORMS
from bimo.model.stored import Bytes, StoredModel, StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

    from bimo.core.spec import ModelSpec
    from bimo.model.gpt import GPT
    from bimo.model.lora import Adapter

_ACTIVATIONS = {
    "swiglu": "silu",
    "geglu": "gelu_tanh",
    "geglu_erf": "gelu_erf",
    "reglu": "relu",
    "gelu": "gelu_tanh",
    "gelu_erf": "gelu_erf",
    "relu": "relu",
}


def reason_against(model: GPT | StoredModel, adapters: Sequence[Adapter] = ()) -> str:
    """Why the native kernels cannot run a model with these adapters; '' when they can."""
    spec = model.spec
    of_modules = _of_parts(spec) if isinstance(model, StoredModel) else _of_modules(model)
    if of_modules:
        return of_modules
    if spec.rope_scaling.kind == "longrope":
        return "its rotary frequencies change with the length of a text (longrope)"
    return _outside_layers(adapters)


def _outside_layers(adapters: Sequence[Adapter]) -> str:
    """What an adapter changes beside the layers; '': nothing."""
    outside = [path for adapter in adapters for path in adapter.parts if not path.startswith("layers.")]
    return f"an adapter changes {outside[0]}" if outside else ""


def _of_parts(spec: ModelSpec) -> str:
    sparse = next((layer for layer in range(spec.n_layers) if spec.sparse(layer)), None)
    return "" if sparse is None else f"layers.{sparse}.mlp is a MixtureOfExperts, which they do not know"


def _of_modules(model: GPT) -> str:
    import torch

    from bimo.model.packed import PackedTensor

    unknown = unknown_part(model)
    if unknown:
        return unknown
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            return f"the weights are on {parameter.device.type}"
        floats = (torch.float32, torch.float16, torch.bfloat16)
        if not isinstance(parameter, PackedTensor) and parameter.dtype not in floats:
            return f"{name} is {str(parameter.dtype).removeprefix('torch.')}"
    return ""


def unknown_part(model: GPT, *also: type) -> str:
    """The first module that is none of bimo's dense parts, or has a hook, in words; '' when there is none.

    Args:
        model: The model.
        also: Further classes that are known.
    """
    from torch import nn

    from bimo.core.registry import REGISTRIES
    from bimo.model.gpt import GPT, Block

    spec = model.spec
    known: list[type] = [GPT, Block, nn.Linear, nn.Embedding, nn.Dropout, nn.ModuleList, nn.Identity, *also]
    for kind in ("attention", "feedforward", "norm", "positions"):  # what the spec says, and nothing in its place
        if getattr(spec, kind) in REGISTRIES[kind].ours:
            known.append(REGISTRIES[kind].get(getattr(spec, kind)))
    for name, module in model.named_modules():
        if type(module) not in known:
            return f"{name} is a {type(module).__name__}, which they do not know"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has a forward hook"
    return ""


@dataclass(frozen=True, slots=True)
class LaidOut:
    """An adapter as the kernels read it.

    Attributes:
        entries: By layer and matrix: number of the layer times that of the matrices, and the matrix.
        arrays: The memory that they point to.
    """

    entries: dict[int, layout.LowRank]
    arrays: tuple[NDArray[np.float32], ...]


class NativeModel:
    """The structs that a step reads, and what keeps their memory alive.

    Args:
        model: A model that `reason_against` has nothing against.
        kernels: Whose panels it is packed into.
        adapters: LoRA adapters, numbered from 1.

    Attributes:
        places: Of the adapters in the kernels' table, by number; counted from 1, 0 is none.
    """

    def __init__(self, model: GPT | StoredModel, kernels: Kernels, adapters: Sequence[Adapter] = ()) -> None:
        give_back()  # what opening the model needed, before the weights come
        self.kernels = kernels
        self.stored = stored = model if isinstance(model, StoredModel) else StoredModel.of(model)
        self._kept: list[Any] = []
        self._matrices: dict[StoredTensor, layout.Matrix] = {}
        self._n_positions = 0
        matrices = {tensor for tensor in stored.tensors.values() if len(tensor.shape) == 2}
        self._arena = Arena(self._panel_bytes(_kernel_format(tensor), tensor.shape) for tensor in matrices)
        self._files, self._packed = MappedFiles(), list[Bytes]()
        spec = self.spec = stored.spec
        embeddings, head = self._matrix("embed_tokens"), self._matrix("lm_head")  # first: they are the largest
        self._let_go()
        self.layers = (layout.Layer * stored.n_layers)(*map(self._layer, range(stored.n_layers)))
        across = spec.qk_norm and spec.qk_norm_across_heads
        learned = stored.tensors.get("embed_positions.weight")
        self.struct = layout.Model(
            n_layers=stored.n_layers,
            d_model=spec.d_model,
            n_heads=spec.n_heads,
            n_kv_heads=spec.n_kv_heads,
            head_dim=spec.head_dim,
            d_ff=spec.d_ff,
            vocab_size=spec.vocab_size,
            norm_kind=layout.LAYER if spec.norm == "layernorm" else layout.RMS,
            head_norm=layout.ACROSS_HEADS if across else layout.EACH_HEAD if spec.qk_norm else layout.NO_HEAD_NORM,
            activation=layout.ACTIVATIONS[_ACTIVATIONS[spec.feedforward]],
            pairs=-(-spec.rotary_dim // 2),
            parallel_blocks=int(spec.parallel_blocks),
            norm_eps=spec.norm_eps,
            attention_scale=spec.attention_scale or 1 / math.sqrt(spec.head_dim),
            attention_softcap=spec.attention_softcap,
            embedding_scale=spec.embedding_scale,
            logit_softcap=spec.logit_softcap,
            layers=self.layers,
            embeddings=embeddings,
            head=head if "lm_head.weight" in stored.tensors else embeddings,
            norm=self._norm("norm"),
            learned_positions=None if learned is None else self._floats(learned.floats()),
        )
        self._laid_out_adapters: dict[int, LaidOut] = {}
        self.places = {0: 0}
        if adapters:
            from bimo.model.lora import check_names

            check_names(adapters)
            self.change_adapters({n: self.lay_out(adapter) for n, adapter in enumerate(adapters, start=1)}, ())
        self.need_positions(min(spec.context_length, 1024))

    def need_positions(self, count: int) -> None:
        """Let there be rotary angles for texts of so many tokens."""
        spec = self.spec
        if count <= self._n_positions or spec.positions != "rotary":
            return
        self._n_positions = min(max(count, 2 * self._n_positions), spec.context_length)
        angles = {}
        for windowed in {spec.windowed(number) for number in range(len(self.layers))}:
            cosine, sine = rotation(spec, self._n_positions, windowed=windowed)
            angles[windowed] = (self._floats(cosine), self._floats(sine))
        for number, layer in enumerate(self.layers):
            if spec.rotated(number):
                layer.cosine, layer.sine = angles[spec.windowed(number)]

    def _layer(self, number: int) -> layout.Layer:
        spec, path = self.spec, f"layers.{number}"
        projections = (
            *(f"self_attn.{part}_proj" for part in "qkvo"),
            *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
        )
        matrices = [self._matrix(f"{path}.{name}") for name in projections]
        norms = [self._norm(f"{path}.{name}") if name else layout.Norm() for name in BLOCK_NORMS[spec.norm_placement]]
        self._let_go()
        return layout.Layer(
            matrices=(layout.Matrix * len(matrices))(*matrices),
            norms=(layout.Norm * 4)(*norms),
            q_norm=self._norm(f"{path}.self_attn.q_norm"),
            k_norm=self._norm(f"{path}.self_attn.k_norm"),
            window=spec.window if spec.windowed(number) else 0,
        )

    def _matrix(self, path: str) -> layout.Matrix:
        """A linear layer or an embedding; nothing for one that the model does not have."""
        weight, bias = (self.stored.tensors.get(f"{path}.{leaf}") for leaf in ("weight", "bias"))
        if weight is None:
            return layout.Matrix()
        matrix = self._matrices.get(weight)
        if matrix is None:
            matrix = self._matrices[weight] = self._laid_out(weight)
        if bias is None:
            return matrix
        address = self._floats(bias.floats())
        return layout.Matrix(matrix.format, matrix.rows, matrix.columns, matrix.data, address)

    def _laid_out(self, weight: StoredTensor) -> layout.Matrix:
        name, (rows, columns) = _kernel_format(weight), weight.shape
        data, size = _converted(weight), self._panel_bytes(name, weight.shape)
        if not size:
            self._kept.append(data)
            return layout.Matrix(layout.FORMATS[name], rows, columns, data.ctypes.data, None)
        call, kernels, address = self.kernels.call, self.kernels, self._arena.take(size)
        call.bimo_pack(kernels.machine, layout.FORMATS[name], data.ctypes.data, rows, columns, kernels.width, address)
        self._packed.append(weight.rows)
        return layout.Matrix(layout.FORMATS[name], rows, columns, address, None)

    def _let_go(self) -> None:
        """Give back what was mapped of the file: panels are what is read from now on.

        The system maps pages around each that is read: those of the layer before have come back.
        """
        for rows in self._packed[-2 * len(layout.PLACES) :]:
            self._files.let_go(rows.ctypes.data, rows.nbytes)

    def _panel_bytes(self, name: str, shape: Sequence[int]) -> int:
        """Bytes of a matrix in panels; 0 when it is read where it lies."""
        if name not in layout.BLOCKS:
            return 0
        rows, columns = shape
        width = self.kernels.width
        return int(-(-rows // width) * self.kernels.call.bimo_panel_bytes(layout.FORMATS[name], columns, width))

    def _norm(self, path: str) -> layout.Norm:
        weight, bias = (self.stored.tensors.get(f"{path}.{leaf}") for leaf in ("weight", "bias"))
        if weight is None:
            return layout.Norm()
        numbers = weight.floats() + np.float32(self.spec.norm == "rmsnorm_1p")
        return layout.Norm(self._floats(numbers), None if bias is None else self._floats(bias.floats()))

    def lay_out(self, adapter: Adapter) -> LaidOut:
        """An adapter as the kernels read it.

        Raises:
            UserError: It does not fit the model, or changes what the kernels let no adapter change.
        """
        shapes = {path.removesuffix(".weight"): tensor.shape for path, tensor in self.stored.tensors.items()}
        linears = {path: (s[0], s[1]) for path, s in shapes.items() if len(s) == 2 and path.startswith("layers.")}
        reason = _outside_layers([adapter])
        if reason:
            mend = "Give it to the engine when that is made, or use backend='torch'."
            raise UserError(f"the native kernels cannot run it: {reason}", where=f"adapter {adapter.name!r}", mend=mend)
        adapter.check_shapes(linears, tied=self.spec.tied_embeddings)
        entries, arrays = {}, []
        for path, part in adapter.parts.items():
            place = int(path.split(".")[1]) * len(layout.PLACES) + layout.PLACES.index(path.rpartition(".")[2])
            down, up = (m.detach().cpu().float().contiguous().numpy() for m in (part.down, part.up))
            arrays += [down, up]
            entries[place] = layout.LowRank(down.ctypes.data, up.ctypes.data, part.scale, down.shape[0])
        return LaidOut(entries, tuple(arrays))

    def change_adapters(self, added: Mapping[int, LaidOut], dropped: Collection[int]) -> None:
        """From the next step on there are adapters of new numbers, and those of other numbers no more."""
        kept = {number: laid for number, laid in self._laid_out_adapters.items() if number not in dropped}
        self._laid_out_adapters = adapters = {**kept, **added}
        size = self.stored.n_layers * len(layout.PLACES)
        table = (layout.LowRank * (len(adapters) * size))()
        for row, laid in enumerate(adapters.values()):
            for place, entry in laid.entries.items():
                table[row * size + place] = entry
        self.places = {0: 0, **{number: place for place, number in enumerate(adapters, start=1)}}
        self._table = table  # its memory is held as long as the struct points there
        self.struct.adapters = ctypes.cast(table, ctypes.POINTER(layout.LowRank))

    def _floats(self, numbers: NDArray[np.float32]) -> int:
        """Address of float32 numbers, which are kept."""
        assert numbers.dtype == np.float32, "as the kernels read them"
        assert numbers.flags.c_contiguous, "one after the other"
        self._kept.append(numbers)
        return int(numbers.ctypes.data)


def _kernel_format(weight: StoredTensor) -> str:
    """The format in which the kernels take a matrix."""
    name = weight.format.name
    return name if name in layout.FORMATS else "Q8_0" if name == "Q5_0" else "F32"


def _converted(weight: StoredTensor) -> Bytes:
    """The rows of a matrix in that format, contiguous."""
    if weight.format.name in layout.FORMATS:
        return weight.ordered()
    if weight.format.name != "Q5_0":
        return weight.floats().view(np.uint8)
    import torch

    widened: Bytes = _widened(torch.from_numpy(weight.ordered())).numpy()
    return widened


def _widened(rows: Tensor) -> Tensor:
    """Q5_0 blocks as Q8_0: the same scale, numbers of five bits in bytes; exact."""
    import torch

    from bimo.model.blocks import dequantize

    blocks = rows.reshape(-1, FORMATS["Q5_0"].block_bytes)
    numbers = dequantize(
        torch.cat((torch.tensor([0, 60], dtype=torch.uint8).expand(len(blocks), 2), blocks[:, 2:]), 1), FORMATS["Q5_0"]
    )
    return torch.cat((blocks[:, :2], numbers.to(torch.int8).view(torch.uint8)), dim=1).reshape(len(rows), -1)
