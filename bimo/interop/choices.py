"""What a config.json says, aspect by aspect: each reads choices of a `ModelSpec` out of it and writes them back.

A family (`families.py`) is a list of these. Reading takes the keys of transformers 4 and 5; writing gives both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from bimo.core.spec import ModelSpec, RopeScaling

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
    """Numbers that only have another name there: (spec's field, config's key) pairs; null there means 0 here."""

    pairs: tuple[tuple[str, str], ...]

    def read(self, config: Config) -> Choices:
        return {ours: config[theirs] or 0 for ours, theirs in self.pairs if theirs in config}

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
    )
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


TIED = Plain("tied_embeddings", "tie_word_embeddings")
RMS_EPS = Plain("norm_eps", "rms_norm_eps")

_GATED = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu": "geglu_erf", "relu": "reglu"}
_PLAIN = {"gelu_pytorch_tanh": "gelu", "gelu": "gelu_erf", "relu": "relu"}
_SAME = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}


@dataclass(frozen=True, slots=True)
class Activation:
    """The activation, which together with being gated names our feed-forward part."""

    key: str = "hidden_act"
    gated: bool = True

    def read(self, config: Config) -> Choices:
        name = config[self.key]
        table = _GATED if self.gated else _PLAIN
        name = _SAME.get(name, name)
        if name not in table:
            raise UnsupportedError(f"{self.key} {name!r}")
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
        return {"window": (config.get("sliding_window") or 0) if on else 0}

    def write(self, spec: ModelSpec) -> Config:
        return {"sliding_window": spec.window or None, "use_sliding_window": spec.window > 0}


@dataclass(frozen=True, slots=True)
class LayerWindows:
    """A window in some layers, as layer_types says or, in older files, as `rule` says.

    Attributes:
        rule: "flag" (use_sliding_window, from max_window_layers on), "unrotated" (use_sliding_window, where there are
            no positions) or "pattern" (every sliding_window_pattern-th layer sees all).
        pattern: The pattern where the file has none.
    """

    rule: str
    pattern: int = 0

    def read(self, config: Config) -> Choices:
        n_layers, window = config["num_hidden_layers"], config.get("sliding_window") or 0
        types = config.get("layer_types") or self._types(config, n_layers)
        unknown = sorted({*types} - {"sliding_attention", "full_attention"})
        if unknown:
            raise UnsupportedError(f"layer type {unknown[0]!r}")
        if config.get("use_bidirectional_attention"):
            raise UnsupportedError("use_bidirectional_attention")
        if "sliding_attention" not in types or not window:
            return {"window": 0}
        return {
            "window": window,
            "full_layers": tuple(i for i in range(n_layers) if types[i] == "full_attention"),
        }

    def _types(self, config: Config, n_layers: int) -> list[str]:
        def slides(layer: int) -> bool:
            if self.rule == "pattern":
                return bool((layer + 1) % (config.get("sliding_window_pattern") or self.pattern))
            if not config.get("use_sliding_window"):
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
    """Gemma's scores and embeddings: soft caps, the scale of the scores, and the scale of the embeddings."""

    def read(self, config: Config) -> Choices:
        return {
            "attention_scale": config["query_pre_attn_scalar"] ** -0.5,
            "attention_softcap": config.get("attn_logit_softcapping") or 0.0,
            "logit_softcap": config.get("final_logit_softcapping") or 0.0,
            "embedding_scale": math.sqrt(config["hidden_size"]),
        }

    def write(self, spec: ModelSpec) -> Config:
        scalar = spec.attention_scale**-2 if spec.attention_scale else float(spec.head_dim)
        scalar = round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar
        return {
            "query_pre_attn_scalar": scalar,
            "attn_logit_softcapping": spec.attention_softcap or None,
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


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions with their base and scaling.

    Attributes:
        theta: The base where the file has none; `local_theta` that of layers with a window (0: no such thing).
        partial: The share of a head that is turned where the file has none; 0: the family turns whole heads always.
        theta_key: Where transformers 4 keeps the base; `partial_key` where it keeps the share.
        legacy_longrope: "su" and "yarn" mean longrope (Phi-3).
    """

    theta: float = 10000.0
    local_theta: float = 0.0
    partial: float = 0.0
    theta_key: str = "rope_theta"
    partial_key: str = "partial_rotary_factor"
    legacy_longrope: bool = False

    def read(self, config: Config) -> Choices:
        found = dict(config.get("rope_parameters") or {})
        local: Config = {}
        if self.local_theta and {"full_attention", "sliding_attention"} & found.keys():
            found, local = dict(found.get("full_attention") or {}), found.get("sliding_attention") or {}
        elif config.get("rope_scaling"):
            found |= config["rope_scaling"]
        choices: Choices = {"rope_theta": found.get("rope_theta") or config.get(self.theta_key) or self.theta}
        if self.local_theta:
            if local.get("rope_type", "default") != "default":
                raise UnsupportedError("rotary scaling in layers with a window")
            theta = local.get("rope_theta") or config.get("rope_local_base_freq") or self.local_theta
            choices["window_rope_theta"] = theta
        share = found.get("partial_rotary_factor") or config.get(self.partial_key) or self.partial or 1.0
        if share != 1.0:
            if not self.partial:
                raise UnsupportedError(f"partial_rotary_factor {share}")
            head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
            choices["rotary_dim"] = int(head_dim * share)
        return {**choices, "rope_scaling": self._scaling(found, config)}

    def _scaling(self, found: Config, config: Config) -> RopeScaling:
        kind = found.get("rope_type") or found.get("type") or "default"
        if self.legacy_longrope and kind in ("su", "yarn"):
            kind = "longrope"
        if kind in ("default", "dynamic"):  # dynamic scaling begins where the context ends
            return RopeScaling()
        if kind == "linear":
            return RopeScaling("linear", factor=float(found["factor"]))
        context = config["max_position_embeddings"]
        original = config.get("original_max_position_embeddings") or found.get("original_max_position_embeddings")
        original = original or context
        if kind == "llama3":
            low, high = found["low_freq_factor"], found["high_freq_factor"]
            return RopeScaling("llama3", float(found["factor"]), original, float(low), float(high))
        factor = found.get("factor") or context / original
        if kind == "yarn":
            return RopeScaling(
                "yarn",
                float(factor),
                original,
                beta_fast=float(found.get("beta_fast") or 32),
                beta_slow=float(found.get("beta_slow") or 1),
                truncate=bool(found.get("truncate", True)),
                attention_factor=float(found.get("attention_factor") or _yarn_attention(factor, found)),
            )
        if kind == "longrope":
            stretched = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
            return RopeScaling(
                "longrope",
                original_context=original,
                attention_factor=float(found.get("attention_factor") or stretched),
                short_factors=tuple(map(float, found["short_factor"])),
                long_factors=tuple(map(float, found["long_factor"])),
            )
        raise UnsupportedError(f"rotary scaling {kind!r}")

    def write(self, spec: ModelSpec) -> Config:
        rope = {"rope_type": "default", "rope_theta": spec.rope_theta, **scaling_words(spec.rope_scaling)}
        config: Config = {self.theta_key: spec.rope_theta, "rope_parameters": rope}
        if self.partial:
            rope["partial_rotary_factor"] = config[self.partial_key] = _share(spec.rotary_dim, spec.head_dim)
        if spec.rope_scaling.kind != "none":
            config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
            if "original_max_position_embeddings" in rope and self.legacy_longrope:
                config["original_max_position_embeddings"] = spec.rope_scaling.original_context
        if self.local_theta:
            local = spec.window_rope_theta or spec.rope_theta
            config["rope_local_base_freq"] = local
            nested = {"rope_type": "default", "rope_theta": local}
            config["rope_parameters"] = {"full_attention": rope, "sliding_attention": nested}
        return config


def scaling_words(scaling: RopeScaling) -> Config:
    """A rotary scaling in transformers' words; {} for none."""
    if scaling.kind == "none":
        return {}
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    words: Config = {"rope_type": scaling.kind, "original_max_position_embeddings": scaling.original_context}
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        return {**words, "factor": scaling.factor, "low_freq_factor": low, "high_freq_factor": high}
    words["attention_factor"] = scaling.attention_factor
    if scaling.kind == "longrope":
        return {**words, "short_factor": list(scaling.short_factors), "long_factor": list(scaling.long_factors)}
    betas = {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    return {**words, "factor": scaling.factor, **betas, "truncate": scaling.truncate}


def _yarn_attention(factor: float, found: Config) -> float:
    """YaRN's temperature, 0.1 ln s + 1 (section 3.4), with DeepSeek's two weights where they are given."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if found.get("mscale") and found.get("mscale_all_dim"):
        return scale(found["mscale"]) / scale(found["mscale_all_dim"])
    return scale(1.0)


def _share(part: int, whole: int) -> float:
    """part / whole, such that int(whole * share) is part again in spite of rounding."""
    share = part / whole
    return share if int(whole * share) == part else math.nextafter(share, 2.0)
