"""What a config.json says of rotary positions: their base, the part of a head that they turn, their stretching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bimo.core.spec import ModelSpec, RopeScaling
from bimo.interop.choices import Choices, Config, UnsupportedError

_LAYER_TYPES = {"full_attention", "sliding_attention"}


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
        found, local = self._by_layers(config) if self.local_theta else (self._of_all_layers(config), {})
        choices: Choices = {"rope_theta": _first(found.get("rope_theta"), config.get(self.theta_key), self.theta)}
        if self.local_theta:
            if _kind(local) != "default":
                raise UnsupportedError("rotary scaling in layers with a window")
            theta = _first(local.get("rope_theta"), config.get("rope_local_base_freq"), self.local_theta)
            choices["window_rope_theta"] = theta
        share = _first(found.get("partial_rotary_factor"), config.get(self.partial_key), self.partial or 1.0)
        if share != 1.0:
            if not self.partial:
                raise UnsupportedError(f"partial_rotary_factor {share}")
            head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
            choices["rotary_dim"] = int(head_dim * share)
            if choices["rotary_dim"] < 1:  # 0 means whole heads in ModelSpec
                raise UnsupportedError(f"{self.partial_key} {share}, which turns no dimension of a head,")
        return {**choices, "rope_scaling": self._scaling(found, config)}

    def _of_all_layers(self, config: Config) -> Config:
        """What is said of all layers; rope_scaling stands in the place of rope_parameters, as in transformers."""
        found = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
        if _LAYER_TYPES & found.keys():
            raise UnsupportedError("rope_parameters by layer type")
        return found

    def _by_layers(self, config: Config) -> tuple[Config, Config]:
        """What is said of layers that see all and of layers with a window; rope_scaling changes the former."""
        parameters = dict(config.get("rope_parameters") or {})
        if parameters.keys() - _LAYER_TYPES:  # transformers passes over them
            raise UnsupportedError("rope_parameters without layer types")
        full = dict(parameters.get("full_attention") or {"rope_type": "default"})
        full |= config.get("rope_scaling") or {}
        if full.get("rope_type") == "default" and full.get("type", "default") != "default":
            # transformers 4 scales here, 5 does not.
            raise UnsupportedError(f"a rotary scaling of type {full['type']!r} without rope_type")
        full.pop("truncate", None)  # transformers looks for it outside, where it cannot be
        return full, dict(parameters.get("sliding_attention") or {})

    def _scaling(self, found: Config, config: Config) -> RopeScaling:
        kind = _kind(found)
        if self.legacy_longrope:
            kind = "longrope" if kind in ("su", "yarn") else kind
            if kind not in ("default", "longrope"):  # nor does transformers open these
                raise UnsupportedError(f"rotary scaling {kind!r}")
        if kind in ("default", "dynamic"):  # dynamic scaling begins where the context ends
            return RopeScaling()
        if kind == "linear":
            return RopeScaling("linear", factor=float(found["factor"]))
        context = config["max_position_embeddings"]
        outer = None if self.local_theta else config.get("original_max_position_embeddings")
        original = _first(outer, found.get("original_max_position_embeddings"), context)
        if kind == "llama3":
            low, high = found["low_freq_factor"], found["high_freq_factor"]
            return RopeScaling("llama3", float(found["factor"]), original, float(low), float(high))
        factor = _first(found.get("factor"), context / original)
        if kind == "yarn":
            return RopeScaling(
                "yarn",
                float(factor),
                original,
                beta_fast=float(found.get("beta_fast") or 32),
                beta_slow=float(found.get("beta_slow") or 1),
                truncate=bool(found.get("truncate", True)),
                attention_factor=float(_first(found.get("attention_factor"), _yarn_attention(factor, found))),
            )
        if kind == "longrope":
            stretched = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
            return RopeScaling(
                "longrope",
                original_context=original,
                attention_factor=float(_first(found.get("attention_factor"), stretched)),
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
            if spec.rope_scaling.kind == "longrope":  # transformers 4 looks for it here
                config["original_max_position_embeddings"] = spec.rope_scaling.original_context
        if self.local_theta:
            local = spec.window_rope_theta or spec.rope_theta
            config["rope_local_base_freq"] = local
            nested = {"rope_type": "default", "rope_theta": local}
            config["rope_parameters"] = {"full_attention": rope, "sliding_attention": nested}
        return config


def _first(*values: Any) -> Any:
    """The first value that is there; 0 is a value, which `or` would pass over."""
    return next(value for value in values if value is not None)


def _kind(found: Config) -> str:
    """The kind of a scaling, by its name of today or its name of old."""
    return str(found.get("rope_type") or found.get("type") or "default")


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
