"""llama.cpp's architectures: what each computes, in our choices, and how its file names keys and tensors.

`architecture_of` finds the one that computes a model's function by writing the spec in the architecture's words and
reading it back: what does not come out equal, llama.cpp would compute in another way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bimo.core.errors import UserError
from bimo.core.settings import field_names
from bimo.core.spec import ModelSpec, RopeScaling
from bimo.interop.tensors import PlainLayout, TensorNames
from bimo.model.shapes import parameter_shapes

_BLOCK = {
    "layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    **{f"mlp.experts.{part}_proj": f"ffn_{part}_exps.weight" for part in ("gate", "up", "down")},
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "norm": "output_norm",
    "lm_head": "output",
}
_PRE = {**_BLOCK, "post_attention_layernorm": "ffn_norm"}
_AFTER = {**_BLOCK, "post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
_SANDWICH = {**_AFTER, "pre_feedforward_layernorm": "ffn_norm"}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_FUSED = {name: theirs for name, theirs in _PRE.items() if name not in _QKV}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One of llama.cpp's architectures.

    Attributes:
        name: Its name in the file.
        names: Our names of modules, as in `Family`.
        fixed: What all its models share, as fields of ModelSpec; a function of the other fields where they settle it.
        defaults: What a missing key means, where that is not ModelSpec's default.
        keys: Keys of its own: (spec's field, key after the architecture's name).
        fused: Parts of ours that are one tensor there, in order, to its name.
        biases: The choices of biases that it has.
        factors: The tensor that may hold factors of the rotary frequencies; '' when it reads none.
        interleaved: Rotary pairs lie side by side, so rows of queries and keys are in another order (Llama).
        own_head: A file needs a head of its own: that of a model with tied embeddings is written twice.
    """

    name: str
    names: Mapping[str, str]
    fixed: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    keys: tuple[tuple[str, str], ...] = ()
    fused: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    biases: tuple[str, ...] = ("none",)
    factors: str = ""
    interleaved: bool = False
    own_head: bool = False

    def tensor_names(self, spec: ModelSpec, shapes: Mapping[str, Any]) -> TensorNames:
        """Where each of our parameters lies in a file."""
        return TensorNames(PlainLayout(self.names, self.fused), spec, shapes)


