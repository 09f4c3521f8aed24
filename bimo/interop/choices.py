"""What a config.json says, aspect by aspect: each reads choices of a `ModelSpec` out of it and writes them back.

A family (`families.py`) is a list of these. Reading takes the keys of transformers 4 and 5; writing gives both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from bimo.core.spec import ModelSpec

Config = dict[str, Any]
Choices = dict[str, Any]


class UnsupportedError(ValueError):
    """The config asks for something that bimo does not compute; the text says what."""


class Aspect(Protocol):
    """One aspect of a family."""

    def read(self, config: Config) -> Choices:
        """Fields of ModelSpec; may raise KeyError, TypeError or `UnsupportedError`."""

    def write(self, spec: ModelSpec) -> Config:
        """Keys of config.json."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Numbers that only have another name there.

    Attributes:
        pairs: (spec's field, config's key); null there means 0 here.
        optional: Keys that a file may lack: ModelSpec settles the field then.
    """

    pairs: tuple[tuple[str, str], ...]
    optional: tuple[str, ...] = ()

    def read(self, config: Config) -> Choices:
        wanted = [(ours, theirs) for ours, theirs in self.pairs if theirs in config or theirs not in self.optional]
        return {ours: config[theirs] or 0 for ours, theirs in wanted}

    def write(self, spec: ModelSpec) -> Config:
        return {theirs: getattr(spec, ours) for ours, theirs in self.pairs}


SIZES = Fields(
    (
        ("vocab_size", "vocab_size"),
        ("context_length", "max_position_embeddings"),
        ("n_layers", "num_hidden_layers"),
        ("d_model", "hidden_size"),
        ("n_heads", "num_attention_heads"),
        ("n_kv_heads", "num_key_value_heads"),
        ("head_dim", "head_dim"),
        ("d_ff", "intermediate_size"),
    ),
    optional=("num_key_value_heads", "head_dim"),
)


@dataclass(frozen=True, slots=True)
class Plain:
    """Fields that must be in the config (`key`), written as they are."""

    ours: str
    key: str

    def read(self, config: Config) -> Choices:
        return {self.ours: config[self.key]}

    def write(self, spec: ModelSpec) -> Config:
        return {self.key: getattr(spec, self.ours)}


@dataclass(frozen=True, slots=True)
class InnerWidth:
    """GPT-2's width of the feed-forward part: null means four times the model's."""

    def read(self, config: Config) -> Choices:
        return {"d_ff": config.get("n_inner") or 4 * config["n_embd"]}

    def write(self, spec: ModelSpec) -> Config:
        return {"n_inner": spec.d_ff}


@dataclass(frozen=True, slots=True)
class Padding:
    """The padding token, which transformers does not train where it is read; -1 counts from the end, as in torch."""

    def read(self, config: Config) -> Choices:
        found, size = config.get("pad_token_id"), config["vocab_size"]
        known = isinstance(found, int) and isinstance(size, int) and -size <= found < size
        return {"padding_id": found % size if known else -1}

    def write(self, spec: ModelSpec) -> Config:
        return {"pad_token_id": spec.padding_id if spec.padding_id >= 0 else None}


TIED = Plain("tied_embeddings", "tie_word_embeddings")
RMS_EPS = Plain("norm_eps", "rms_norm_eps")

_GATED = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu": "geglu_erf", "relu": "reglu"}
_PLAIN = {"gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf", "relu": "relu"}
_SAME = {
    **{"swish": "silu", "gelu_python": "gelu"},
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_python_tanh"), "gelu_pytorch_tanh"),
}


@dataclass(frozen=True, slots=True)
class Activation:
    """The activation, which together with being gated names our feed-forward part."""

    key: str = "hidden_act"
    gated: bool = True

    def read(self, config: Config) -> Choices:
        table = _GATED if self.gated else _PLAIN
        table = table | {name: table[same] for name, same in _SAME.items() if same in table}
        name = config[self.key]
        if name not in table:
            raise UnsupportedError(f"{self.key} {name!r}, which is none of {', '.join(sorted(table))},")
        return {"feedforward": table[name]}

    def write(self, spec: ModelSpec) -> Config:
        names = {ours: theirs for theirs, ours in (_GATED if self.gated else _PLAIN).items()}
        return {self.key: names.get(spec.feedforward, spec.feedforward)}


@dataclass(frozen=True, slots=True)
class Biases:
    """Which biases a family has: `of` maps the flags (attention_bias, mlp_bias) to our choice."""

    of: tuple[tuple[tuple[bool, bool], str], ...]

    def read(self, config: Config) -> Choices:
        flags = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
        known = dict(self.of)
        return {"biases": known.get(flags) or known[flags[0], False]}

    def write(self, spec: ModelSpec) -> Config:
        flags = next((flags for flags, choice in self.of if choice == spec.biases), (False, False))
        return {"attention_bias": flags[0], "mlp_bias": flags[1]}


ATTENTION_BIASES = Biases((((False, False), "none"), ((True, False), "attention")))
ANY_BIASES = Biases(
    (((False, False), "none"), ((True, False), "attention"), ((False, True), "feedforward"), ((True, True), "all"))
)
NEOX_BIASES = Biases((((True, False), "all"), ((False, False), "feedforward")))


@dataclass(frozen=True, slots=True)
class UniformWindow:
    """One window for all layers; with `flag`, only when use_sliding_window says so."""

    flag: bool = False

    def read(self, config: Config) -> Choices:
        on = not self.flag or config.get("use_sliding_window")
        window = config.get("sliding_window") if on else None
        if window is not None and window < 1:  # 0 means "no window" in ModelSpec; there, that nothing is seen
            raise UnsupportedError(f"sliding_window {window}")
        return {"window": window or 0}

    def write(self, spec: ModelSpec) -> Config:
        return {"sliding_window": spec.window or None, "use_sliding_window": spec.window > 0}


@dataclass(frozen=True, slots=True)
class LayerWindows:
    """A window in some layers, as layer_types says or, in older files, as `rule` says.

    Attributes:
        rule: "flag" (use_sliding_window, from max_window_layers on), "unrotated" (use_sliding_window, where there are
            no positions) or "pattern" (every pattern-th layer sees all).
        pattern: The pattern where the file has none. Gemma 3 files may have one; Gemma 2 passes over it.
    """

    rule: str
    pattern: int = 0

    def read(self, config: Config) -> Choices:
        n_layers, window = config["num_hidden_layers"], config.get("sliding_window")
        if self.rule == "flag" and not config.get("use_sliding_window"):
            window = None
        types = config.get("layer_types")
        if types is None:
            types = self._types(config, n_layers, window is not None)
        if len(types) != n_layers:
            raise UnsupportedError(f"layer_types for {len(types)} layers, where num_hidden_layers is {n_layers},")
        unknown = sorted({*types} - {"sliding_attention", "full_attention"})
        if unknown:
            raise UnsupportedError(f"layer type {unknown[0]!r}")
        if config.get("use_bidirectional_attention"):
            raise UnsupportedError("use_bidirectional_attention")
        if "sliding_attention" not in types:
            return {"window": 0}
        if window is None:
            raise UnsupportedError("the layer type 'sliding_attention' without a sliding_window that is in use")
        if window < 1:  # 0 means "no window" in ModelSpec; there, that nothing is seen
            raise UnsupportedError(f"sliding_window {window}")
        return {
            "window": window,
            "full_layers": tuple(i for i in range(n_layers) if types[i] == "full_attention"),
        }

    def _types(self, config: Config, n_layers: int, has_window: bool) -> list[str]:
        """The layers' types in files that do not list them."""
        own = config.get("sliding_window_pattern") if config.get("model_type") == "gemma3_text" else None
        pattern = self.pattern if own is None else own

        def slides(layer: int) -> bool:
            if self.rule == "pattern":
                return bool((layer + 1) % pattern)
            if not (has_window and config.get("use_sliding_window")):
                return False
            if self.rule == "unrotated":
                return layer in UnrotatedLayers().read(config)["unrotated_layers"]
            return layer >= config.get("max_window_layers", 28)

        return ["sliding_attention" if slides(layer) else "full_attention" for layer in range(n_layers)]

    def write(self, spec: ModelSpec) -> Config:
        layers = range(spec.n_layers)
        types = ["sliding_attention" if spec.windowed(layer) else "full_attention" for layer in layers]
        width = spec.window or (spec.context_length if self.rule == "pattern" else None)
        # Qwen's older readers know no layer_types: a window that begins at one layer is said in their words, too.
        first = next((i for i in layers if spec.windowed(i)), spec.n_layers)
        return {
            "sliding_window": width,
            "use_sliding_window": spec.window > 0,
            "max_window_layers": first,
            "layer_types": types,
        }


