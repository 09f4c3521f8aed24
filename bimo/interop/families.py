"""Model families: for each Hugging Face architecture the choices that make it and the names that its tensors have.

A new family is one table here. `family_of` finds the family that computes what a spec says by writing the spec in the
family's words and reading it back: what comes out equal, the family can say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bimo.core.errors import UserError
from bimo.core.spec import ModelSpec, RopeScaling
from bimo.interop import choices as c
from bimo.interop.choices import Aspect, Config, UnsupportedError
from bimo.interop.rope import Rope


@dataclass(frozen=True, slots=True)
class Family:
    """A Hugging Face architecture.

    Attributes:
        model_type: Its name in config.json.
        architecture: Its class in transformers.
        fixed: What all models of the family share, as fields of ModelSpec.
        aspects: What config.json says of the rest.
        defaults: What a missing key of config.json means.
        names: Our names of modules, from the second dot on, to theirs, where they differ; a `*` is an expert's number.
        prefix: What stands before every name but the head's.
        fused: Parts of ours that are one tensor there, in order, to its name.
        per_head: A fused tensor holds q, k and v head by head (GPT-NeoX) and not one after the other.
        transposed: Matrices of blocks lie as (in, out) (GPT-2).
    """

    model_type: str
    architecture: str
    fixed: Mapping[str, Any]
    aspects: tuple[Aspect, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "model."
    fused: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    per_head: bool = False
    transposed: bool = False

    def read(self, config: Config) -> ModelSpec:
        """The spec of a config.json."""
        config = {**self.defaults, **config}
        found = dict(self.fixed)
        for aspect in self.aspects:
            found |= aspect.read(config)
        return ModelSpec(**found)

    def write(self, spec: ModelSpec) -> Config:
        """The config.json of a spec that this family can say."""
        config: Config = {"architectures": [self.architecture], "model_type": self.model_type}
        for aspect in self.aspects:
            config |= aspect.write(spec)
        return config

    def says(self, spec: ModelSpec) -> bool:
        """Whether this family computes what the spec says."""
        try:
            return canonical(self.read(self.write(spec))) == canonical(spec)
        except (UserError, UnsupportedError, KeyError, TypeError, ValueError):
            return False


_LLAMA = {"qk_norm": False, "norm": "rmsnorm"}
_LLAMA_DEFAULTS = {
    **{"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    "max_position_embeddings": 2048,
}
_LONG = {**_LLAMA_DEFAULTS, "max_position_embeddings": 32768}
_LONGER = {**_LLAMA_DEFAULTS, "max_position_embeddings": 131072}
_COMMON = (c.SIZES, c.TIED, c.RMS_EPS, c.Activation(), c.Padding())
_GEMMA = {"norm": "rmsnorm_1p", "norm_placement": "sandwich", "biases": "none"}
_GEMMA_DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "pad_token_id": 0,
}
_GEMMA_COMMON = (
    *(c.SIZES, c.TIED, c.RMS_EPS, c.Activation("hidden_activation"), c.Padding()),
    c.ATTENTION_BIASES,
)
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

FAMILIES = (
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        fixed={"qk_norm": True, "norm": "rmsnorm"},
        aspects=(*_COMMON, c.ATTENTION_BIASES, Rope(), c.LayerWindows("flag")),
        defaults={**_LONG, "head_dim": 128, "num_key_value_heads": 32, "sliding_window": 4096},
    ),
    Family(
        "llama",
        "LlamaForCausalLM",
        fixed=_LLAMA,
        aspects=(*_COMMON, c.ANY_BIASES, Rope()),
        defaults=_LLAMA_DEFAULTS,
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        fixed={**_LLAMA, "biases": "qkv"},
        aspects=(*_COMMON, Rope(), c.LayerWindows("flag")),
        defaults={**_LONG, "num_key_value_heads": 32, "sliding_window": 4096},
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        fixed=_LLAMA,
        aspects=(*_COMMON, Rope(), c.UniformWindow()),
        defaults={**_LONGER, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        fixed=_LLAMA,
        aspects=(*_COMMON, c.ANY_BIASES, Rope(2e6), c.UnrotatedLayers(), c.LayerWindows("unrotated")),
        defaults={**_LONG, "tie_word_embeddings": True, "num_key_value_heads": 4, "pad_token_id": 128004},
    ),
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        fixed={"qk_norm": True, "qk_norm_across_heads": True, "norm": "rmsnorm", "norm_placement": "post"},
        aspects=(*_COMMON, c.ATTENTION_BIASES, Rope()),
        defaults={**_LLAMA_DEFAULTS, "rms_norm_eps": 1e-5, "pad_token_id": 1},
    ),
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        fixed={**_GEMMA, "qk_norm": False},
        aspects=(*_GEMMA_COMMON, c.Gemma(), Rope(), c.LayerWindows("pattern", 2)),
        defaults={
            **_GEMMA_DEFAULTS,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "max_position_embeddings": 8192,
        },
    ),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        fixed={**_GEMMA, "qk_norm": True},
        aspects=(
            *_GEMMA_COMMON,
            c.Gemma(capped_scores=False),
            Rope(1e6, local_theta=1e4),
            c.LayerWindows("pattern", 6),
        ),
        defaults=_GEMMA_DEFAULTS,
    ),
    Family(
        "phi3",
        "Phi3ForCausalLM",
        fixed={**_LLAMA, "biases": "none"},
        aspects=(*_COMMON, Rope(partial=1.0, legacy_longrope=True), c.UniformWindow()),
        defaults={
            **{**_LLAMA_DEFAULTS, "rms_norm_eps": 1e-5, "pad_token_id": 32000},
            **{"max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
        },
        fused={_QKV: "self_attn.qkv_proj", ("mlp.gate_proj", "mlp.up_proj"): "mlp.gate_up_proj"},
    ),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        fixed=_LLAMA,
        aspects=(*_COMMON, Rope(1e6), c.UniformWindow(), c.Experts(own_width=False)),
        defaults={**_LONGER, "rms_norm_eps": 1e-5, "num_key_value_heads": 8},
        names={
            "mlp": "block_sparse_moe",
            "mlp.experts.gate_proj": "block_sparse_moe.experts.*.w1.weight",
            "mlp.experts.down_proj": "block_sparse_moe.experts.*.w2.weight",
            "mlp.experts.up_proj": "block_sparse_moe.experts.*.w3.weight",
        },
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        fixed={"qk_norm": True, "norm": "rmsnorm"},
        aspects=(*_COMMON, c.ATTENTION_BIASES, Rope(), c.UniformWindow(flag=True), c.Experts(own_width=True)),
        defaults={**_LONG, "num_key_value_heads": 4, "sliding_window": 4096},
        names={f"mlp.experts.{p}_proj": f"mlp.experts.*.{p}_proj.weight" for p in ("gate", "up", "down")},
    ),
    Family(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        fixed={"qk_norm": False, "norm": "layernorm"},
        aspects=(
            c.Fields(
                (
                    ("vocab_size", "vocab_size"),
                    ("context_length", "max_position_embeddings"),
                    ("n_layers", "num_hidden_layers"),
                    ("d_model", "hidden_size"),
                    ("n_heads", "num_attention_heads"),
                    ("d_ff", "intermediate_size"),
                )
            ),
            c.TIED,
            c.Plain("norm_eps", "layer_norm_eps"),
            c.Plain("parallel_blocks", "use_parallel_residual"),
            c.Activation(gated=False),
            c.NEOX_BIASES,
            Rope(partial=0.25, theta_key="rotary_emb_base", partial_key="rotary_pct"),
        ),
        defaults={
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "use_parallel_residual": True,
            "attention_bias": True,
            "max_position_embeddings": 2048,
        },
        names={
            "embed_tokens": "embed_in",
            "norm": "final_layer_norm",
            "self_attn": "attention",
            "self_attn.o_proj": "attention.dense",
            "mlp.up_proj": "mlp.dense_h_to_4h",
            "mlp.down_proj": "mlp.dense_4h_to_h",
            "lm_head": "embed_out",
        },
        prefix="gpt_neox.",
        fused={_QKV: "attention.query_key_value"},
        per_head=True,
    ),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        fixed={"positions": "learned", "qk_norm": False, "norm": "layernorm", "biases": "all"},
        aspects=(
            c.Fields(
                (
                    ("vocab_size", "vocab_size"),
                    ("context_length", "n_positions"),
                    ("n_layers", "n_layer"),
                    ("d_model", "n_embd"),
                    ("n_heads", "n_head"),
                )
            ),
            c.InnerWidth(),
            c.TIED,
            c.Plain("norm_eps", "layer_norm_epsilon"),
            c.Activation("activation_function", gated=False),
        ),
        defaults={
            **{"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
            "n_positions": 1024,
        },
        names={
            "embed_tokens": "wte",
            "embed_positions": "wpe",
            "layers": "h",
            "norm": "ln_f",
            "input_layernorm": "ln_1",
            "post_attention_layernorm": "ln_2",
            "self_attn": "attn",
            "self_attn.o_proj": "attn.c_proj",
            "mlp.up_proj": "mlp.c_fc",
            "mlp.down_proj": "mlp.c_proj",
        },
        prefix="transformer.",
        fused={_QKV: "attn.c_attn"},
        transposed=True,
    ),
)


PLAIN = Family("bimo", "BimoForCausalLM", fixed={}, aspects=())
"""Our own names, under the prefix that Hugging Face checkpoints have."""


def family_of(spec: ModelSpec) -> Family | None:
    """The family that computes what the spec says; None when only bimo does."""
    return next((family for family in FAMILIES if family.says(spec)), None)


def canonical(spec: ModelSpec) -> ModelSpec:
    """The spec without what has no effect on what a trained model computes."""
    spec = replace(spec, dropout=0.0, initializer_range=0.0, padding_id=-1)
    if spec.positions != "rotary":
        spec = replace(spec, rotary_dim=0, rope_theta=1e4, window_rope_theta=0.0, rope_scaling=RopeScaling())
        spec = replace(spec, unrotated_layers=())
    if abs(spec.attention_scale - spec.head_dim**-0.5) < 1e-9:
        spec = replace(spec, attention_scale=0.0)
    if spec.window_rope_theta == spec.rope_theta and spec.rope_scaling.kind == "none":
        spec = replace(spec, window_rope_theta=0.0)
    if spec.window >= spec.context_length:  # which hides nothing; a base of its own may still be there
        spec = replace(spec, window=spec.context_length if spec.window_rope_theta else 0)
    if not spec.window or not any(spec.windowed(layer) for layer in range(spec.n_layers)):
        spec = replace(spec, window=0, full_layers=(), window_rope_theta=0.0)
    if not spec.qk_norm:
        spec = replace(spec, qk_norm_across_heads=False)
    if not spec.n_experts:
        spec = replace(spec, n_experts_per_token=2, d_expert=0, dense_layers=(), normalize_router=True)
    lists = {
        name: tuple(sorted({*getattr(spec, name)})) for name in ("full_layers", "unrotated_layers", "dense_layers")
    }
    return replace(spec, **lists)  # type: ignore[arg-type]  # fields by name


def read_config(config: Config, where: str) -> ModelSpec:
    """The spec of a config.json. What bimo wrote into it counts as long as the family's own fields say the same.

    Raises:
        UserError: The family, or something that the file asks for, is not supported; or a field is missing or wrong.
    """
    if config.get("model_type") == "bimo" and "bimo" in config:
        return ModelSpec.from_dict(config["bimo"])
    name = config.get("model_type")
    family = next((f for f in FAMILIES if f.model_type == name), None)
    known = f"Known families: {', '.join(f.model_type for f in FAMILIES)}."
    if family is None:
        raise UserError(f"model_type {name!r} is not supported", where=where, mend=known)
    asked = [key for key in ("quantization_config", "scale_attn_by_inverse_layer_idx") if config.get(key)]
    unusual = [key for key in ("scale_attn_weights", "is_causal") if config.get(key) is False]
    if asked or unusual or config.get("add_cross_attention"):
        what = asked[0] if asked else "an unusual attention"
        raise UserError(f"{what} is not supported for {name}", where=where, mend="Bring the plain weights.")
    try:
        said = family.read(config)
        # Other tools keep the key and change the fields: a model that was resized, a base that was raised.
        own = ModelSpec.from_dict(config["bimo"]) if "bimo" in config else said
        return own if canonical(own) == canonical(said) else said
    except UnsupportedError as error:
        raise UserError(f"{error} is not supported for {name}", where=where, mend=known) from error
    except KeyError as error:
        raise UserError(f"the field {error} is missing", where=where, mend="Copy the model's folder again.") from error
    except UserError as error:
        raise UserError(error.what, where=where, mend="Copy the model's folder again.") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        raise UserError(f"a field has a wrong value ({error})", where=where, mend="Copy the folder again.") from error
