"""Random models of every family, made by transformers from configs of odd shapes: what bimo is held against."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

SMALL = {
    "vocab_size": 211,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 88,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
}
GPT2 = {"vocab_size": 211, "n_positions": 128, "n_embd": 48, "n_layer": 3, "n_head": 4}
MOE = {"moe_intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 3}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2, odd heads, untied, wide": ("GPT2", {**GPT2, "n_head": 3, "n_inner": 100, "tie_word_embeddings": False}),
    "gpt2, relu": ("GPT2", {**GPT2, "activation_function": "relu"}),
    "neox": ("GPTNeoX", SMALL),
    "neox, one after the other, all turned": (
        "GPTNeoX",
        {**SMALL, "use_parallel_residual": False, "rotary_pct": 1.0, "num_attention_heads": 3},
    ),
    "neox, third of a head, no biases": ("GPTNeoX", {**SMALL, "rotary_pct": 0.34, "attention_bias": False}),
    "llama": ("Llama", SMALL),
    "llama, one key head, odd heads": (
        "Llama",
        {**SMALL, "hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 14},
    ),
    "llama 3.2": ("Llama", {**SMALL, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama, linear": ("Llama", {**SMALL, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "llama, yarn": ("Llama", {**SMALL, "rope_parameters": YARN}),
    "llama, dynamic": (
        "Llama",
        {**SMALL, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "llama, biases": ("Llama", {**SMALL, "attention_bias": True, "mlp_bias": True}),
    "llama, feed-forward biases": ("Llama", {**SMALL, "mlp_bias": True, "hidden_act": "gelu"}),
    "mistral": ("Mistral", {**SMALL, "sliding_window": 7}),
    "mistral, no window": ("Mistral", {**SMALL, "sliding_window": None, "head_dim": 20}),
    "qwen2": ("Qwen2", {**SMALL, "tie_word_embeddings": True}),
    "qwen2, window from layer 1": (
        "Qwen2",
        {**SMALL, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2, yarn": ("Qwen2", {**SMALL, "rope_parameters": {**YARN, "beta_fast": 16.0, "attention_factor": 1.3}}),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 24}),
    "qwen3, biases, window": (
        "Qwen3",
        {
            **SMALL,
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "smollm3": ("SmolLM3", {**SMALL, "no_rope_layer_interval": 2}),
    "smollm3, windows": (
        "SmolLM3",
        {**SMALL, "no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 6, "mlp_bias": True},
    ),
    "smollm3, as published": ("SmolLM3", {**SMALL, "num_hidden_layers": 5}),
    "olmo2": ("Olmo2", {**SMALL, "num_attention_heads": 6}),
    "olmo2, one key head": ("Olmo2", {**SMALL, "num_key_value_heads": 1, "attention_bias": True}),
    "gemma2": ("Gemma2", {**SMALL, "head_dim": 20, "sliding_window": 6, "query_pre_attn_scalar": 17}),
    "gemma2, tight caps, untied": (
        "Gemma2",
        {
            **SMALL,
            "head_dim": 12,
            "attn_logit_softcapping": 0.7,
            "final_logit_softcapping": 1.5,
            "sliding_window": 100,
            "tie_word_embeddings": False,
        },
    ),
    "gemma2, as published": (
        "Gemma2",
        {**SMALL, "head_dim": 20, "sliding_window": 6, "query_pre_attn_scalar": 20},
    ),
    "gemma3, as published": (
        "Gemma3Text",
        {**SMALL, "num_hidden_layers": 7, "head_dim": 20, "sliding_window": 6, "query_pre_attn_scalar": 20},
    ),
    "gemma3": ("Gemma3Text", {**SMALL, "head_dim": 20, "sliding_window": 6, "sliding_window_pattern": 2}),
    "gemma3, linear scaling": (
        "Gemma3Text",
        {
            **SMALL,
            "head_dim": 16,
            "sliding_window": 9,
            "num_key_value_heads": 1,
            "num_attention_heads": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3": ("Phi3", {**SMALL, "sliding_window": 9}),
    "phi3, no window": ("Phi3", {**SMALL, "sliding_window": None}),
    "phi3, half a head": ("Phi3", {**SMALL, "partial_rotary_factor": 0.5}),
    "phi3, longrope, short text": (
        "Phi3",
        {**SMALL, "original_max_position_embeddings": 100, "rope_parameters": LONGROPE},
    ),
    "phi3, longrope, long text": (
        "Phi3",
        {**SMALL, "original_max_position_embeddings": 20, "rope_parameters": LONGROPE},
    ),
    "mixtral": ("Mixtral", {**SMALL, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral, window, one expert each": (
        "Mixtral",
        {**SMALL, "num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 8, "head_dim": 10},
    ),
    "qwen3 moe": ("Qwen3Moe", {**SMALL, **MOE, "head_dim": 16, "norm_topk_prob": True}),
    "qwen3 moe, dense layers": (
        "Qwen3Moe",
        {**SMALL, **MOE, "head_dim": 16, "decoder_sparse_step": 2, "mlp_only_layers": [0]},
    ),
}


def random_case(family: str, seed: int) -> Any:
    """A transformers model of the family with a shape that nobody chose."""
    rng = random.Random(f"{family} {seed}")
    heads, groups = rng.choice([1, 3, 4, 5, 6, 7]), rng.choice([1, 2, 3])
    head_dim = 2 * rng.randint(2, 20)
    arguments: dict[str, Any] = {
        "vocab_size": rng.randint(280, 400),
        "hidden_size": heads * groups * rng.randint(2, 12),
        "num_hidden_layers": rng.randint(1, 5),
        "num_attention_heads": heads * groups,
        "num_key_value_heads": rng.choice([heads, 1]),
        "head_dim": head_dim,
        "intermediate_size": rng.randint(20, 150),
        "max_position_embeddings": rng.choice([80, 128, 500]),
        "tie_word_embeddings": rng.random() < 0.5,
        "sliding_window": rng.choice([2, 3, 5, 17, 33, 1000]),
        "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice([100.0, 1e4, 5e5, 1e6])},
        "rms_norm_eps": rng.choice([1e-5, 1e-6, 1e-3]),
    }
    if rng.random() < 0.5 and family not in ("Phi3", "Gemma3Text"):
        arguments["rope_parameters"] |= _random_scaling(rng)
    for name, choose in _OWN.get(family, {}).items():
        arguments[name] = choose(rng, arguments)
    for name in _LACKS.get(family, ()):
        del arguments[name]
    return _model(family, arguments, seed)


def _random_scaling(rng: random.Random) -> dict[str, Any]:
    """Long rotary scaling of one of the kinds that checkpoints have."""
    original = rng.choice([16, 32, 64])
    return rng.choice(
        [
            {"rope_type": "linear", "factor": rng.uniform(1.5, 16.0)},
            {**LLAMA3, "factor": rng.choice([2.0, 8.0, 32.0]), "original_max_position_embeddings": original},
            {**YARN, "factor": rng.choice([2.0, 4.0, 40.0]), "original_max_position_embeddings": original},
        ]
    )


def _narrow_heads(rng: random.Random, arguments: dict[str, Any]) -> int:
    """A width that the heads divide, for families whose heads are width / heads."""
    return arguments["num_attention_heads"] * arguments["head_dim"]


def _longrope(rng: random.Random, arguments: dict[str, Any]) -> dict[str, Any]:
    pairs = arguments["head_dim"] // 2
    factors = {name: [rng.uniform(1, 6) for _ in range(pairs)] for name in ("short_factor", "long_factor")}
    return {"rope_type": "longrope", "rope_theta": 1e4, **factors}


Choose = Callable[[random.Random, dict[str, Any]], Any]
_OWN: dict[str, dict[str, Choose]] = {
    "GPT2": {
        "hidden_size": _narrow_heads,
        "n_inner": lambda rng, a: rng.choice([None, a["intermediate_size"]]),
        "activation_function": lambda rng, a: rng.choice(["gelu_new", "gelu", "relu"]),
    },
    "GPTNeoX": {
        "hidden_size": _narrow_heads,
        "rotary_pct": lambda rng, a: rng.choice([0.25, 0.5, 1.0]),
        "use_parallel_residual": lambda rng, a: rng.random() < 0.5,
        "hidden_act": lambda rng, a: rng.choice(["gelu", "gelu_new", "relu"]),
        "rope_parameters": lambda rng, a: {"rope_type": "default", "rope_theta": 1e4},
    },
    "Llama": {
        "attention_bias": lambda rng, a: rng.random() < 0.3,
        "mlp_bias": lambda rng, a: rng.random() < 0.3,
    },
    "Qwen2": {
        "hidden_size": _narrow_heads,
        "use_sliding_window": lambda rng, a: rng.random() < 0.5,
        "max_window_layers": lambda rng, a: rng.randint(0, 3),
    },
    "Qwen3": {
        "attention_bias": lambda rng, a: rng.random() < 0.5,
        "use_sliding_window": lambda rng, a: rng.random() < 0.5,
        "max_window_layers": lambda rng, a: rng.randint(0, 3),
    },
    "SmolLM3": {
        "hidden_size": _narrow_heads,
        "no_rope_layer_interval": lambda rng, a: rng.randint(2, 4),
        "use_sliding_window": lambda rng, a: rng.random() < 0.3,
    },
    "Olmo2": {"hidden_size": _narrow_heads},
    "Gemma2": {
        "query_pre_attn_scalar": lambda rng, a: rng.choice([5, 17, 144, a["head_dim"]]),
        "attn_logit_softcapping": lambda rng, a: rng.choice([None, 1.0, 50.0]),
        "final_logit_softcapping": lambda rng, a: rng.choice([None, 2.0, 30.0]),
    },
    "Gemma3Text": {
        "query_pre_attn_scalar": lambda rng, a: rng.choice([5, 17, 144, a["head_dim"]]),
        "layer_types": lambda rng, a: [
            rng.choice(["sliding_attention", "full_attention"]) for _ in range(a["num_hidden_layers"])
        ],
        "rope_parameters": lambda rng, a: {
            "full_attention": rng.choice([{"rope_type": "linear", "factor": 8.0}, {"rope_type": "default"}])
            | {"rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": rng.choice([1e3, 1e4])},
        },
    },
    "Phi3": {
        "hidden_size": _narrow_heads,
        "original_max_position_embeddings": lambda rng, a: rng.choice([20, 50, 70]),
        "rope_parameters": lambda rng, a: rng.choice([_longrope(rng, a), {"rope_type": "default", "rope_theta": 1e4}]),
    },
    "Mixtral": {
        "num_local_experts": lambda rng, a: rng.randint(1, 8),
        "num_experts_per_tok": lambda rng, a: rng.randint(1, a["num_local_experts"]),
    },
    "Qwen3Moe": {
        "num_experts": lambda rng, a: rng.randint(1, 8),
        "num_experts_per_tok": lambda rng, a: rng.randint(1, a["num_experts"]),
        "moe_intermediate_size": lambda rng, a: rng.randint(5, 60),
        "norm_topk_prob": lambda rng, a: rng.random() < 0.5,
        "decoder_sparse_step": lambda rng, a: rng.randint(1, 2),
        "attention_bias": lambda rng, a: rng.random() < 0.5,
    },
}
_HEADS_BY_WIDTH = ("head_dim",)
_LACKS = {
    "GPT2": ("head_dim", "rope_parameters", "sliding_window", "rms_norm_eps", "num_key_value_heads"),
    "GPTNeoX": ("head_dim", "sliding_window", "rms_norm_eps", "num_key_value_heads"),
    "Llama": ("sliding_window",),
    "Olmo2": ("head_dim", "sliding_window"),
    **dict.fromkeys(("Qwen2", "SmolLM3", "Phi3"), _HEADS_BY_WIDTH),
}


def case(name: str, seed: int = 0, **changes: Any) -> Any:
    """The transformers model of a case, with some arguments of its config changed."""
    family, arguments = CASES[name]
    return _model(family, {**arguments, **changes}, seed)


def _model(family: str, arguments: dict[str, Any], seed: int) -> Any:
    """A model with weights far enough from their start that every part matters."""
    import transformers

    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**arguments, **special, attn_implementation="eager")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return plain(model)


def plain(model: Any) -> Any:
    """Without transformers' fused experts, which take no odd widths."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model