_PLAIN: dict[str, Any] = {"qk_norm": False}
_WHOLE: dict[str, Any] = {**_PLAIN, "rotary_dim": lambda spec: spec.head_dim}
_NORMALISED: dict[str, Any] = {"qk_norm": True, "rotary_dim": lambda spec: spec.head_dim}
_EQUAL: dict[str, Any] = {**_PLAIN, "norm": "layernorm", "head_dim": lambda spec: spec.d_model // spec.n_heads}
_GEMMA = {
    "norm": "rmsnorm_1p",
    "norm_placement": "sandwich",
    "feedforward": "geglu",
    "tied_embeddings": True,
    "embedding_scale": lambda spec: math.sqrt(spec.d_model),
}
_CAPS = (("attention_softcap", "attn_logit_softcapping"), ("logit_softcap", "final_logit_softcapping"))
_WINDOW = (("window", "attention.sliding_window"),)
_EXPERTS = (("n_experts", "expert_count"), ("n_experts_per_token", "expert_used_count"))
_MOE = (*_EXPERTS, ("d_expert", "expert_feed_forward_length"))


def _every(step: int, first: int) -> Callable[[ModelSpec], tuple[int, ...]]:
    """Every step-th layer, beginning with `first`."""
    return lambda spec: tuple(range(first, spec.n_layers, step))


def _scale_of_the_largest(n_layers: int) -> Callable[[ModelSpec], float]:
    """llama.cpp knows Gemma's largest model by its layers, and its scores have the scale of another width."""
    return lambda spec: (spec.d_model // spec.n_heads) ** -0.5 if spec.n_layers == n_layers else 0.0


ARCHITECTURES = (
    Architecture("qwen3", _PRE, _NORMALISED),
    Architecture(
        "llama",
        _PRE,
        _WHOLE,
        keys=_EXPERTS,
        biases=("none", "qkv", "attention", "feedforward", "all"),
        factors="rope_freqs",
        interleaved=True,
    ),
    Architecture("qwen2", _PRE, _WHOLE, biases=("qkv",)),
    Architecture("smollm3", _PRE, {**_WHOLE, "unrotated_layers": _every(4, 3)}, interleaved=True),
    Architecture(
        "olmo2", _AFTER, {**_NORMALISED, "qk_norm_across_heads": True, "norm_placement": "post"}, own_head=True
    ),
    Architecture(
        "gemma2",
        _SANDWICH,
        {**_GEMMA, "qk_norm": False, "full_layers": _every(2, 1), "attention_scale": _scale_of_the_largest(46)},
        defaults={"attention_softcap": 50.0, "logit_softcap": 30.0, "window": 4096},
        keys=(*_CAPS, *_WINDOW),
    ),
    Architecture(
        "gemma3",
        _SANDWICH,
        {
            **_GEMMA,
            **{"qk_norm": True, "full_layers": _every(6, 5), "window_rope_theta": 10000.0},
            "attention_scale": _scale_of_the_largest(62),
        },
        keys=_WINDOW,
    ),
    Architecture(
        "phi3",
        {**_FUSED, "mlp.gate_proj": "ffn_up"},
        _PLAIN,
        fused={_QKV: "attn_qkv", ("mlp.gate_proj", "mlp.up_proj"): "ffn_up"},
        factors="rope_factors",
    ),
    Architecture("qwen3moe", _PRE, _NORMALISED, keys=_MOE),
    Architecture(
        # llama.cpp computes the tanh form of GELU also where a model was trained with the exact one, as Pythia was.
        "gptneox",
        _FUSED,
        {**_EQUAL, "feedforward": "gelu_erf"},
        keys=(("parallel_blocks", "use_parallel_residual"),),
        fused={_QKV: "attn_qkv"},
        biases=("all",),
        own_head=True,
    ),
    Architecture(
        "gpt2",
        _FUSED,
        {**_EQUAL, "feedforward": "gelu", "positions": "learned"},
        fused={_QKV: "attn_qkv"},
        biases=("all",),
    ),
)


def architecture_of(spec: ModelSpec) -> Architecture:
    """The architecture of llama.cpp that computes what the spec says.

    Raises:
        UserError: There is none.
    """
    shapes = parameter_shapes(spec)
    wanted = _comparable(spec)
    nearest: list[str] | None = None
    name = ""
    for architecture in ARCHITECTURES:
        names = architecture.tensor_names(spec, shapes)
        theirs = {names.theirs(name): shape for name, shape in shapes.items()}
        try:
            factors = factors_of(architecture, spec)
            found = read_spec(architecture, write_spec(architecture, spec), theirs, factors)
        except (UserError, KeyError, TypeError, ValueError):
            continue
        differing = _differing(wanted, _comparable(found), architecture)
        if not differing:
            return architecture
        if nearest is None or len(differing) < len(nearest):
            nearest, name = differing, architecture.name
    raise UserError(
        "llama.cpp has no architecture that computes this model's function"
        + (f": {name}, the nearest, differs in {', '.join(nearest)}" if nearest else ""),
        where="GGUF",
        mend="Export a Hugging Face folder instead.",
    )


def _differing(wanted: ModelSpec, found: ModelSpec, architecture: Architecture) -> list[str]:
    """Fields in which what a file would say is not what the model is."""
    names = [name for name in field_names(ModelSpec) if getattr(wanted, name) != getattr(found, name)]
    odd = ["rotary_dim"] if wanted.positions == "rotary" and wanted.rotary_dim % 2 else []
    biased = ["biases"] if wanted.biases not in architecture.biases else []
    return list(dict.fromkeys([*names, *odd, *biased]))


def read_spec(
    architecture: Architecture,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, tuple[float, ...]],
) -> ModelSpec:
    """The spec of a file: its keys, the shapes of its tensors, and its rotary factors by name."""

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture.name}.{key}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise UserError(f"{key} differs from layer to layer, which is not supported")
            value = value[0]
        return value

    def need(key: str) -> Any:
        value = get(key)
        if value is None:
            raise KeyError(f"{architecture.name}.{key}")
        return value

    heads, rms, plain = need("attention.head_count"), "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
    choices: dict[str, Any] = {
        "vocab_size": shapes["token_embd.weight"][0],
        "context_length": need("context_length"),
        "n_layers": need("block_count"),
        "d_model": need("embedding_length"),
        "d_ff": need("feed_forward_length"),
        "n_heads": heads,
        "n_kv_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", 0),
        "norm_eps": _rounded(need(plain if architecture.fixed.get("norm") == "layernorm" else rms)),
        "rope_theta": _rounded(get("rope.freq_base", 10000.0)),
        "rotary_dim": get("rope.dimension_count", 0),
        "tied_embeddings": "output.weight" not in shapes,
        "biases": _biases(shapes),
        "rope_scaling": _read_scaling(get, factors),
    }
    for ours, key in architecture.keys:
        value = get(key, architecture.defaults.get(ours))
        if value is not None:
            choices[ours] = _rounded(value) if isinstance(value, float) else value
    choices |= {key: value for key, value in architecture.fixed.items() if not callable(value)}
    spec = ModelSpec(**choices)
    return replace(spec, **{key: value(spec) for key, value in architecture.fixed.items() if callable(value)})


def write_spec(architecture: Architecture, spec: ModelSpec) -> dict[str, Any]:
    """The keys of a file for a spec."""
    epsilon = "layer_norm_epsilon" if spec.norm == "layernorm" else "layer_norm_rms_epsilon"
    words: dict[str, Any] = {
        "context_length": spec.context_length,
        "embedding_length": spec.d_model,
        "block_count": spec.n_layers,
        "feed_forward_length": spec.d_ff,
        "vocab_size": spec.vocab_size,
        "attention.head_count": spec.n_heads,
        "attention.head_count_kv": spec.n_kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        f"attention.{epsilon}": float(spec.norm_eps),
    }
    if spec.positions == "rotary":
        words |= {"rope.dimension_count": spec.rotary_dim, "rope.freq_base": float(spec.rope_theta)}
        words |= _write_scaling(architecture, spec)
    for ours, key in architecture.keys:
        value = getattr(spec, ours)
        if (value or isinstance(value, bool)) and (spec.n_experts or not key.startswith("expert")):
            words[key] = value
    return {f"{architecture.name}.{key}": value for key, value in words.items()}


