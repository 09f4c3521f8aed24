"""config.json of every family, as it is published and as transformers writes it today, means the same to bimo."""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from typing import Any

import pytest

from bimo import ModelSpec, UserError
from bimo.core.spec import RopeScaling
from bimo.interop import families
from bimo.interop.families import FAMILIES, canonical, family_of, read_config

CLASSES = {
    **{"qwen3": "Qwen3", "llama": "Llama", "qwen2": "Qwen2", "mistral": "Mistral", "smollm3": "SmolLM3"},
    **{"olmo2": "Olmo2", "gemma2": "Gemma2", "gemma3_text": "Gemma3Text", "phi3": "Phi3", "mixtral": "Mixtral"},
    **{"qwen3_moe": "Qwen3Moe", "gpt_neox": "GPTNeoX", "gpt2": "GPT2"},
}
FACTORS = [1.0 + 0.25 * i for i in range(48)]


def sizes(d_model: int, d_ff: int, layers: int, heads: int, groups: int, vocab: int, context: int) -> dict[str, Any]:
    return {
        **{"hidden_size": d_model, "intermediate_size": d_ff, "num_hidden_layers": layers, "vocab_size": vocab},
        **{"num_attention_heads": heads, "num_key_value_heads": groups, "max_position_embeddings": context},
    }


