"""Folders whose config.json lies, or in which something that is no file stands where a file should be."""

from __future__ import annotations

import os

from interop.hostile.folder_changes import (
    DEEP,
    OWN,
    Change,
    config,
    cut,
    edit,
    instead,
    loop,
    own,
    pickled,
    raw,
    remote_code,
    scaling,
    several,
)

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
WRONG = {
    "negative": -4,
    "huge": 10**12,
    "of_400_digits": 10**400,
    "text": "4",
    "list": [[4]],
    "float": 4.0,
    "truth": True,
    "object": {"a": 1},
}
NUMBERS = {
    "zero": 0.0,
    "negative": -1.0,
    "nan": float("nan"),
    "infinite": float("inf"),
    "text": "1",
    "list": [1.0],
    "of_400_digits": 10**400,
}

SIZE = "must|asks for|layer_types for|wrong value"

CONFIG: dict[str, tuple[Change, str]] = {
    **{f"{key}_{name}": (config(key, value), SIZE) for key in SIZES for name, value in WRONG.items()},
    **{
        f"{key}_zero": (config(key, 0), "must be at least 1|layer_types for")
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    },
    **{f"rms_norm_eps_{name}": (config("rms_norm_eps", value), "norm_eps") for name, value in NUMBERS.items()},
    **{
        f"rope_theta_{name}": (config("rope_parameters", {"rope_type": "default", "rope_theta": value}), "rope_theta")
        for name, value in NUMBERS.items()
        if name != "zero"
    },
    **{f"own_{key}_{name}": (own(key, value), SIZE) for key in OWN for name, value in WRONG.items()},
    "own_a_text": (several(model_type="bimo", bimo="text"), "wrong value"),
    "own_a_list": (several(model_type="bimo", bimo=[[1]]), "wrong value"),
    "own_of_an_unknown_key": (own("magic", 1), "unknown key 'magic'"),
    "own_of_an_endless_key": (own("magic" * 10**5, 1), "unknown key"),
    "own_part_not_registered": (own("attention", "os.system"), "os.system"),
    "own_layers_2_31": (own("full_layers", [2**31]), "full_layers"),
    "own_scaling_a_text": (own("rope_scaling", "yarn"), "rope_scaling"),
    "own_scaling_nested": (own("rope_scaling", {"kind": {"kind": "yarn"}}), "kind must be one of"),
    "own_scaling_of_zeros": (
        own(
            "rope_scaling",
            {"kind": "longrope", "original_context": 1, "short_factors": [0.0] * 8, "long_factors": [0.0] * 8},
        ),
        "positive",
    ),
    "own_experts_10_9": (own("n_experts", 10**9), "experts"),
    "family_unknown": (config("model_type", "magic"), "'magic' is not supported"),
    "family_a_list": (config("model_type", ["qwen3"]), "is not supported"),
    "family_missing": (edit("config.json", lambda c: c.pop("model_type")), "model_type None"),
    "size_missing": (edit("config.json", lambda c: c.pop("hidden_size")), "'hidden_size' is missing"),
    "layers_10_9": (config("num_hidden_layers", 10**9), "layers"),
    "layers_more_than_tensors": (config("num_hidden_layers", 100), "layers|missing"),
    "layers_one_more": (config("num_hidden_layers", 3), "missing|layer_types for"),
    "layers_one_fewer": (config("num_hidden_layers", 1), "no tensor of that name|layer_types for"),
    "experts_10_9": (
        several(model_type="mixtral", num_local_experts=10**9, num_experts_per_tok=2),
        "experts",
    ),
    "experts_that_are_not_there": (
        several(model_type="mixtral", num_local_experts=4, num_experts_per_tok=2),
        "missing",
    ),
    "activation_unknown": (config("hidden_act", "magic"), "magic"),
    "activation_a_list": (config("hidden_act", ["silu"]), "wrong value"),
    "layer_types_a_number": (config("layer_types", 5), "wrong value"),
    "layer_types_too_few": (
        several(layer_types=["sliding_attention"], use_sliding_window=True, sliding_window=8),
        "layer_types for",
    ),
    "scaling_a_text": (config("rope_scaling", "yarn"), "wrong value"),
    "scaling_unknown": (scaling(rope_type="magic"), "'magic'"),
    "scaling_by_nothing": (scaling(rope_type="llama3"), "missing"),
    "scaling_by_zero": (scaling(rope_type="linear", factor=0), "factor"),
    "scaling_by_nan": (scaling(rope_type="linear", factor=float("nan")), "factor"),
    "scaling_of_a_context_below_0": (
        scaling(rope_type="yarn", factor=2.0, original_max_position_embeddings=-1),
        "original_context",
    ),
    "scaling_of_waves_below_0": (scaling(rope_type="yarn", factor=2.0, beta_fast=-1.0), "no such model"),
    "scaling_by_texts": (scaling(rope_type="longrope", short_factor=["a"], long_factor=["b"]), "wrong value"),
    "scaling_by_too_many_factors": (
        scaling(rope_type="longrope", factor=2.0, short_factor=[1.0] * 9999, long_factor=[1.0] * 9999),
        "long_factors",
    ),
    "quantized": (config("quantization_config", {"quant_method": "magic"}), "quantization_config is not supported"),
    "empty": (raw("config.json", b""), "cannot be read as JSON"),
    "a_number": (raw("config.json", b"5"), "not a JSON object"),
    "a_list": (raw("config.json", b"[]"), "not a JSON object"),
    "null": (raw("config.json", b"null"), "not a JSON object"),
    "not_utf8": (raw("config.json", b'{"a": "\xff"}'), "cannot be read as JSON"),
    "utf16": (raw("config.json", '{"a": 1}'.encode("utf-16")), "cannot be read as JSON"),
    "nested_10000_deep": (raw("config.json", b'{"a":' * DEEP + b"1" + b"}" * DEEP), "nested too deeply"),
    "lists_10000_deep": (raw("config.json", b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"), "nested too deeply"),
    "unclosed_10000_deep": (raw("config.json", b"[" * DEEP), "nested too deeply"),
    "of_50_megabytes": (raw("config.json", b'{"a":"' + b"x" * 50_000_000 + b'"}'), "larger than such a file"),
    "of_50_megabytes_of_lists": (
        raw("config.json", b'{"a":[' + b"[]," * 17_000_000 + b"[]]}"),
        "larger than such a file",
    ),
    "of_many_small_values": (raw("config.json", b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"), "larger than such a file"),
    "a_number_of_a_million_digits": (
        raw("config.json", b'{"hidden_size":' + b"9" * 10**6 + b"}"),
        "cannot be read as JSON",
    ),
    "a_key_twice": (
        raw("config.json", b'{"model_type": "llama", "hidden_size": 1, "hidden_size": 2}'),
        "'hidden_size' stands twice",
    ),
    "cut_off": (cut("config.json", 0.5), "cannot be read as JSON"),
    "remote_code": (remote_code, "'magic' is not supported"),
}

FILES: dict[str, tuple[Change, str]] = {
    "pickled": (pickled, "no model.safetensors"),
    **{
        f"{name.replace('.', '_')}_{what}": (
            instead(name, make),
            "no such file|no model.safetensors|Input/output error",
        )
        for name in (
            "model.safetensors",
            "tokenizer.json",
            "model.safetensors.index.json",
            "generation_config.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        )
        for what, make in {
            "a_folder": os.mkdir,
            "a_pipe": os.mkfifo,
            "a_loop": loop,
            "a_device": lambda p: p.symlink_to("/dev/zero"),
            "unreadable": lambda p: p.symlink_to("/proc/self/mem"),
        }.items()
    },
    "config_json_a_loop": (instead("config.json", loop), "no run and no model folder"),
    "config_json_a_pipe": (instead("config.json", os.mkfifo), "no such file"),
    "config_json_a_folder": (instead("config.json", os.mkdir), "no such file"),
    "config_json_a_device": (instead("config.json", lambda p: p.symlink_to("/dev/zero")), "no such file"),
    "config_json_unreadable": (instead("config.json", lambda p: p.symlink_to("/proc/self/mem")), "cannot be read"),
    "no_weights": (instead("model.safetensors", lambda p: None), "no model.safetensors"),
}