def _read_scaling(get: Callable[..., Any], factors: Mapping[str, tuple[float, ...]]) -> RopeScaling:
    """The rotary scaling; a file's own factors (Llama 3, Phi-3) are longrope, which divides each frequency by one."""
    kind = get("rope.scaling.type", "none")
    original = get("rope.scaling.original_context_length") or get("context_length")
    if factors:
        short = factors.get("rope_freqs.weight") or factors["rope_factors_short.weight"]
        long = factors.get("rope_freqs.weight") or factors["rope_factors_long.weight"]
        attention = _rounded(get("rope.scaling.attn_factor", 1.0))
        return RopeScaling(
            "longrope", original_context=original, attention_factor=attention, short_factors=short, long_factors=long
        )
    factor = _rounded(get("rope.scaling.factor", 1.0))
    if kind == "none" or factor == 1.0:
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", factor=factor)
    if kind == "yarn":
        attention = 0.1 * math.log(factor) + 1.0
        return RopeScaling("yarn", factor, original, attention_factor=attention)
    raise UserError(f"rotary scaling {kind!r} is not supported")


def _write_scaling(architecture: Architecture, spec: ModelSpec) -> dict[str, Any]:
    scaling = spec.rope_scaling
    if scaling.kind in ("none", "llama3") or (scaling.kind == "longrope" and architecture.factors == "rope_freqs"):
        return {}  # factors say it all
    words: dict[str, Any] = {"rope.scaling.type": scaling.kind}
    if scaling.kind == "longrope":
        words |= {"rope.scaling.attn_factor": float(scaling.attention_factor)}
    else:
        words |= {"rope.scaling.factor": float(scaling.factor)}
    return (
        words
        if scaling.kind == "linear"
        else words | {"rope.scaling.original_context_length": scaling.original_context}
    )


def factors_of(architecture: Architecture, spec: ModelSpec) -> dict[str, tuple[float, ...]]:
    """Rotary factors that a file for a spec holds as tensors, by their names."""
    scaling = spec.rope_scaling
    if spec.positions != "rotary" or scaling.kind not in ("llama3", "longrope"):
        return {}
    same = _as_factors(spec).rope_scaling
    if architecture.factors == "rope_factors":
        return {"rope_factors_long.weight": same.long_factors, "rope_factors_short.weight": same.short_factors}
    return {"rope_freqs.weight": same.long_factors} if architecture.factors == "rope_freqs" else {}


def _as_factors(spec: ModelSpec) -> ModelSpec:
    """The spec with Llama 3's scaling said as factors, float32 as in a file."""
    scaling = spec.rope_scaling
    if scaling.kind == "llama3":
        from bimo.model.positions import (
            base_frequencies,
            scaled_frequencies,
        )  # here: torch, which reading can do without

        plain = base_frequencies(spec.rope_theta, spec.rotary_dim)
        factors = tuple((plain / scaled_frequencies(plain, spec, long=False)).tolist())
        scaling = RopeScaling("longrope", original_context=1, short_factors=factors, long_factors=factors)
    elif scaling.kind == "longrope":
        short, long = (
            tuple(np.array(f, dtype=np.float32).tolist()) for f in (scaling.short_factors, scaling.long_factors)
        )
        scaling = replace(scaling, short_factors=short, long_factors=long)
    return replace(spec, rope_scaling=scaling)


def _comparable(spec: ModelSpec) -> ModelSpec:
    """What of a spec a file can tell: numbers as float32 gives them back, scaling as factors."""
    from bimo.interop.families import canonical  # here: the tables of all families, which only writing needs

    spec = _as_factors(canonical(spec))
    scaling = spec.rope_scaling
    if scaling.kind == "longrope" and scaling.short_factors == scaling.long_factors:
        scaling = replace(scaling, original_context=1)
    scaling = replace(scaling, attention_factor=_rounded(scaling.attention_factor), factor=_rounded(scaling.factor))
    return replace(spec, rope_scaling=scaling, norm_eps=_rounded(spec.norm_eps), rope_theta=_rounded(spec.rope_theta))


def _rounded(number: float) -> float:
    """The shortest decimal that float32 holds as this number: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _biases(shapes: Iterable[str]) -> str:
    found = {name.split(".", 2)[2] for name in shapes if name.startswith("blk.") and name.endswith(".bias")}
    qkv = bool({"attn_q.bias", "attn_qkv.bias"} & found)
    if "ffn_up.bias" in found:
        return "all" if qkv else "feedforward"
    return ("attention" if "attn_output.bias" in found else "qkv") if qkv else "none"
