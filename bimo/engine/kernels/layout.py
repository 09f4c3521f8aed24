"""The structs of `src/types.h` and `src/model.h`, field by field, and the numbers of their enumerations."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_void_p

FORMATS = {name: number for number, name in enumerate(("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"))}
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
"""Formats that are packed into panels; the others are read where they lie."""
FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K")
CACHE_TYPES = {"float32": 0, "float16": 1, "int8": 2}
ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu_erf": 2, "relu": 3}
RMS, LAYER = 0, 1
NO_HEAD_NORM, EACH_HEAD, ACROSS_HEADS = 0, 1, 2
PLACES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Matrix(Structure):
    _fields_ = (("format", c_int32), ("rows", c_int32), ("columns", c_int32), ("data", c_void_p), ("bias", c_void_p))


class Norm(Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class LowRank(Structure):
    _fields_ = (("a", c_void_p), ("b", c_void_p), ("scale", c_float), ("rank", c_int32))


class Layer(Structure):
    _fields_ = (
        ("matrices", Matrix * len(PLACES)),
        ("norms", Norm * 4),
        ("q_norm", Norm),
        ("k_norm", Norm),
        ("cosine", c_void_p),
        ("sine", c_void_p),
        ("window", c_int32),
    )


class Cache(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("type", "block_size", "n_blocks", "n_layers", "n_kv_heads", "head_dim")),
        ("data", c_void_p),
    )


class Model(Structure):
    _fields_ = (
        *((n, c_int32) for n in ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size")),
        *((n, c_int32) for n in ("norm_kind", "head_norm", "activation", "pairs", "parallel_blocks")),
        *(
            (name, c_float)
            for name in ("norm_eps", "attention_scale", "attention_softcap", "embedding_scale", "logit_softcap")
        ),
        ("layers", POINTER(Layer)),
        ("embeddings", Matrix),
        ("head", Matrix),
        ("norm", Norm),
        ("learned_positions", c_void_p),
        ("cache", Cache),
        ("adapters", POINTER(LowRank)),
    )


class Step(Structure):
    _fields_ = (
        *((name, c_int32) for name in ("n_rows", "n_chunks", "n_outputs", "want_hidden")),
        *(
            (name, c_void_p)
            for name in ("tokens", "positions", "chunk_ends", "tables", "table_starts", "adapters", "outputs", "out")
        ),
    )


STAGES = ("embed", "q k v", "place keys", "attend", "attention out", "gate up", "feed-forward out", "output")


class Mark(Structure):
    _fields_ = (("stage", c_int32), ("thread", c_int32), ("start", ctypes.c_int64), ("end", ctypes.c_int64))


class Draw(Structure):
    _fields_ = (
        ("top_p", ctypes.c_double),
        ("u", ctypes.c_double),
        ("temperature", c_float),
        ("min_p", c_float),
        ("top_k", c_int32),
    )


class Activations(Structure):
    """Rows of one input; only the tests of single kernels fill it from here."""

    _fields_ = (("x", c_void_p), ("q", c_void_p), ("scale", c_void_p), ("sum", c_void_p), ("k", c_int32))


class AttentionTask(Structure):
    """One task of attention; only the tests of single kernels fill it from here."""

    _fields_ = (
        ("cache", POINTER(Cache)),
        ("table", c_void_p),
        *((name, c_int32) for name in ("layer", "kv_head", "group", "n_tokens", "position", "window", "start", "end")),
        ("scale", c_float),
        ("softcap", c_float),
        ("q", c_void_p),
        ("q_stride", c_int32),
        ("partial", c_void_p),
    )


SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "bimo_kernels_count": (ctypes.c_int, ()),
    "bimo_kernels": (c_void_p, (ctypes.c_int,)),
    "bimo_kernels_name": (ctypes.c_char_p, (c_void_p,)),
    "bimo_kernels_width": (ctypes.c_int, (c_void_p,)),
    "bimo_machine_new": (c_void_p, (ctypes.c_int,)),
    "bimo_machine_free": (None, (c_void_p,)),
    "bimo_panel_bytes": (ctypes.c_size_t, (ctypes.c_int,) * 3),
    "bimo_cache_bytes": (ctypes.c_size_t, (POINTER(Cache),)),
    "bimo_pack": (None, (c_void_p, ctypes.c_int, c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, c_void_p)),
    "bimo_step": (ctypes.c_int, (c_void_p, c_void_p, POINTER(Model), POINTER(Step))),
    "bimo_copy_block": (None, (POINTER(Cache), ctypes.c_int, ctypes.c_int)),
    "bimo_trace": (ctypes.c_int, (c_void_p, ctypes.c_int, POINTER(Mark), ctypes.c_int)),
    "bimo_draw": (ctypes.c_int, (c_void_p, POINTER(Draw), c_void_p, ctypes.c_int)),
    "bimo_matmul": (
        None,
        (c_void_p, POINTER(Matrix), POINTER(Activations), ctypes.c_int, c_void_p, *(ctypes.c_int,) * 2),
    ),
    "bimo_quantize": (None, (c_void_p, c_void_p, ctypes.c_int, c_void_p, c_void_p, c_void_p)),
    "bimo_dequantize_row": (None, (c_void_p, POINTER(Matrix), ctypes.c_int, c_void_p)),
    "bimo_rms_norm": (None, (c_void_p, c_void_p, c_void_p, c_float, ctypes.c_int, c_void_p)),
    "bimo_layer_norm": (None, (c_void_p, c_void_p, c_void_p, c_void_p, c_float, ctypes.c_int, c_void_p)),
    "bimo_rotate": (None, (c_void_p, c_void_p, c_void_p, c_void_p, ctypes.c_int)),
    "bimo_activate": (None, (c_void_p, ctypes.c_int, c_void_p, c_void_p, ctypes.c_int)),
    "bimo_attend": (None, (c_void_p, POINTER(AttentionTask))),
    "bimo_store": (None, (c_void_p, POINTER(Cache), *(ctypes.c_int,) * 4, c_void_p, c_void_p)),
}
"""Result and arguments of every function."""
