"""Names and shapes of a GPT's parameters, from its spec alone. Loads no torch; a test holds them against the module's.

Of our own modules only: one of the user's may have any parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

from bimo.core.spec import GATED, ModelSpec

Shape = tuple[int, ...]

BLOCK_NORMS = {
    "pre": ("input_layernorm", "", "post_attention_layernorm", ""),
    "post": ("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
    "sandwich": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}
"""Before attention, after it, before the feed-forward part, after it: named as in Hugging Face checkpoints."""


def parameter_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """The shape of each parameter, in the order of `GPT.named_parameters`; a tied head is not among them."""
    shapes: dict[str, Shape] = {"embed_tokens.weight": (spec.vocab_size, spec.d_model)}
    if spec.positions == "learned":
        shapes["embed_positions.weight"] = (spec.context_length, spec.d_model)
    for layer in range(spec.n_layers):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in _block(spec, sparse=spec.sparse(layer))}
    shapes |= _norm(spec, "norm", spec.d_model)
    if not spec.tied_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, spec.d_model)
    return shapes


def _block(spec: ModelSpec, *, sparse: bool) -> Iterator[tuple[str, Shape]]:
    for name in filter(None, BLOCK_NORMS[spec.norm_placement]):
        yield from _norm(spec, name, spec.d_model).items()
    width, kv_width = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    for part, size in (("q", width), ("k", kv_width), ("v", kv_width)):
        yield from _linear(f"self_attn.{part}_proj", size, spec.d_model, bias=spec.has_bias("qkv"))
    yield from _linear("self_attn.o_proj", spec.d_model, width, bias=spec.has_bias("o"))
    if spec.qk_norm:
        across = spec.qk_norm_across_heads
        yield from _norm(spec, "self_attn.q_norm", width if across else spec.head_dim).items()
        yield from _norm(spec, "self_attn.k_norm", kv_width if across else spec.head_dim).items()
    if sparse:
        E, F, C = spec.n_experts, spec.d_expert, spec.d_model
        yield "mlp.gate.weight", (E, C)
        yield from ((f"mlp.experts.{part}_proj", (E, F, C)) for part in ("gate", "up"))
        yield "mlp.experts.down_proj", (E, C, F)
        return
    for part in ("gate", "up") if spec.feedforward in GATED else ("up",):
        yield from _linear(f"mlp.{part}_proj", spec.d_ff, spec.d_model, bias=spec.has_bias("feedforward"))
    yield from _linear("mlp.down_proj", spec.d_model, spec.d_ff, bias=spec.has_bias("feedforward"))


def _linear(name: str, outputs: int, inputs: int, *, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _norm(spec: ModelSpec, name: str, width: int) -> dict[str, Shape]:
    biased = spec.norm == "layernorm" and spec.has_bias("feedforward")
    return dict.fromkeys((f"{name}.weight", f"{name}.bias")[: 1 + biased], (width,))
