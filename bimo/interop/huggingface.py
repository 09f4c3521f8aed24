"""Model folders in Hugging Face's layout: config.json + model.safetensors, without needing transformers.

Inside, our names are theirs; only the prefix "model." of everything but the head is added and removed here. A model
that belongs to no family of `families.py` is written as model_type "bimo": bimo reads it, other tools do not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bimo.core.config import ModelSpec
from bimo.core.errors import UserError
from bimo.interop.families import FAMILIES, family_of
from bimo.model.gpt import GPT
from bimo.tokenizer import Tokenizer


def save_model(folder: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """Write config.json, generation_config.json and model.safetensors into an existing folder."""
    config = config_from_spec(model.spec, tokenizer)
    ends = {"bos_token_id": tokenizer.begin_id, "eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(ends, indent=2), encoding="utf-8")
    tensors = {_their_name(name): p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_model(folder: Path) -> GPT:
    """Read a model folder that bimo, or transformers for one of our families, wrote."""
    spec = spec_from_config(_read_config(folder / "config.json"), where=str(folder / "config.json"))
    path = folder / "model.safetensors"
    if not path.exists():
        raise UserError("this model folder has no model.safetensors", where=str(folder), mend="Copy it again, whole.")
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise UserError(f"damaged weights ({error})", where=str(path), mend="Copy the file again.") from error
    if spec.tied_embeddings:
        tensors.pop("lm_head.weight", None)
    model = GPT(spec)
    _fill(model, tensors, where=str(path))
    return model.eval()


def config_from_spec(spec: ModelSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    """The config.json of a spec; its own form is kept under "bimo", which others ignore."""
    family = family_of(spec)
    return {
        "architectures": [family.architecture if family else "BimoForCausalLM"],
        "model_type": family.model_type if family else "bimo",
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context_length,
        "num_hidden_layers": spec.n_layers,
        "hidden_size": spec.d_model,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.d_ff,
        "hidden_act": "silu" if spec.feedforward == "swiglu" else "gelu_pytorch_tanh",
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "attention_bias": spec.biases != "none",
        "attention_dropout": 0.0,
        "mlp_bias": spec.biases == "all",
        "tie_word_embeddings": spec.tied_embeddings,
        "initializer_range": spec.initializer_range,
        "use_sliding_window": False,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
        "bos_token_id": tokenizer.begin_id,
        "eos_token_id": tokenizer.end_id,
        "pad_token_id": tokenizer.pad_id,
        "bimo": spec.to_dict(),
    }


def spec_from_config(config: dict[str, Any], where: str) -> ModelSpec:
    """The spec of a config.json."""
    if "bimo" in config:
        return ModelSpec.from_dict(config["bimo"])
    family = next((f for f in FAMILIES if f.model_type == config.get("model_type")), None)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if family is None or rope.get("rope_type", "default") != "default" or config.get("use_sliding_window"):
        raise UserError(
            f"model_type {config.get('model_type')!r} (or its rotary scaling or window) is not supported",
            where=where,
            mend=f"Supported: {', '.join(f.model_type for f in FAMILIES)} with plain rotary positions.",
        )
    try:
        return ModelSpec(
            vocab_size=config["vocab_size"],
            context_length=config["max_position_embeddings"],
            n_layers=config["num_hidden_layers"],
            d_model=config["hidden_size"],
            n_heads=config["num_attention_heads"],
            n_kv_heads=config.get("num_key_value_heads") or 0,
            head_dim=config.get("head_dim") or 0,
            d_ff=config["intermediate_size"],
            rope_theta=rope.get("rope_theta") or config.get("rope_theta", 10000.0),
            norm_eps=config.get("rms_norm_eps", 1e-6),
            qk_norm=family.qk_norm,
            biases="qkv" if family.biases == "qkv" else "none",
            tied_embeddings=config.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise UserError(f"the field {error} is missing", where=where, mend="Copy the model's folder again.") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("no such file", where=str(path), mend="Name a run or a model folder.") from error
    except ValueError as error:
        raise UserError(f"not JSON ({error})", where=str(path), mend="Copy the model's folder again.") from error
    if not isinstance(config, dict):
        raise UserError("not a JSON object", where=str(path), mend="Copy the model's folder again.")
    return config


def _fill(model: GPT, tensors: dict[str, Tensor], where: str) -> None:
    """Copy every tensor to its parameter; the names and shapes must match exactly."""
    parameters = {_their_name(name): parameter for name, parameter in model.named_parameters()}
    for name in sorted(parameters.keys() | tensors.keys()):
        found = tuple(tensors[name].shape) if name in tensors else "missing"
        expected = tuple(parameters[name].shape) if name in parameters else "no tensor of that name"
        if found != expected:
            raise UserError(
                f"tensor {name!r} is {found}, the model has {expected}", where=where, mend="Copy the folder again."
            )
        with torch.no_grad():
            parameters[name].copy_(tensors[name])


def _their_name(name: str) -> str:
    return name if name.startswith("lm_head") else f"model.{name}"
