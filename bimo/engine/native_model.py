"""A GPT laid out for the native kernels: its weights where they lie, or as panels, and every choice as a number."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from bimo.engine.kernels import layout
from bimo.engine.kernels.library import Kernels
from bimo.engine.kernels.memory import Arena, MappedFiles
from bimo.model.attention import Attention
from bimo.model.blocks import FORMATS, dequantize
from bimo.model.feedforward import GEGLU, GELU, Gated, GEGLUErf, GELUErf, ReGLU, ReLU, SwiGLU
from bimo.model.gpt import GPT, Block
from bimo.model.layers import LayerNorm, RMSNorm, RMSNorm1p
from bimo.model.lora import Adapter, check_adapters
from bimo.model.packed import PackedTensor
from bimo.model.positions import Learned, NoPositions, Rotary

_ACTIVATIONS: dict[type[nn.Module], str] = {
    SwiGLU: "silu",
    GEGLU: "gelu_tanh",
    GEGLUErf: "gelu_erf",
    ReGLU: "relu",
    GELU: "gelu_tanh",
    GELUErf: "gelu_erf",
    ReLU: "relu",
}
_FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_KNOWN = (GPT, Block, Attention, *_ACTIVATIONS, RMSNorm, RMSNorm1p, LayerNorm, Learned, NoPositions, Rotary)
_TORCH = (nn.Linear, nn.Embedding, nn.Dropout, nn.ModuleList, nn.Identity)


def reason_against(model: GPT, adapters: Sequence[Adapter] = ()) -> str:
    """Why the native kernels cannot run a model with these adapters; '' when they can."""
    spec = model.spec
    for name, module in model.named_modules():
        if type(module) not in (*_KNOWN, *_TORCH):
            return f"{name} is a {type(module).__name__}, which they do not know"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has a forward hook"
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            return f"the weights are on {parameter.device.type}"
        if not isinstance(parameter, PackedTensor) and parameter.dtype not in _FLOATS:
            return f"{name} is {str(parameter.dtype).removeprefix('torch.')}"
    if spec.rope_scaling.kind == "longrope":
        return "its rotary frequencies change with the length of a text (longrope)"
    outside = [path for adapter in adapters for path in adapter.parts if not path.startswith("layers.")]
    if outside:
        return f"an adapter changes {outside[0]}"
    return ""


class NativeModel:
    """The structs that a step reads, and what keeps their memory alive.

    Args:
        model: A model that `reason_against` has nothing against.
        kernels: Whose panels it is packed into.
        adapters: LoRA adapters, numbered from 1.
    """

    def __init__(self, model: GPT, kernels: Kernels, adapters: Sequence[Adapter] = ()) -> None:
        self.model, self.kernels = model, kernels
        self._kept: list[Any] = []
        self._matrices: dict[int, layout.Matrix] = {}
        self._n_positions = 0
        weights = {id(parameter): parameter for parameter in model.parameters()}.values()
        self._arena = Arena(self._panel_bytes(*_stored(weight)) for weight in weights if weight.dim() == 2)
        self._files = MappedFiles()
        blocks = list(model.blocks())
        spec, first = model.spec, blocks[0]
        self.layers = (layout.Layer * len(blocks))(*(self._layer(block) for block in blocks))
        across = spec.qk_norm and spec.qk_norm_across_heads
        self.struct = layout.Model(
            n_layers=len(blocks),
            d_model=spec.d_model,
            n_heads=spec.n_heads,
            n_kv_heads=spec.n_kv_heads,
            head_dim=spec.head_dim,
            d_ff=spec.d_ff,
            vocab_size=spec.vocab_size,
            norm_kind=layout.LAYER if isinstance(model.norm, LayerNorm) else layout.RMS,
            head_norm=layout.ACROSS_HEADS if across else layout.EACH_HEAD if spec.qk_norm else layout.NO_HEAD_NORM,
            activation=layout.ACTIVATIONS[_ACTIVATIONS[type(first.mlp)]],
            pairs=-(-spec.rotary_dim // 2),
            parallel_blocks=int(spec.parallel_blocks),
            norm_eps=spec.norm_eps,
            attention_scale=spec.attention_scale or 1 / math.sqrt(spec.head_dim),
            attention_softcap=spec.attention_softcap,
            embedding_scale=spec.embedding_scale,
            logit_softcap=spec.logit_softcap,
            layers=self.layers,
            embeddings=self._matrix(model.embed_tokens),
            head=self._matrix(model.lm_head),
            norm=self._norm(model.norm),
            learned_positions=self._learned(),
            adapters=self._adapters(adapters, len(blocks)),
        )
        self.need_positions(min(spec.context_length, 1024))

    def need_positions(self, count: int) -> None:
        """Let there be rotary angles for texts of so many tokens."""
        if count <= self._n_positions or not isinstance(self.model.embed_positions, Rotary):
            return
        self._n_positions = min(max(count, 2 * self._n_positions), self.model.spec.context_length)
        steps = torch.arange(self._n_positions)[None]
        angles = {}
        for windowed in {block.kind[0] for block in self.model.blocks()}:
            cosine, sine = self.model.embed_positions.rotation(steps, windowed=windowed)
            angles[windowed] = (self._floats(cosine), self._floats(sine))
        for layer, block in zip(self.layers, self.model.blocks(), strict=True):
            windowed, rotated = block.kind
            if rotated:
                layer.cosine, layer.sine = angles[windowed]

    def _layer(self, block: Block) -> layout.Layer:
        attention, mlp = cast(Attention, block.self_attn), cast(Any, block.mlp)
        gate = self._matrix(mlp.gate_proj) if isinstance(mlp, Gated) else layout.Matrix()
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        matrices = [*map(self._matrix, projections), gate, self._matrix(mlp.up_proj), self._matrix(mlp.down_proj)]
        norms = [self._norm(getattr(block, name)) if name else layout.Norm() for name in block.norm_names]
        return layout.Layer(
            matrices=(layout.Matrix * len(matrices))(*matrices),
            norms=(layout.Norm * 4)(*norms),
            q_norm=self._norm(attention.q_norm),
            k_norm=self._norm(attention.k_norm),
            window=self.model.spec.window if block.kind[0] else 0,
        )

    def _matrix(self, module: nn.Module) -> layout.Matrix:
        weight = module.weight
        assert isinstance(weight, Tensor), "a linear layer or an embedding has a weight"
        matrix = self._matrices.get(id(weight))
        if matrix is None:
            matrix = self._matrices[id(weight)] = self._laid_out(weight)
            self._kept.append(weight)  # an id is only good while its object lives
        bias = getattr(module, "bias", None)
        if bias is None:
            return matrix
        return layout.Matrix(matrix.format, matrix.rows, matrix.columns, matrix.data, self._floats(bias))

    def _laid_out(self, weight: Tensor) -> layout.Matrix:
        name, data, (rows, columns) = _stored(weight)
        size = self._panel_bytes(name, data, weight.shape)
        if not size:
            self._kept.append(data)
            return layout.Matrix(layout.FORMATS[name], rows, columns, data.data_ptr(), None)
        call, kernels, address = self.kernels.call, self.kernels, self._arena.take(size)
        call.bimo_pack(kernels.machine, layout.FORMATS[name], data.data_ptr(), rows, columns, kernels.width, address)
        self._files.let_go(data.data_ptr(), data.numel())  # the panels are what is read from now on
        return layout.Matrix(layout.FORMATS[name], rows, columns, address, None)

    def _panel_bytes(self, name: str, data: Tensor, shape: Sequence[int]) -> int:
        """Bytes of a matrix in panels; 0 when it is read where it lies."""
        if name not in layout.BLOCKS:
            return 0
        rows, columns = shape
        width = self.kernels.width
        return int(-(-rows // width) * self.kernels.call.bimo_panel_bytes(layout.FORMATS[name], columns, width))

    def _norm(self, module: nn.Module) -> layout.Norm:
        if isinstance(module, nn.Identity):
            return layout.Norm()
        weight = cast(Tensor, module.weight).detach().float() + getattr(module, "offset", 0.0)
        bias = getattr(module, "bias", None)
        return layout.Norm(self._floats(weight), None if bias is None else self._floats(bias))

    def _learned(self) -> int | None:
        positions = self.model.embed_positions
        return self._floats(positions.weight) if isinstance(positions, Learned) else None

    def _adapters(self, adapters: Sequence[Adapter], n_layers: int) -> Any:
        check_adapters(self.model, adapters)
        table = (layout.LowRank * (len(adapters) * n_layers * len(layout.PLACES)))()
        for number, adapter in enumerate(adapters):
            for path, part in adapter.parts.items():
                layer, place = int(path.split(".")[1]), layout.PLACES.index(path.rpartition(".")[2])
                entry = table[(number * n_layers + layer) * len(layout.PLACES) + place]
                entry.a, entry.b = self._floats(part.down), self._floats(part.up)
                entry.scale, entry.rank = part.scale, part.down.shape[0]
        return ctypes.cast(table, ctypes.POINTER(layout.LowRank)) if adapters else None

    def _floats(self, tensor: Tensor) -> int:
        """Address of a float32 copy, or of the tensor itself."""
        plain = tensor.detach().float().contiguous()
        self._kept.append(plain)
        return plain.data_ptr()


def _stored(weight: Tensor) -> tuple[str, Tensor, Sequence[int]]:
    """Format, contiguous data and shape of a matrix as the kernels can take it."""
    if not isinstance(weight, PackedTensor):
        return _FLOATS[weight.dtype], weight.detach().contiguous(), weight.shape
    name, rows = weight.format.name, weight.rows.contiguous()
    if name == "Q5_0":
        return "Q8_0", _widened(rows), weight.shape
    if name not in layout.FORMATS:
        return "F32", dequantize(rows, weight.format), weight.shape
    return name, rows, weight.shape


def _widened(rows: Tensor) -> Tensor:
    """Q5_0 blocks as Q8_0: the same scale, numbers of five bits in bytes; exact."""
    blocks = rows.reshape(-1, FORMATS["Q5_0"].block_bytes)
    numbers = dequantize(
        torch.cat((torch.tensor([0, 60], dtype=torch.uint8).expand(len(blocks), 2), blocks[:, 2:]), 1), FORMATS["Q5_0"]
    )
    return torch.cat((blocks[:, :2], numbers.to(torch.int8).view(torch.uint8)), dim=1).reshape(len(rows), -1)