# As these models were published, in the words of the transformers versions of their time.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 2 7B": {
        **{"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_scaling": None},
        **sizes(4096, 11008, 32, 32, 32, 32000, 4096),
        **{"pretraining_tp": 1, "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True},
    },
    "Llama 3.2 1B": {
        **{"model_type": "llama", "attention_bias": False, "mlp_bias": False, "head_dim": 64, "hidden_act": "silu"},
        **sizes(2048, 8192, 16, 32, 8, 128256, 131072),
        **{"rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16"},
        "rope_scaling": {
            **{"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "rope_type": "llama3"},
            "original_max_position_embeddings": 8192,
        },
    },
    "a Llama with linear scaling of old": {
        **{"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-05},
        **sizes(4096, 11008, 32, 32, 32, 32000, 8192),
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "Mistral 7B v0.1": {
        **{"model_type": "mistral", "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 10000.0},
        **sizes(4096, 14336, 32, 32, 8, 32000, 32768),
        **{"sliding_window": 4096, "tie_word_embeddings": False},
    },
    "Mistral 7B v0.3": {
        **{"model_type": "mistral", "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 1000000.0},
        **sizes(4096, 14336, 32, 32, 8, 32768, 32768),
        **{"sliding_window": None, "head_dim": None},
    },
    "Qwen2.5 0.5B": {
        **{"model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0},
        **sizes(896, 4864, 24, 14, 2, 151936, 32768),
        **{"sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 24, "use_mrope": False},
        "tie_word_embeddings": True,
    },
    "Qwen2.5 with YaRN": {
        **{"model_type": "qwen2", "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0},
        **sizes(3584, 18944, 28, 28, 4, 152064, 131072),
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    },
    "Qwen3 0.6B": {
        **{"model_type": "qwen3", "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1000000},
        **sizes(1024, 3072, 28, 16, 8, 151936, 40960),
        **{"head_dim": 128, "attention_bias": False, "sliding_window": None, "use_sliding_window": False},
        **{"max_window_layers": 28, "rope_scaling": None, "tie_word_embeddings": True},
    },
    "SmolLM3 3B": {
        **{"model_type": "smollm3", "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 5000000.0},
        **sizes(2048, 11008, 36, 16, 4, 128256, 65536),
        **{"attention_bias": False, "mlp_bias": False, "no_rope_layer_interval": 4, "use_sliding_window": False},
        "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(36)],
        "layer_types": ["full_attention"] * 36,
    },
    "OLMo 2 1B": {
        **{"model_type": "olmo2", "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 500000},
        **sizes(2048, 8192, 16, 16, 16, 100352, 4096),
        **{"attention_bias": False, "rope_scaling": None, "tie_word_embeddings": False},
    },
    "Gemma 2 2B": {
        **{"model_type": "gemma2", "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
        **sizes(2304, 9216, 26, 8, 4, 256000, 8192),
        **{"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "rms_norm_eps": 1e-06},
        **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "rope_theta": 10000.0},
    },
    "Gemma 3 1B": {
        **{"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06},
        **sizes(1152, 6912, 26, 4, 1, 262144, 32768),
        **{"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512, "sliding_window_pattern": 6},
        **{"rope_local_base_freq": 10000, "rope_theta": 1000000, "rope_scaling": None},
        **{"attn_logit_softcapping": None, "final_logit_softcapping": None},
    },
    "Phi-3 mini 4k": {
        **{"model_type": "phi3", "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 10000.0},
        **sizes(3072, 8192, 32, 32, 32, 32064, 4096),
        **{"original_max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047},
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    },
    "Phi-3.5 mini": {
        **{"model_type": "phi3", "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 10000.0},
        **sizes(3072, 8192, 32, 32, 32, 32064, 131072),
        **{"original_max_position_embeddings": 4096, "sliding_window": 262144},
        "rope_scaling": {"long_factor": FACTORS, "short_factor": FACTORS[::-1], "type": "longrope"},
    },
    "Phi-4 mini": {
        **{"model_type": "phi3", "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 10000.0},
        **sizes(3072, 8192, 32, 24, 8, 200064, 131072),
        **{"original_max_position_embeddings": 4096, "sliding_window": 262144, "partial_rotary_factor": 0.75},
        "rope_scaling": {"long_factor": FACTORS, "short_factor": FACTORS[::-1], "type": "longrope"},
        "tie_word_embeddings": True,
    },
    "Mixtral 8x7B": {
        **{"model_type": "mixtral", "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 1000000.0},
        **sizes(4096, 14336, 32, 32, 8, 32000, 32768),
        **{"num_experts_per_tok": 2, "num_local_experts": 8, "sliding_window": None, "tie_word_embeddings": False},
        **{"output_router_logits": False, "router_aux_loss_coef": 0.02},
    },
    "Qwen3 30B A3B": {
        **{"model_type": "qwen3_moe", "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 1000000.0},
        **sizes(2048, 6144, 48, 32, 4, 151936, 40960),
        **{"head_dim": 128, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8},
        **{"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "use_sliding_window": False},
        **{"attention_bias": False, "max_window_layers": 48, "sliding_window": None, "tie_word_embeddings": False},
    },
    "Pythia 160M": {
        **{"model_type": "gpt_neox", "hidden_act": "gelu", "layer_norm_eps": 1e-05, "rotary_emb_base": 10000},
        **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        **{"vocab_size": 50304, "max_position_embeddings": 2048, "rotary_pct": 0.25, "use_parallel_residual": True},
        "tie_word_embeddings": False,
    },
    "GPT-2": {
        **{"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "n_ctx": 1024},
        **{"n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257},
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_means_what_transformers_takes_it_for(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference is an extra")
    published = PUBLISHED[name]
    today = getattr(transformers, f"{CLASSES[published['model_type']]}Config")(**published).to_dict()
    assert read_config(published, "x") == read_config(today, "x"), "old words and new ones"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_written_as_one_that_reads_back(name: str) -> None:
    spec = read_config(PUBLISHED[name], "x")
    family = family_of(spec)
    assert family is not None, "some family computes it"
    assert canonical(family.read(family.write(spec))) == canonical(spec), "nothing that matters is lost"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_a_key_that_is_missing_means_what_it_means_in_transformers_or_is_asked_for(family: families.Family) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference is an extra")
    whole = getattr(transformers, f"{CLASSES[family.model_type]}Config")().to_dict()
    expected, required = read_config(whole, "x"), {}
    for key in set(whole) - {"model_type"}:
        try:
            found = read_config({k: v for k, v in whole.items() if k != key}, "x")
        except UserError as error:
            required[key] = str(error)
        else:
            assert found == expected, f"without {key}"
    assert len(required) <= 8, f"only sizes are required, not {required}"
    unnamed = [key for key, error in required.items() if f"'{key}' is missing" not in error and "expert" not in key]
    assert not unnamed, "the key that is missing is named"


def test_every_family_is_one_table_of_less_than_sixty_lines() -> None:
    tree = ast.parse(Path(families.__file__).read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Family"]
    assert len(calls) - 1 == len(FAMILIES) == len(CLASSES), "one call each, and one for our own names"
    assert max((call.end_lineno or 0) - call.lineno + 1 for call in calls) < 60, "a new family is a small thing"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"hidden_act": "mish"}, "hidden_act 'mish', which is none of gelu, .*, silu, swish, is not supported"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "rotary scaling 'spiral' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"num_attention_heads": 31}, "must be a multiple of n_kv_heads"),
        ({"hidden_size": "many"}, "d_model must be int"),
    ],
)
def test_what_bimo_does_not_compute_is_refused_and_not_approximated(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_config({**PUBLISHED["Llama 2 7B"], **changes}, "config.json")


LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
FULL, SLIDING = "full_attention", "sliding_attention"
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
NESTED = {FULL: {"rope_theta": 5.0}, SLIDING: {"rope_theta": 6.0}}


def small(model_type: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, **sizes(48, 88, 2, 4, 4, 211, 8192), **changes}


@pytest.mark.parametrize(
    "published",
    [
        small("llama", rope_parameters={"rope_theta": 5.0}, rope_scaling=LINEAR),
        small("llama", rope_parameters=LINEAR, rope_theta=7.0),
        small("phi3", rope_parameters={"partial_rotary_factor": 0.5}, rope_scaling={"type": "default"}),
        small("phi3", rope_scaling={**LONGROPE, "original_max_position_embeddings": 64}),
        small("gpt_neox", rotary_pct=0.5, rope_parameters={"partial_rotary_factor": 1.0}, rope_scaling=LINEAR),
        small("gemma3_text", rope_parameters=NESTED, rope_scaling=LINEAR, layer_types=[SLIDING, FULL]),
        small("gemma3_text", rope_scaling={**YARN, "truncate": True}, original_max_position_embeddings=16),
        small("gemma3_text", sliding_window_pattern=2),
        small("gemma2", sliding_window_pattern=1),
        small("qwen2", use_sliding_window=True, max_window_layers=1),
        small("qwen3", use_sliding_window=True, max_window_layers=1),
        small("qwen3", use_sliding_window=True, sliding_window=None, max_window_layers=1),
        small("qwen3_moe", use_sliding_window=True, **EXPERTS),
        small("smollm3", use_sliding_window=True, sliding_window=5, no_rope_layers=[1, 0]),
    ],
    ids=str,
)
def test_keys_that_contradict_each_other_mean_what_transformers_makes_of_them(published: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference is an extra")
    today = getattr(transformers, f"{CLASSES[published['model_type']]}Config")(**copy.deepcopy(published)).to_dict()
    assert read_config(published, "x") == read_config(today, "x"), "the same model"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (small("gpt_neox", rotary_pct=0), "rotary_pct 0, which turns no dimension of a head, is not supported"),
        (small("gpt_neox", rotary_pct=0.05), "rotary_pct 0.05, which turns no dimension"),
        (small("phi3", partial_rotary_factor=0.05), "partial_rotary_factor 0.05, which turns no dimension"),
        (small("llama", partial_rotary_factor=0.0), "partial_rotary_factor 0.0 is not supported"),
        (small("phi3", rope_scaling=LINEAR), "rotary scaling 'linear' is not supported"),
        (small("llama", rope_parameters=NESTED), "rope_parameters by layer type is not supported"),
        (small("qwen3", rope_parameters={FULL: {"rope_theta": 5.0}}), "rope_parameters by layer type"),
        (small("gemma3_text", rope_parameters=LINEAR), "rope_parameters without layer types is not supported"),
        (small("gemma3_text", rope_scaling={"type": "linear", "factor": 2.0}), "type 'linear' without rope_type"),
        (small("gemma3_text", rope_parameters={SLIDING: {"type": "linear", "factor": 2.0}}), "layers with a window"),
        *((small(m, layer_types=[SLIDING, FULL], sliding_window=None), "without a sliding_window")
          for m in ("gemma2", "gemma3_text", "qwen2", "qwen3", "smollm3")),
        (small("qwen3", layer_types=[SLIDING] * 2, sliding_window=7, use_sliding_window=False), "that is in use"),
        (small("gemma2", sliding_window=0), "sliding_window 0 is not supported"),
        (small("mistral", sliding_window=0), "sliding_window 0 is not supported"),
        (small("qwen3_moe", sliding_window=0, use_sliding_window=True), "sliding_window 0 is not supported"),
        *((small("qwen3", layer_types=[FULL] * n), f"layer_types for {n} layers, where num_hidden_layers is 2, is not")
          for n in (0, 1, 3)),
    ],
    ids=str,
)  # fmt: skip
def test_what_transformers_takes_in_another_way_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_config(config, "config.json")


def test_an_attention_factor_of_zero_is_a_value() -> None:
    for factor, expected in ((0.0, 0.0), (None, pytest.approx(1.1386, abs=1e-4))):
        spec = read_config(small("llama", rope_parameters={**YARN, "attention_factor": factor}), "x")
        assert spec.rope_scaling.attention_factor == expected, "only a missing one is derived"


@pytest.mark.parametrize(
    ("name", "ours"), [("gelu_python", "geglu_erf"), ("gelu", "geglu_erf"), ("gelu_python_tanh", "geglu")]
)
def test_a_slow_spelling_of_gelu_is_gelu(name: str, ours: str) -> None:
    assert read_config(small("llama", hidden_act=name), "x").feedforward == ours, "one function, two spellings"


def test_a_spec_that_no_family_says_belongs_to_none() -> None:
    assert family_of(ModelSpec(norm_placement="post", qk_norm=False)) is None, "only bimo computes this"
    scaled = ModelSpec(window=4, full_layers=(1,), rope_scaling=RopeScaling("linear", 2.0))
    assert family_of(scaled) is not None, "the control: Qwen3 with a window and scaling"