@dataclass(frozen=True, slots=True)
class UnrotatedLayers:
    """Layers without rotary positions (SmolLM3): no_rope_layers holds 1 where there are positions."""

    def read(self, config: Config) -> Choices:
        n_layers = config["num_hidden_layers"]
        rotated = config.get("no_rope_layers")
        if rotated is None:
            interval = config.get("no_rope_layer_interval", 4)
            rotated = [(layer + 1) % interval != 0 for layer in range(n_layers)]
        return {"unrotated_layers": tuple(layer for layer in range(n_layers) if not rotated[layer])}

    def write(self, spec: ModelSpec) -> Config:
        return {"no_rope_layers": [int(spec.rotated(layer)) for layer in range(spec.n_layers)]}


@dataclass(frozen=True, slots=True)
class Gemma:
    """Gemma's scores and embeddings: soft caps, the scale of the scores, and the scale of the embeddings.

    Attributes:
        capped_scores: Whether the cap of the scores is computed; Gemma 3 has the field and passes over it.
    """

    capped_scores: bool = True

    def read(self, config: Config) -> Choices:
        return {
            "attention_scale": config["query_pre_attn_scalar"] ** -0.5,
            "attention_softcap": (self.capped_scores and config.get("attn_logit_softcapping")) or 0.0,
            "logit_softcap": config.get("final_logit_softcapping") or 0.0,
            "embedding_scale": math.sqrt(config["hidden_size"]),
        }

    def write(self, spec: ModelSpec) -> Config:
        scalar = spec.attention_scale**-2 if spec.attention_scale else spec.head_dim
        return {
            "query_pre_attn_scalar": round(scalar),  # transformers opens nothing else
            "attn_logit_softcapping": (self.capped_scores and spec.attention_softcap) or None,
            "final_logit_softcapping": spec.logit_softcap or None,
            "use_bidirectional_attention": False,
        }


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts; `own_width`: experts have a width of their own, and some layers may be dense."""

    own_width: bool

    def read(self, config: Config) -> Choices:
        n_experts = config["num_local_experts"] if "num_local_experts" in config else config["num_experts"]
        choices = {"n_experts": n_experts, "n_experts_per_token": config["num_experts_per_tok"]}
        if not self.own_width:
            return {**choices, "normalize_router": True}
        step, only = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
        dense = tuple(i for i in range(config["num_hidden_layers"]) if i in only or (i + 1) % step)
        return {
            **choices,
            "d_expert": config["moe_intermediate_size"],
            "normalize_router": bool(config.get("norm_topk_prob")),
            "dense_layers": dense,
        }

    def write(self, spec: ModelSpec) -> Config:
        counts = {"num_local_experts": spec.n_experts, "num_experts_per_tok": spec.n_experts_per_token}
        if not self.own_width:
            return counts
        return {
            **counts,
            "num_experts": spec.n_experts,
            "moe_intermediate_size": spec.d_expert,
            "norm_topk_prob": spec.normalize_router,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(spec.dense_layers),
        }
